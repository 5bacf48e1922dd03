"""What the repository's rules are checked against: its files, modules and pages."""

import ast
import subprocess
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "dotdo"


@dataclass(frozen=True)
class Module:
    """One Python file of the package."""

    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, filename=str(self.path))

    @property
    def name(self) -> str:
        """Its dotted name inside the package, for example `store.sqlite`; a package's is that of its folder."""
        parts = self.path.relative_to(PACKAGE).with_suffix("").parts
        return ".".join(part for part in parts if part != "__init__")

    @property
    def shown(self) -> str:
        return str(self.path.relative_to(ROOT))


@cache
def modules() -> list[Module]:
    """Every Python file of the package."""
    found = [Module(path) for path in sorted(PACKAGE.rglob("*.py"))]
    assert found, f"no modules in {PACKAGE}"
    return found


def pages() -> list[Path]:
    """README.md and every page in docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def repository_files() -> list[Path]:
    """Every file that is tracked or would be with `git add .`, and is there."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name]
    assert files, "git lists no files"
    return [file for file in files if file.is_file()]


def report(problems: list[str]) -> str:
    """The message of a failed rule: one problem a line."""
    return "\n" + "\n".join(problems)
