"""When all of a run waits: for what, in words and data, and how it leaves memory until then."""

from typing import TYPE_CHECKING

from dotdo.clock import duration
from dotdo.engine.children import holds_messages
from dotdo.engine.service_code import ServiceCode
from dotdo.engine.settling import SETTLEMENT, leaves_unsettled
from dotdo.errors import ReplayError
from dotdo.records import WaitingFor

if TYPE_CHECKING:
    from dotdo.engine.running import LiveRun

# How long an idle run stays in memory before it is parked, in seconds. A parent stays longer, or each child that ends
# would have it replayed.
LINGER = 0.25
WANTING = ("worker", "action")  # waits for somebody who can do something
LINGER_FOR_CHILD = 5.0


def linger(run: "LiveRun") -> float:
    """Seconds for which an idle run stays in memory."""
    if run.history.crashes:
        return 0.0  # the next suspect has its turn, which may be the child that this one waits for
    return LINGER_FOR_CHILD if run.waiting.children else LINGER


def may_move(run: "LiveRun", code: ServiceCode) -> bool:
    """Whether anything that an idle service waits for can still come."""
    return bool(run.tasks or run.conductor or code.loop.next_timer() or code.awaited_events())


def deadlock() -> ReplayError:
    """What is wrong with a service that waits for nothing that could come."""
    return ReplayError(
        "The service waits for something that nothing can bring about: no step, timer or event is under way. Look for "
        "a Future, Event or Queue that nobody fills."
    )


def waits_of(run: "LiveRun") -> list[WaitingFor]:
    """Everything that the run waits for, the earliest first."""
    waits = list(run.waiting.now.values())
    code = run.code
    if code is not None and not run.is_stopping:
        timer = code.loop.next_timer()
        due = None if timer is None else timer.due
        # An event is what somebody can send, so it stands before the timer, which most often is its limit.
        waits += [WaitingFor("event", f"the event {name!r}", due) for name in code.awaited_events()]
        if timer is not None:
            waits.append(WaitingFor("timer", _timer_text(timer.key), due))
    # A worker or node that comes is looked for by this, so it stands first.
    return sorted(waits, key=lambda wait: (wait.kind not in WANTING, wait.until is None, wait.until or 0))


def _timer_text(key: str) -> str:
    delay = key.removeprefix("timer:").partition("#")[0]
    return f"a timer of {duration(int(delay))}" if delay.isdecimal() else "a timer"


def waiting_for(run: "LiveRun") -> WaitingFor:
    """What a run in memory waits for, be it the end of an attempt."""
    attempts = [
        WaitingFor("attempt", f"attempt {step.attempt.number} of {id}", None, id)
        for id, step in run.steps.items()
        if step.attempt is not None and id not in run.waiting.now  # else it has ended, but how?
    ]
    waits = attempts + waits_of(run)
    draining = run.engine.outliving.waiting_for
    if draining is not None:
        return draining
    return together(waits) if waits else WaitingFor("turn", "the commit of what it did last")


def park(run: "LiveRun") -> None:
    """Leaves memory; the row says for what it waits, and when to come back."""
    waits = waits_of(run)
    if not waits or any(wait.kind == SETTLEMENT for wait in waits) or holds_messages(run):
        return
    due = min((wait.until for wait in waits if wait.until is not None), default=None)
    seconds = None if due is None else run.engine.clock.until(due)
    if seconds is not None and seconds < LINGER:
        return  # it comes so soon that leaving is not worth it
    # One that will be blocked tells of it first. It takes no cancellation, event or deadline before, and these would
    # bring it back into memory over and over.
    is_blocking = run.status == "blocked"
    limit = None if is_blocking else run.history.deadline_at
    if limit is not None:
        due = limit if due is None else min(due, limit)
    unsettled = leaves_unsettled(run)
    run.journal.update("waiting", waiting_for=together(waits), due_at=due, unsettled=unsettled, keeps_inbox=is_blocking)
    run.engine.parked(run)


def together(waits: list[WaitingFor]) -> WaitingFor:
    """Several waits as one: the first, with the others in words."""
    first = waits[0]
    if len(waits) == 1:
        return first
    more = f" (and {len(waits) - 1} more: {'; '.join(wait.text for wait in waits[1:4])})"
    return WaitingFor(first.kind, first.text + more, first.until, first.step)
