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
def report() -> dict[str, Any]:
    """One run of pyright over both files, as an installed `pyright` sees them."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pyright",
            "--outputjson",
            *(str(FOLDER / name) for name in ("calls.py", "mistakes.py")),
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
    assert report["summary"]["filesAnalyzed"] == 2
    for name in ("calls.py", "mistakes.py"):
        assert "# pyright: strict" in (FOLDER / name).read_text()


def test_typed_calls_have_the_types_that_are_claimed(report: dict[str, Any]):
    assert found_in(report, "calls.py") == []
    assert (FOLDER / "calls.py").read_text().count("assert_type(") >= 50


def test_every_planted_mistake_is_found(report: dict[str, Any]):
    """A marked line without an error is reported as an unnecessary marker, and an error without a marker as itself."""
    assert found_in(report, "mistakes.py") == []
    text = (FOLDER / "mistakes.py").read_text()
    assert "reportUnnecessaryTypeIgnoreComment=true" in text
    assert len(re.findall(r"# pyright: ignore\[\w", text)) >= 35
