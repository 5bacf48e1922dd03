"""Import rules finer than the contracts in pyproject.toml can say."""

import ast
import subprocess
import sys

import pytest

from tests.repo.sources import PACKAGE, Module, modules, report


def test_connectors_import_the_public_api_only():
    problems: list[str] = []
    for module in modules():
        if module.name.split(".")[0] != "connectors":
            continue
        for line, imported in _imports(module.tree):
            inside = imported == "dotdo.connectors" or imported.startswith("dotdo.connectors.")
            if imported.startswith("dotdo.") and not inside:
                problems.append(f"{module.shown}:{line}: imports {imported}; use `from dotdo import ...`")
    assert not problems, report(problems)


@pytest.mark.parametrize(
    "name, package",
    [("context", "sqlalchemy"), ("engine/spans", "opentelemetry"), ("server/asked", "opentelemetry")],
)
def test_these_import_an_extra_for_type_checking_only(name: str, package: str):
    module = Module(PACKAGE / f"{name}.py")
    for_types = {
        line
        for block in ast.walk(module.tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
        for line, _ in _imports(block)
    }
    everywhere = {line for line, imported in _imports(module.tree) if imported.split(".")[0] == package}
    assert everywhere, f"{name} does not import {package} at all"
    assert everywhere <= for_types, f"lines {sorted(everywhere - for_types)} import {package} at run time"


def test_importing_dotdo_loads_no_extras():
    extras = {
        "sqlalchemy",
        "aiosqlite",
        "psycopg",
        "aiosmtplib",
        "jinja2",
        "aiohttp",
        "httpx2",
        "pydantic",
        "click",
        "rich",
    }
    extras |= {"opentelemetry", "starlette", "uvicorn", "cryptography"}
    program = f"import dotdo, sys; print(*sorted({extras!r} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert not loaded, f"`import dotdo` must stay light, but loads {loaded}"


def test_nothing_that_is_stored_can_become_code():
    """No module can unpickle or evaluate; and those that import by name are told it by a person or a definition."""
    runs_bytes = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle", "yaml", "code", "runpy"}
    runs_text = {"eval", "exec", "compile", "__import__"}
    imports_by_name = {"import_module", "spec_from_file_location"}
    # The command line imports the application that it is given; a process of the pool, the module of a definition.
    may_import = {"cli", "cli.loading", "engine.pool_worker"}
    problems: list[str] = []
    importing: set[str] = set()
    for module in modules():
        for line, imported in _imports(module.tree):
            if imported.split(".")[0] in runs_bytes:
                problems.append(f"{module.shown}:{line}: imports {imported}")
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Name) and node.id in runs_text:
                problems.append(f"{module.shown}:{node.lineno}: {node.id}")
            if not isinstance(node, ast.Name | ast.Attribute):
                continue
            if (named := node.id if isinstance(node, ast.Name) else node.attr) in imports_by_name:
                importing.add(module.name)
                if module.name not in may_import:
                    problems.append(f"{module.shown}:{node.lineno}: {named}")
    assert importing == may_import, f"only {sorted(may_import)} may import by name, and {sorted(importing)} do"
    assert not problems, report(problems)


def _imports(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and dotted name of every module that is imported from."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.lineno, node.module))
    return found
