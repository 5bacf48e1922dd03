"""Every sample in README.md and docs runs as a reader would run it, and the rules that make sure of it hold."""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.repo.documentation import Outcome, Sample, SampleError, run, samples
from tests.repo.sources import ROOT, pages, report

PAGES = [str(page.relative_to(ROOT)) for page in pages()]
Running = list[tuple[Sample, Future[Outcome]]]


@pytest.fixture(scope="module")
def started() -> Iterator[dict[str, Running | SampleError]]:
    """The samples of every page, all started at once, or what is wrong with the page."""
    found: dict[str, Running | SampleError] = {}
    with ThreadPoolExecutor(max_workers=2 * (os.cpu_count() or 1)) as pool:
        for name in PAGES:
            try:
                found[name] = [(sample, pool.submit(run, sample)) for sample in samples(ROOT / name)]
            except SampleError as problem:
                found[name] = problem
        yield found


@pytest.mark.parametrize("name", PAGES)
def test_samples_of_page_run(name: str, started: dict[str, Running | SampleError]):
    running = started[name]
    if isinstance(running, SampleError):
        raise running
    outcomes = [(sample, future.result()) for sample, future in running]
    problems = [f"{sample.shown}: {outcome}" for sample, outcome in outcomes if outcome.returncode != 0]
    assert not problems, report(problems)


def page(folder: Path, *lines: str) -> Path:
    path = folder / "page.md"
    path.write_text("\n".join(lines) + "\n")
    return path


def only_sample(folder: Path, *lines: str) -> Sample:
    [sample] = samples(page(folder, *lines))
    return sample


def test_failing_program_is_reported_with_its_line_in_the_page(tmp_path: Path):
    outcome = run(only_sample(tmp_path, "# Title", "", "```python", "a = 1", "a / 0", "```"))
    assert outcome.returncode == 1
    assert 'page.py", line 5' in outcome.output
    assert "ZeroDivisionError" in outcome.output


def test_warning_fails_a_program(tmp_path: Path):
    outcome = run(only_sample(tmp_path, "```python", "import warnings", "warnings.warn('old')", "```"))
    assert outcome.returncode == 1


def test_blocks_are_programs_of_their_own(tmp_path: Path):
    first, second = samples(page(tmp_path, "```python", "a = 1", "```", "```python", "print(a)", "```"))
    assert run(first).returncode == 0
    assert "NameError" in run(second).output


def test_continued_block_sees_the_program_before_it(tmp_path: Path):
    lines = ["```python", "a = 1", "```", "```console", "$ false", "```", "```python continue", "print(a + 1)", "```"]
    outcome = run(only_sample(tmp_path, *lines))
    assert (outcome.returncode, outcome.output) == (0, "2\n")


def test_indented_block_is_run_without_its_indentation(tmp_path: Path):
    assert run(only_sample(tmp_path, "1. Do:", "   ```python", "   print(1)", "   ```")).output == "1\n"


def test_program_starts_in_an_empty_folder(tmp_path: Path):
    sample = only_sample(tmp_path, "```python", "import os", "print(os.listdir())", "```")
    assert run(sample).output == "[]\n"


def test_program_knows_nothing_of_the_tests(tmp_path: Path):
    """Whose environment changes while programs are begun on other threads."""
    assert "PYTEST_CURRENT_TEST" in os.environ
    sample = only_sample(tmp_path, "```python", "import os", "print('PYTEST_CURRENT_TEST' in os.environ)", "```")
    assert run(sample).output == "False\n"


def test_console_run_runs_its_commands_and_stops_at_the_first_failure(tmp_path: Path):
    lines = ["```console run", "$ cat > a <<END", "> 1", "> END", "1", "$ cat a", "$ false", "$ echo never", "```"]
    outcome = run(only_sample(tmp_path, *lines))
    assert (outcome.returncode, outcome.output) == (1, "1\n")


@pytest.mark.parametrize(
    "info",
    [
        "python no-run",
        "python norun",
        "py",
        "pycon",
        "Python",
        "python,ignore",
        "python {no}",
        "console skip",
        "sh",
        "bash",
    ],
)
def test_block_that_would_not_be_run_is_refused(info: str, tmp_path: Path):
    with pytest.raises(SampleError, match="is not allowed"):
        samples(page(tmp_path, f"```{info}", "1", "```"))


def test_continue_without_a_program_is_refused(tmp_path: Path):
    with pytest.raises(SampleError, match="no earlier program"):
        samples(page(tmp_path, "```python continue", "1", "```"))


def test_block_that_is_never_closed_is_refused(tmp_path: Path):
    with pytest.raises(SampleError, match="never closed"):
        samples(page(tmp_path, "```python", "1"))
