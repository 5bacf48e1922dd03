"""Values beyond the limits are refused with the same words at every door, and hurt no other run (I13)."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dotdo import (
    ActionFailed,
    AsyncContext,
    AsyncDo,
    Catalogue,
    EffectCall,
    Retry,
    RunBlocked,
    action,
    call,
    codec,
    effect,
    service,
)
from dotdo.codec import MAX_DEPTH
from dotdo.errors import InvalidValue
from tests.guarantees.invariants import check_store
from tests.guarantees.lab import in_loop

catalogue = Catalogue()
sent: list[str] = []


def store_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'dotdo.db'}"


@action("small", catalogue=catalogue)
async def small(number: int) -> int:
    return number


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


@effect("take-any", dedup="key", retry=Retry(attempts=2, delay=0), catalogue=catalogue)
def take_any(call: EffectCall, value: Any) -> Any:
    sent.append("delivered")
    return hostile[value] if isinstance(value, str) and value in hostile else None


@action("echo", retry=Retry(attempts=3, delay=0), catalogue=catalogue)
async def echo(ctx: AsyncContext, value: Any) -> Any:
    sent.append("echo")
    return hostile.get(value, value) if isinstance(value, str) else value


@action("stages", retry=Retry(attempts=3, delay=0), catalogue=catalogue)
async def stages(ctx: AsyncContext, what: str) -> None:
    ctx.stage(take_any, hostile[what])


@action("requests", retry=Retry(attempts=3, delay=0), catalogue=catalogue)
async def requests(ctx: AsyncContext, what: str, *, answer: bool = False) -> None:
    await ctx.request(take_any, what if answer else hostile[what])


@service("echo-child", catalogue=catalogue)
async def echo_child(value: Any) -> Any:
    return hostile.get(value, value) if isinstance(value, str) else value


@service("calls", catalogue=catalogue)
async def calls(what: str, how: str) -> str:
    value = hostile[what]
    try:
        match how:
            case "action":
                await echo(value=value)
            case "by name":
                await call("echo", value=value)
            case _:
                await echo_child(value=value)
    except InvalidValue as error:
        return error.message
    return "went through"


def cyclic() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


class Trap(str):
    """Text that fails whoever compares or hashes it."""

    def __eq__(self, other: object) -> bool:
        raise OSError("compared")

    def __hash__(self) -> int:
        raise OSError("hashed")


hostile: dict[str, Any] = {
    "large": "x" * (1024 * 1024 + 1),
    "deep": nested(MAX_DEPTH + 1),
    "cyclic": cyclic(),
    "nan": {"a": [1.0, float("nan")]},
    "nul": "a\0b",
    "surrogate": "\ud800",
    "object": {"a": object()},
    "trap": {"a": Trap("b")},
}
REFUSALS = {
    "large": "1.0 MiB as JSON; at most 1 MiB are carried",
    "deep": "nested deeper than 64 levels",
    "cyclic": "cyclic or nested too deeply",
    "nan": "which is not a JSON number",
    "nul": "contains a NUL character",
    "surrogate": "surrogate",
    "object": "builtins.object is not JSON",
    "trap": "Trap is not JSON",
}


async def by_outcome(work: Any) -> str:
    """How a run ended that was to end badly: the text that its caller is told."""
    with pytest.raises((ActionFailed, RunBlocked)) as outcome:
        await work
    return outcome.value.message


async def by_refusal(work: Any) -> str:
    with pytest.raises(InvalidValue) as refusal:
        await work
    return refusal.value.message


DOORS: dict[str, Callable[[AsyncDo, str], Any]] = {
    "typed input": lambda client, what: by_refusal(client.run(echo, value=hostile[what])),
    "typed input of a service": lambda client, what: by_refusal(client.start(echo_child, value=hostile[what])),
    "input by name": lambda client, what: by_refusal(client.action("echo").invoke(value=hostile[what])),
    "keyed start": lambda client, what: by_refusal(client.start(echo.with_(key=what), value=hostile[what])),
    "event": lambda client, what: by_refusal(client.runs.send_event("run_nowhere", "event", hostile[what])),
    "result of an action": lambda client, what: by_outcome(client.run(echo, value=what)),
    "result of a service": lambda client, what: by_outcome(client.run(echo_child, value=what)),
    "staged effect": lambda client, what: by_outcome(client.run(stages, what)),
    "requested effect": lambda client, what: by_outcome(client.run(requests, what)),
    "answer of an effect": lambda client, what: by_outcome(client.run(requests, what, answer=True)),
    "call of an action": lambda client, what: client.run(calls, what, "action"),
    "call by name": lambda client, what: client.run(calls, what, "by name"),
    "call of a child": lambda client, what: client.run(calls, what, "child"),
}


@pytest.mark.parametrize("door", DOORS)
@in_loop
async def test_limits_are_alike_at_every_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, door: str):
    monkeypatch.setattr(codec, "MAX_BYTES", 1024 * 1024)  # instead of 64 times as much, for speed
    async with AsyncDo(store_of(tmp_path), catalogue=catalogue) as client:
        for what, text in REFUSALS.items():
            sent.clear()
            told = await DOORS[door](client, what)
            assert text in told, f"{what}: {told}"
            assert sent == (["echo"] if door == "result of an action" else ["delivered"] if "answer" in door else [])
            assert await client.run(small, 1) == 1
        before = len(await client.runs.list())
        if "input" in door or "start" in door or door == "event":
            assert before == len(REFUSALS), "only the small ones: what is refused leaves no run"
        # As deep and as large as may be is carried.
        assert await client.run(echo, value=nested(MAX_DEPTH - 2)) == nested(MAX_DEPTH - 2)
        assert len(await client.run(echo, value="x" * (1024 * 1024 - 100))) == 1024 * 1024 - 100
    check_store(tmp_path / "dotdo.db")


def test_limits_are_the_same_on_the_command_line(tmp_path: Path):
    lines = ["from typing import Any", "from dotdo import action", "@action('echo')", "def echo(v: Any): return v"]
    (tmp_path / "app.py").write_text("\n".join(lines))
    (tmp_path / "deep.json").write_text(json.dumps({"v": nested(MAX_DEPTH + 1)}))
    (tmp_path / "large.json").write_text(json.dumps({"v": "x" * (64 * 1024 * 1024 + 1)}))
    environment = os.environ | {"PYTHONPATH": str(Path("src").absolute())}
    for file, text in (("deep.json", REFUSALS["deep"]), ("large.json", "64.0 MiB as JSON; at most 64 MiB are carried")):
        arguments = [sys.executable, "-m", "dotdo", "run", "echo", f"@{file}"]
        done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert text in " ".join(done.stderr.split())
