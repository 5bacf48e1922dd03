"""How a run's code came to its end, and what follows: complete, stop and undo, or block."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from dotdo.engine import undoing
from dotdo.engine.continuing import continuation, continue_run
from dotdo.engine.failing import Block, error_record, failure_record, is_failure, place_of, together
from dotdo.engine.history import MAX_CRASHES
from dotdo.engine.replaying import check_replay
from dotdo.engine.service_code import ServiceCode
from dotdo.engine.settling import leaves_unsettled
from dotdo.engine.step_record import COMPLETED, FAILED
from dotdo.errors import DotdoError, ReplayError, RetryLater
from dotdo.journal import Blocked, Ended, Stopping
from dotdo.records import WaitingFor

if TYPE_CHECKING:
    from dotdo.engine.running import LiveRun


def finish(run: "LiveRun", code: ServiceCode, *, fresh: bool) -> None:
    """A service has returned or raised. fresh: it was never replayed."""
    result, error = code.outcome()
    again = continuation(error)
    if again is not None:
        _finish_well(run, code, lambda: continue_run(run, again), fresh)
    elif error is not None and not is_failure(error) and run.definition.on_bug == "block":
        run.block_for(error)
    elif error is not None:
        record, causes = failure_record(error)
        status = "cancelled" if isinstance(error, asyncio.CancelledError) else "failed"
        run.stop(Stopping(status, record, causes))
    else:
        _finish_with(run, code, result, fresh)


def _finish_with(run: "LiveRun", code: ServiceCode, result: Any, fresh: bool) -> None:
    try:
        data, _ = run.definition.schema.dump(result)
        if run.secrets is not None:
            run.secrets.refuse(data, f"The result of {run.definition.subject}")
    except BaseException as error:  # a value of the user's may raise anything when it is looked at
        run.block_for(error)
        return

    def end() -> None:
        if any(not run.history.step(id).done for id in run.tasks):
            run.conduct(_finish_slowly(run, data))
        else:
            _complete(run, data)

    _finish_well(run, code, end, fresh)


def _finish_well(run: "LiveRun", code: ServiceCode, end: Callable[[], None], fresh: bool) -> None:
    """Ends the run, if its code has asked for all that its journal has."""
    never_awaited = code.never_awaited()
    if never_awaited:
        run.block_for(
            ReplayError(f"The step {never_awaited[0]} was called but never awaited, so it never ran. Await it.")
        )
        return
    mismatch = code.leftover(fresh=fresh)
    if mismatch is not None:
        run.block_for(mismatch)
    else:
        end()


async def _finish_slowly(run: "LiveRun", data: bytes) -> None:
    """The service has returned with steps in flight: they are cancelled, or delivered if committed, first."""
    await run.settle_in_flight()
    if run.asked:
        raise together(run.take_asked())
    if not run.is_stopping:  # else somebody cancelled it meanwhile: that was first
        _complete(run, data)


async def _complete_when_durable(run: "LiveRun", data: bytes) -> None:
    await run.journal.durable()
    _complete(run, data)


def _complete(run: "LiveRun", data: bytes) -> None:
    if run.journal.kept is not None and run.journal.is_late:
        run.conduct(_complete_when_durable(run, data))  # what the replay needs is not there yet
        return
    mismatch = check_replay(run)
    if mismatch is not None:
        run.block_for(mismatch)
    else:
        run.end(Ended("completed", msgspec.Raw(data)))


def finish_action(run: "LiveRun") -> None:
    """The one step of a run of an action may have come to its end."""
    if run.history.ended is not None:
        return  # it has, and is being undone
    record = run.history.step(run.accepted.name)
    if record.state == COMPLETED and record.completion is not None:
        run.end(Ended("completed", record.completion.result))
    elif record.state == FAILED and record.error is not None:
        run.stop(Stopping("failed", record.error, [record.id]))


def block_of(error: BaseException) -> Block:
    """Why an error of a service's code blocks its run."""
    record = error_record(error)
    if isinstance(error, RetryLater):
        text = (
            f"The service raised RetryLater ({record.message.removesuffix('.')}), which is for handlers. A service "
            "waits itself (await dotdo.sleep(...)) and calls its action again. Nothing was undone: mend it and retry "
            "the run."
        )
        return Block(error.code, text, error=record)
    if isinstance(error, DotdoError):
        return Block(error.code, record.message, error=record)
    what = f"{record.type}: {record.message}".removesuffix(": ").removesuffix(".") + place_of(record)
    return Block("bug", f"The service raised {what}. Nothing was undone: mend it and retry the run.", error=record)


async def settle_and_block(run: "LiveRun") -> None:
    """What is in flight ends, then the run waits for a person, out of memory."""
    await run.settle_in_flight()
    data = run.cleaned(together(run.take_asked()).data())
    if run.history.crashes <= MAX_CRASHES:  # else it crashed while it told of this
        await undoing.tell_of_failure(run, data.error)
    mark_blocked(run, data)


def stay_blocked(run: "LiveRun") -> None:
    """A blocked run was claimed, and nothing that a person said lets it go on: other questions are open."""
    blocked = run.history.blocked
    assert blocked is not None, "the caller looked"
    mark_blocked(run, blocked)


def mark_blocked(run: "LiveRun", data: Blocked) -> None:
    """Writes that the run waits for a person; it leaves memory."""
    data = run.cleaned(data)
    run.append("blocked", data)
    waiting_for = WaitingFor("person", f"{data.reason}: {data.error.message}", None, data.error.step)
    run.journal.update("blocked", waiting_for=waiting_for, unsettled=leaves_unsettled(run))
    run.engine.blocked(run, data)
