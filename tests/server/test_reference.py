"""The reference page: everything the API has, readable, without scripts, and with nothing from anywhere else."""

import base64
import hashlib
import re
from html.parser import HTMLParser

from dotdo import Secret, action
from tests.server.running import Running, catalogue

VOID = {"meta", "br", "link", "img", "input"}


@action("hostile-texts", catalogue=catalogue)
async def hostile_texts(name: str, number: int = 0, password: Secret[str] | None = None) -> str:
    """Says <script>alert(1)</script> & `<b>more</b>`."""
    return name


class Page(HTMLParser):
    """Reads a page; every tag must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._open = "", list[str]()
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_shows_every_operation_and_schema_with_a_place_for_each_link(server: Running):
    with server.http() as http:
        document = http.get("/openapi.json").json()
        page = Page(http.get("/reference").text)
    for path, methods in document["paths"].items():
        assert path in page.text
        for operation in methods.values():
            assert operation["summary"].replace("`", "") in page.text
    places = {given["id"] for _, given in page.tags if "id" in given}
    links = [given["href"] or "" for tag, given in page.tags if tag == "a"]
    assert {link.removeprefix("#") for link in links if link != "openapi.json"} <= places
    assert {f"schema-{name}" for name in document["components"]["schemas"]} <= places
    assert "number" in page.text
    assert "integer, optional" in page.text
    example = """-d '{"params":{"name":"..."}}'"""
    assert "curl $URL/v1/actions/hostile-texts/execute" in page.text
    assert example in page.text


def test_page_needs_nothing_from_elsewhere_and_may_run_nothing(server: Running):
    with server.http() as http:
        response = http.get("/reference")
    page, policy = Page(response.text), response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not {"script", "img", "link", "iframe", "form"} & {tag for tag, _ in page.tags}
    assert not [given for _, given in page.tags if any(name.startswith("on") or name == "style" for name in given)]
    assert [given for _, given in page.tags if (given.get("href") or "#")[0] != "#"] == [{"href": "openapi.json"}]
    (style,) = re.findall(r"<style>(.*?)</style>", response.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy, "or a browser would show it without"
    assert "url(" not in style
    assert "@import" not in style


def test_texts_of_definitions_are_shown_and_not_run(server: Running):
    with server.http() as http:
        text = http.get("/reference").text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<script" not in text
    assert "<code>&lt;b&gt;more&lt;/b&gt;</code>" in text
