"""Handlers with `pool="process"`: they compute beside everything else, are killed in time, and may crash (I13)."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from dotdo import (
    Action,
    ActionFailed,
    Catalogue,
    Context,
    DefinitionError,
    Do,
    EffectCall,
    Fail,
    Retry,
    RetryLater,
    RunCancelled,
    action,
    effect,
    service,
)

catalogue = Catalogue()
sent: list[tuple[str, str]] = []


@effect("announce", dedup="key", catalogue=catalogue)
def announce(call: EffectCall, text: str) -> None:
    sent.append((text, call.key))


class OwnError(Exception):
    """An application's own error, with a constructor of its own."""

    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(f"code {code}: {hint}")


@action("compute", pool="process", retry=Retry(attempts=2, delay=0), catalogue=catalogue)
def compute(ctx: Context, numbers: list[int], how: str = "well") -> dict[str, Any]:
    print("to stdout, where it disturbs nobody")
    match how:
        case "crash once" if ctx.attempt == 1:
            os._exit(7)
        case "segfault":
            ctypes.string_at(0)
        case "fail":
            ctx.stage(announce, "never")
            raise Fail("no such number")
        case "own error":
            raise OwnError(5, hint="look here")
        case "later" if ctx.attempt == 1:
            raise RetryLater("busy", after=0)
        case "exit":
            sys.exit("enough")
        case "sql":
            ctx.sql.execute(None)  # type: ignore[arg-type]
        case "request":
            ctx.request(announce, "now")
        case "resource":
            ctx.resource(Path)
        case "not json":
            return {"value": object()}
        case _:
            pass
    ctx.stage(announce, f"sum {sum(numbers)}")
    return {"sum": sum(numbers), "pid": os.getpid(), "attempt": ctx.attempt, "step": ctx.step}


@action("compute-long", pool="process", retry=1, catalogue=catalogue)
def compute_long(mark: str) -> None:
    Path(mark).write_text(str(os.getpid()))
    while True:
        pass


@action("beside", catalogue=catalogue)
async def beside(number: int) -> int:
    return number


@action("versioned", pool="process", catalogue=catalogue)
def versioned() -> int:  # pyright: ignore[reportRedeclaration]
    return 1


@action("versioned", version=2, pool="process", catalogue=catalogue)
def versioned() -> int:  # noqa: F811 - as one replaces the other in a file
    return 2


@service("computes", catalogue=catalogue)
async def computes() -> int:
    return (await compute([1, 2]))["sum"] + (await compute([3]))["sum"]


@pytest.fixture
def client(tmp_path: Path) -> Any:
    sent.clear()
    with Do(f"sqlite:///{tmp_path / 'dotdo.db'}", catalogue=catalogue) as client:
        yield client


def test_it_runs_in_another_process_that_is_used_again(client: Do):
    first = client.run(compute, [1, 2, 3])
    second = client.run(compute, [4])
    assert (first["sum"], second["sum"], first["attempt"], first["step"]) == (6, 4, 1, "compute")
    assert first["pid"] == second["pid"] != os.getpid()
    assert [text for text, _ in sent] == ["sum 6", "sum 4"]
    assert len({key for _, key in sent}) == 2
    assert client.run(computes) == 6
    assert [client.action("versioned", version=version).invoke() for version in (1, 2)] == [1, 2]


def test_crash_fails_the_attempt_and_the_retry_has_a_new_process(client: Do):
    before = client.run(compute, [1])
    after = client.run(compute, [1], how="crash once")
    assert after["attempt"] == 2
    assert after["pid"] != before["pid"]
    assert [text for text, _ in sent] == ["sum 1", "sum 1"]


@pytest.mark.parametrize(
    "how, kind, message, attempts",
    [
        ("segfault", "ProcessDied", "The process of the handler ended: signal SIGSEGV", 2),
        ("fail", "Fail", "no such number", 1),
        ("own error", "OwnError", "code 5: look here", 2),
        ("exit", "SystemExit", "enough", 1),
        ("sql", "DefinitionError", "cannot have ctx.sql", 1),
        ("request", "DefinitionError", r"cannot have ctx.request\(\)", 1),
        ("resource", "DefinitionError", r"cannot have ctx.resource\(\)", 1),
        ("not json", "InvalidValue", "builtins.object is not JSON", 1),
    ],
)
def test_failures_come_back_as_they_were_raised(client: Do, how: str, kind: str, message: str, attempts: int):
    with pytest.raises(ActionFailed, match=message) as failure:
        client.run(compute, [1], how=how)
    assert (failure.value.error_type, failure.value.attempts) == (kind, attempts)
    assert sent == []
    error = client.runs.get(failure.value.run_id or "").error
    assert error is not None
    assert kind == "ProcessDied" or kind == "InvalidValue" or "in compute" in error.traceback
    assert client.run(beside, 1) == 1


def test_retry_later_is_heard(client: Do):
    assert client.run(compute, [1], how="later")["attempt"] == 2


def pipe(folder: Path) -> Path:
    """A pipe to which a handler tells its process id; reading it waits for that."""
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_timeout_and_cancellation_kill_the_process(client: Do, tmp_path: Path):
    mark = tmp_path / "timed-out"
    client.run(compute, [1])  # there is a process now: starting one may take seconds
    with pytest.raises(ActionFailed, match="its process was killed"):
        client.run(compute_long.with_(timeout=3), str(mark))
    assert gone(int(mark.read_text()))

    handle = client.start(compute_long, str(pipe(tmp_path)))
    pid = int((tmp_path / "pipe").read_text())  # once it computes
    assert client.run(beside, 1) == 1, "others go on beside a busy process"
    handle.cancel()
    with pytest.raises(RunCancelled):
        handle.result(timeout=60)
    assert gone(pid)


def test_handlers_that_no_process_could_run_are_refused(tmp_path: Path):
    def local() -> None: ...

    async def asynchronous() -> None: ...

    for handler in (local, lambda: None, asynchronous):
        with pytest.raises(DefinitionError, match='pool="process": '):
            Action("refused", handler, pool="process", catalogue=Catalogue())
    with pytest.raises(DefinitionError, match="one of thread, process is needed"):
        Action("refused", gone, pool="other", catalogue=Catalogue())  # type: ignore[arg-type]


APP = """
import os
from dotdo import Do, action

@action("square", pool="process")
def square(n: int) -> list[int]:
    return [n * n, int(os.getpid() != int(os.environ["PARENT"]))]

if __name__ == "__main__":
    os.environ["PARENT"] = str(os.getpid())
    with Do() as client:
        print(client.run(square, 12))
"""


def test_it_works_in_a_script_and_from_the_command_line(tmp_path: Path):
    (tmp_path / "app.py").write_text(APP)
    environment = os.environ | {"PARENT": "0", "PYTHONPATH": str(Path("src").absolute())}
    for arguments in (["app.py"], ["-m", "dotdo", "run", "square", "n=12"]):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "".join(done.stdout.split()) == "[144,1]"


def test_process_ends_with_its_parent(tmp_path: Path):
    """Also in the middle of a handler, when the parent was killed."""
    program = (
        "import sys; from dotdo import Do; from tests.guarantees import test_process_pool as shop\n"
        f"with Do('sqlite:///{tmp_path / 'dotdo.db'}', catalogue=shop.catalogue) as client:\n"
        f"    client.run(shop.compute_long, {str(pipe(tmp_path))!r})\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": "src:."})
    worker = psutil.Process(int((tmp_path / "pipe").read_text()))
    parent.kill()
    parent.wait()
    worker.wait(timeout=60)
