"""The public API is what `dotdo.__all__` lists: all of it, nothing else, in order."""

import ast

import dotdo
from tests.repo.sources import PACKAGE, Module


def test_all_is_sorted():
    assert list(dotdo.__all__) == sorted(dotdo.__all__, key=_constants_then_classes_then_functions)


def test_all_lists_no_name_twice():
    assert len(dotdo.__all__) == len(set(dotdo.__all__))


def test_every_public_name_can_be_imported():
    missing = [name for name in dotdo.__all__ if not hasattr(dotdo, name)]
    assert not missing


def test_every_reexport_is_listed_in_all():
    unlisted = sorted(_reexports() - set(dotdo.__all__))
    assert not unlisted


def test_init_defines_nothing_of_its_own():
    definitions = [
        node.name
        for node in Module(PACKAGE / "__init__.py").tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name != "__getattr__"
    ]
    assert not definitions


def _reexports() -> set[str]:
    """The names that `__init__` takes from the package's modules, also under TYPE_CHECKING."""
    names: set[str] = set()
    for node in ast.walk(Module(PACKAGE / "__init__.py").tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dotdo":
            names |= {alias.asname or alias.name for alias in node.names}
    return {name for name in names if not name.startswith("_")}


def _constants_then_classes_then_functions(name: str) -> tuple[int, str]:
    """The order that ruff (RUF022) keeps."""
    if len(name) > 1 and name.isupper():
        return 0, name
    return (1 if name[0].isupper() else 2), name
