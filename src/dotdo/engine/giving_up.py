"""Steps under way that nobody waits for any more: they only come to their end."""

from typing import TYPE_CHECKING

from dotdo.engine import undoing
from dotdo.engine.children import cancel_child
from dotdo.engine.settling import open_calls
from dotdo.engine.step_call import TAKING_BACK
from dotdo.engine.step_record import COMMITTED, OPEN
from dotdo.engine.stepping import StepRun
from dotdo.service import Service

if TYPE_CHECKING:
    from dotdo.engine.running import LiveRun
    from dotdo.engine.service_code import ServiceCode
    from dotdo.engine.step_call import Call


def take_up_left(run: "LiveRun", code: "ServiceCode") -> None:
    """After a replay: steps under way whose owner stopped, also those that the service has cancelled or left."""
    code.cancelled = []  # nothing of them runs here
    if run.unsettled is not None:
        run.unsettled.replayed(open_calls(run, code))
    for call in code.calls.values():
        record = run.history.steps.get(call.id)
        begun = run.crashed > 0 if record is None else record.state in (OPEN, COMMITTED)
        if not (call.begun and begun):
            continue
        if code.main.done() or call.done:
            run.busy += 1
            run.only_end(call.id)
            run.launch_task(call.id, give_up(run, call))


async def give_up(run: "LiveRun", call: "Call") -> None:
    """Brings a step, or a child run, to its end."""
    if call.definition is TAKING_BACK:
        await undoing.take_back(run, call)
    elif run.history.step(call.id).child is not None:
        await cancel_child(run, run.history.step(call.id))
    elif not isinstance(call.definition, Service):
        await StepRun(run, call.id, call.definition, call.input, call.overrides).give_up()
