"""What type checkers make of typed calls: strict pyright finds every type as claimed, and every planted mistake."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "typing"
ROOT = FOLDER.parents[1]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run of pyright over both files and the README's program, as an installed `pyright` sees them."""
    readme = tmp_path_factory.mktemp("readme") / "readme.py"
    program = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    readme.write_text(f"# pyright: strict\n{program}")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pyright",
            "--outputjson",
            *(str(FOLDER / name) for name in ("calls.py", "mistakes.py")),
            str(readme),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def found_in(report: dict[str, Any], name: str) -> list[str]:
    return [
        f"{name}:{found['range']['start']['line'] + 1}: {found['message']}"
        for found in report["generalDiagnostics"]
        if Path(found["file"]).name == name
    ]


def test_both_files_are_read_strictly(report: dict[str, Any]):
    assert report["summary"]["filesAnalyzed"] == 3
    for name in ("calls.py", "mistakes.py"):
        assert "# pyright: strict" in (FOLDER / name).read_text()


def test_first_program_of_the_readme_has_nothing_to_complain_about(report: dict[str, Any]):
    assert found_in(report, "readme.py") == []


def test_typed_calls_have_the_types_that_are_claimed(report: dict[str, Any]):
    assert found_in(report, "calls.py") == []
    assert (FOLDER / "calls.py").read_text().count("assert_type(") >= 50


def test_every_planted_mistake_is_found(report: dict[str, Any]):
    """A marked line without an error is reported as an unnecessary marker, and an error without a marker as itself."""
    assert found_in(report, "mistakes.py") == []
    text = (FOLDER / "mistakes.py").read_text()
    assert "reportUnnecessaryTypeIgnoreComment=true" in text
    assert len(re.findall(r"# pyright: ignore\[\w", text)) >= 35
