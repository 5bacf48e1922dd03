"""What keeps one run's trouble from being everybody's: a callback that raises blocks its run, and nothing else.

The engine's callbacks run code that users have a part in: results that are loaded, exceptions that are told, values
that are compared. Whatever comes out of these, the run waits for a person and says so; it never hangs in silence.
"""

import traceback
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, TypeVarTuple

from dotdo.engine import reloading
from dotdo.engine.failing import MAX_FRAMES, Block, error_record, together
from dotdo.engine.finishing import block_of, mark_blocked
from dotdo.errors import InvalidInput, InvalidValue, ReplayError, RunEvicted, StoreError

if TYPE_CHECKING:
    from dotdo.engine.running import LiveRun

Ts = TypeVarTuple("Ts")


def guarded(
    callback: "Callable[[LiveRun, *Ts], None]",
) -> "Callable[[LiveRun, *Ts], None]":
    """For plain callbacks of a run: what they raise blocks the run instead of leaving it to hang."""

    @wraps(callback)
    def call(run: "LiveRun", /, *args: *Ts) -> None:
        try:
            callback(run, *args)
        except BaseException as error:
            broke(run, error)

    return call


def broke(run: "LiveRun", error: BaseException, where: str = "") -> None:
    """Something of a run raised what nobody expects. where: the step, if it was in one."""
    if run.over or isinstance(error, RunEvicted):
        return  # the run has left
    if isinstance(error, StoreError):
        _read_again(run, error)
        return
    if isinstance(error, Block):
        block = error
    elif isinstance(error, ReplayError | InvalidInput | InvalidValue):
        block = block_of(error)
    else:
        record = error_record(error)
        place = f" in the step {where}" if where else ""
        # Not as exc_info: the text of a user's exception may be as long as it likes.
        frames = "".join(traceback.format_tb(error.__traceback__, limit=-MAX_FRAMES))
        run.engine.log.error("internal error%s of %s: %s: %s\n%s", place, run.id, record.type, record.message, frames)
        text = f"The engine failed{place}: {record.type}: {record.message}"
        block = Block("internal error", text, error=record)
    try:
        if run.status == "blocked" and not isinstance(error, Block):  # even the way into that state broke
            mark_blocked(run, together([*run.take_asked(), block]).data())
        else:
            run.block(block)
    except BaseException as again:
        run.engine.log.critical("%s cannot even be blocked, and leaves this process: %s", run.id, error_record(again))
        run.release()


def _read_again(run: "LiveRun", error: StoreError) -> None:
    """The store failed at something that the run needs, be it a message to a child: nothing else would bring it on."""

    def written(lost: BaseException | None) -> None:
        if lost is None and not run.over:  # else a write of its own had failed, and it is being read again
            reloading.read_again(run.engine, run.journal, error)

    if run.journal.is_durable:
        written(None)
    else:
        run.enter()  # until it leaves memory: without a step under way it would be taken for one that waits for nothing
        run.journal.when_durable(written)
