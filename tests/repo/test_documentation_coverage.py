"""Every word of the user has a page, under the same name."""

from tests.repo.sources import PACKAGE, ROOT, report

USER_MODULES = [
    "action",
    "catalogue",
    "client",
    "codec",
    "context",
    "effect",
    "errors",
    "policy",
    "preview",
    "records",
    "schema",
    "service",
    "testing",
]


def test_every_user_facing_module_has_a_page():
    present = [name for name in USER_MODULES if (PACKAGE / f"{name}.py").is_file() or (PACKAGE / name).is_dir()]
    assert present, f"none of {USER_MODULES} is in {PACKAGE}"
    problems = [f"docs/{name}.md is missing" for name in present if not (ROOT / "docs" / f"{name}.md").is_file()]
    assert not problems, report(problems)


def test_every_page_is_in_the_table_of_contents():
    folder = ROOT / "docs"
    contents = (folder / "README.md").read_text()
    named = [str(page.relative_to(folder)) for page in sorted(folder.rglob("*.md")) if page != folder / "README.md"]
    assert len(named) > 50
    problems = [f"docs/README.md does not name {name}" for name in named if f"]({name})" not in contents]
    assert not problems, report(problems)


def test_every_connector_has_a_page():
    connectors = [path.stem for path in sorted((PACKAGE / "connectors").glob("[!_]*.py"))]
    assert connectors, "no connectors"
    folder = ROOT / "docs" / "connectors"
    problems = [f"docs/connectors/{name}.md is missing" for name in connectors if not (folder / f"{name}.md").is_file()]
    assert not problems, report(problems)
