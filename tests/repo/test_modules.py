"""Modules and functions stay small, carry telling names and open by saying what lives in them."""

import ast

from tests.repo.sources import PACKAGE, modules, report

MODULE_LINES = 500
FUNCTION_LINES = 60
EMPTY_NAMES = {"utils", "util", "common", "core", "helpers", "helper", "base", "misc"}


def test_modules_are_at_most_500_lines():
    lengths = {module.shown: len(module.text.splitlines()) for module in modules()}
    problems = [f"{name}: {lines} lines" for name, lines in lengths.items() if lines > MODULE_LINES]
    assert not problems, report(problems)


def test_functions_are_at_most_60_lines():
    problems: list[str] = []
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                lines = node.end_lineno - node.lineno + 1
                if lines > FUNCTION_LINES:
                    problems.append(f"{module.shown}:{node.lineno}: {node.name} has {lines} lines")
    assert not problems, report(problems)


def test_no_folder_or_module_has_an_empty_name():
    paths = [path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*"))]
    problems = [str(path) for path in paths if path.stem.strip("_") in EMPTY_NAMES]
    assert not problems, report(problems)


def test_every_module_opens_with_a_docstring():
    problems = [module.shown for module in modules() if not ast.get_docstring(module.tree)]
    assert not problems, report(problems)


def test_package_is_marked_as_typed():
    assert (PACKAGE / "py.typed").is_file(), "src/dotdo/py.typed tells type checkers to read our hints"
