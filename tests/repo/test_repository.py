"""The repository works anywhere: nothing in it names the machine or the network that it was written on."""

import json
import re
from pathlib import Path

import pytest

from tests.conftest import LONGEST
from tests.repo.sources import ROOT, report, repository_files

LOCKS = sorted((ROOT / "requirements").rglob("*.txt"))
NPM_LOCKS = [ROOT / "sdks" / "typescript" / "package-lock.json", ROOT / "benchmarks/peers/npm/package-lock.json"]

# Put together from pieces, as this file is checked too.
MACHINE_FOLDERS = ["work", "root", "home/[a-z]", "opt/wheels", "Users/[a-z]"]
REGISTRY_HOSTS = [("py", "pi.org"), ("python", "hosted.org"), ("npm", "js.org"), ("npm", "js.com"), ("crates", ".io")]
REGISTRY_HOSTS += [("proxy.golang", ".org"), ("deb.debian", ".org"), ("maven", ".org")]


def test_lock_file_has_no_addresses():
    problems = [line for line in _lock_lines() if "://" in line or line.startswith(("--index", "--extra", "--find"))]
    assert not problems, report(problems)


def test_every_locked_requirement_is_pinned_and_has_hashes():
    requirements: dict[str, int] = {}
    current = ""
    for line in _lock_lines():
        if line[0].isalnum():
            current = line.rstrip("\\ ")
            requirements[current] = 0
        elif line.strip().startswith("--hash=sha256:"):
            requirements[current] += 1
    assert requirements, f"no requirements in {LOCKS}"
    problems = [f"{name}: {hashes} hashes" for name, hashes in requirements.items() if "==" not in name or not hashes]
    assert not problems, report(problems)


@pytest.mark.parametrize("lock", NPM_LOCKS, ids=lambda lock: lock.parent.name)
def test_npm_lock_file_has_hashes_and_no_addresses(lock: Path):
    text = lock.read_text(encoding="utf-8")
    assert "://" not in text
    packages = {name: entry for name, entry in json.loads(text)["packages"].items() if name.startswith("node_modules/")}
    fetched = [name for name, entry in packages.items() if not entry.get("link")]
    assert fetched
    problems = [name for name in fetched if not packages[name].get("integrity", "").startswith("sha512-")]
    assert not problems, report(problems)


def test_no_file_mentions_paths_of_a_machine():
    _refuse(re.compile(rf"(?<![\w.~}}*-])/(?:{'|'.join(MACHINE_FOLDERS)})(?:/|\b)".encode()))


def test_no_file_names_a_package_registry():
    hosts = "|".join(re.escape("".join(pieces)) for pieces in REGISTRY_HOSTS)
    _refuse(re.compile(hosts.encode()))


def test_make_targets_named_in_the_documentation_exist():
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    pages = [ROOT / "README.md", *ROOT.glob("CONTRIBUTING.md"), *sorted((ROOT / "docs").rglob("*.md"))]
    problems: list[str] = []
    for page in pages:
        named = re.findall(r"(?:`|\$ |^)make ([a-z][\w-]*)", page.read_text(encoding="utf-8"), re.MULTILINE)
        problems += [f"{page.relative_to(ROOT)}: make {name}" for name in named if name not in targets]
    assert not problems, report(problems)


def test_files_that_tests_begin_with_exist():
    assert [name for name in LONGEST if not (ROOT / name).is_file()] == []


def test_readme_shows_both_commands_of_a_newcomer():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [command for command in ("make demo", "make test") if command not in readme]
    assert not missing


def _lock_lines() -> list[str]:
    return [line for lock in LOCKS for line in lock.read_text(encoding="utf-8").splitlines() if line.strip()]


def _refuse(pattern: re.Pattern[bytes]) -> None:
    problems: list[str] = []
    for file in repository_files():
        for number, line in enumerate(file.read_bytes().splitlines(), 1):
            if found := pattern.search(line):
                problems.append(f"{file.relative_to(ROOT)}:{number}: {found[0].decode()}")
    assert not problems, report(problems)
