"""The services of README.md and docs, taken out of their samples, to be killed everywhere like those of the tests.

Of a sample counts what it defines: imports, functions, classes and values. What it then does with a client does not.
"""

import ast
import functools
import sys
from types import ModuleType

from dotdo import Catalogue
from dotdo.service import Service
from tests.repo.documentation import Sample, samples
from tests.repo.sources import ROOT, pages

DEFINES = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
DECORATORS = ("action", "effect", "service")
CATALOGUE = "catalogue_of_the_sample"


class Shown:
    """A service as a page shows it. page: as `docs/service.md`; source: the sample's text."""

    def __init__(self, page: str, definition: Service[..., object], catalogue: Catalogue, source: str) -> None:
        self.page, self.service, self.catalogue, self.source = page, definition, catalogue, source


@functools.cache
def shown_services() -> list[Shown]:
    """Those of all pages, in their order."""
    found: list[Shown] = []
    for path in pages():
        for sample in samples(path):
            if sample.is_python and "@service(" in sample.program:
                page, module, catalogue = str(path.relative_to(ROOT)), *_definitions(sample)
                services = [one for one in vars(module).values() if isinstance(one, Service)]
                found += [Shown(page, one, catalogue, sample.program) for one in services]
    return found


@functools.cache
def source_of(page: str) -> str:
    """The samples of a page that define services."""
    return "\n".join(one.source for one in shown_services() if one.page == page)


def _definitions(sample: Sample) -> tuple[ModuleType, Catalogue]:
    """A sample's definitions as a module, in a catalogue of their own."""
    tree = ast.parse(sample.program, filename=sample.shown)
    tree.body = [node for node in tree.body if isinstance(node, DEFINES)]
    tree = ast.fix_missing_locations(_InOneCatalogue().visit(tree))
    module, catalogue = ModuleType(f"documented {sample.shown}"), Catalogue()
    vars(module)[CATALOGUE] = catalogue
    sys.modules[module.__name__] = module  # where dataclasses and type hints look for their names
    exec(compile(tree, sample.shown, "exec"), vars(module))  # noqa: S102  # what readers would run
    return module, catalogue


class _InOneCatalogue(ast.NodeTransformer):
    """Has decorators define things in the sample's catalogue, where they name no other."""

    def visit_Call(self, node: ast.Call) -> ast.Call:
        is_ours = isinstance(node.func, ast.Name) and node.func.id in DECORATORS
        if is_ours and not any(keyword.arg == "catalogue" for keyword in node.keywords):
            node.keywords.append(ast.keyword("catalogue", ast.Name(CATALOGUE, ast.Load())))
        return node
