"""The two times that a run in memory waits for by itself: the next timer of its service, and its deadline."""

from typing import TYPE_CHECKING

from dotdo.engine.guarding import guarded
from dotdo.engine.service_code import ServiceCode
from dotdo.engine.waking import Wake
from dotdo.journal import Fired, Stopping
from dotdo.records import ErrorRecord

if TYPE_CHECKING:
    from dotdo.engine.running import LiveRun


class Times:
    """Wakes a run."""

    __slots__ = ("_deadline", "_timer")

    def __init__(self) -> None:
        self._timer: tuple[str, Wake] | None = None
        self._deadline: Wake | None = None

    def arm_timer(self, run: "LiveRun", code: ServiceCode) -> None:
        """Wakes the run when the next timer of its service is due."""
        timer = code.loop.next_timer()
        if self._timer is not None:
            if timer is not None and self._timer[0] == timer.key:
                return
            self._timer[1].cancel()
            self._timer = None
        if timer is not None:
            wake = run.engine.alarm.at(timer.due, lambda: _fire(run, self, timer.key, timer.due))
            self._timer = (timer.key, wake)

    def fired(self) -> None:
        """The timer that was armed has become due."""
        self._timer = None

    def arm_deadline(self, run: "LiveRun") -> None:
        """Stops the run when its deadline has passed, if it has one."""
        due = run.history.deadline_at
        if due is not None:
            self._deadline = run.engine.alarm.at(due, lambda: _pass_deadline(run))

    def cancel(self) -> None:
        """The run is not woken any more."""
        for wake in (self._deadline, self._timer[1] if self._timer else None):
            if wake is not None:
                wake.cancel()


@guarded
def _fire(run: "LiveRun", times: Times, key: str, due: int) -> None:
    times.fired()
    if not run.over and not run.is_stopping:
        run.append("fired", Fired(due), key)
        run.pump()


@guarded
def _pass_deadline(run: "LiveRun") -> None:
    seconds = run.accepted.options.deadline
    run.stop(
        Stopping("failed", ErrorRecord("DeadlineExceeded", f"The run did not end within its deadline of {seconds} s."))
    )
