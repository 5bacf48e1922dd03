"""No stack trace leaves the server: not of failures, of questions, of what `on_failure` is told, nor of previews."""

from pathlib import Path

import httpx2

from dotdo import AsyncContext, AsyncDo, Catalogue, EffectCall, Fail, Retry, action, effect, service
from tests.doors import served
from tests.guarantees.lab import in_loop
from tests.patience import PATIENCE

catalogue = Catalogue()


@action("tell", catalogue=catalogue)
async def tell(failure: dict[str, object]) -> None: ...


@action("fail", retry=1, on_failure=[tell], catalogue=catalogue)
async def fail() -> None:
    raise Fail("not today")


@service("has-a-bug", catalogue=catalogue)
async def has_a_bug() -> None:
    raise KeyError("a bug")


@effect("ask", retry=Retry(attempts=1), on_unknown="ask", catalogue=catalogue)
async def ask(call: EffectCall) -> None:
    raise ConnectionError("cut off")


@action("asks", catalogue=catalogue)
async def asks(ctx: AsyncContext) -> None:
    await ctx.request(ask)


PATHS = (
    "actions/fail/execute",
    "actions/asks/execute",
    "services/has-a-bug/execute",
    "actions/fail/preview",
    "services/has-a-bug/preview",
)


@in_loop
async def test_no_traceback_leaves_the_server(tmp_path: Path):
    async with AsyncDo(str(tmp_path / "dotdo.db"), catalogue=catalogue) as client, served(client) as (url, key):
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=PATIENCE) as http:
            answers = [(await http.post(f"/v1/{path}", json={})).text for path in PATHS]
            listed = await http.get("/v1/runs")
            answers.append(listed.text)
            journals: list[str] = []
            for run in listed.json()["runs"]:
                journals.append((await http.get(f"/v1/runs/{run['id']}/journal")).text)
        inside = [entry.data for run in await client.runs.list() for entry in await client.runs.journal(run.id)]

    statuses = {run["name"]: run["status"] for run in listed.json()["runs"]}
    assert statuses == {"fail": "failed", "asks": "blocked", "has-a-bug": "blocked"}
    assert any("questions" in text for text in journals)
    assert any("tell" in text and "not today" in text for text in journals)
    assert sum("traceback" in data for data in inside) >= 3, "the journal has them"
    for text in [*answers, *journals]:
        assert "traceback" not in text.replace(Path(__file__).name, "")  # where a bug is, is told without its folder
        assert __file__ not in text
