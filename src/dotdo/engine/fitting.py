"""Whether a service's code fits its journal, and if not, in which words that is told.

Code that asks for something new where its journal has something else, or that ends before it has asked for all of it,
has changed since. It is never run on: it could do a second time what was done.
"""

from collections.abc import Iterable
from typing import Any

from dotdo.engine.step_record import StepRecord
from dotdo.errors import ReplayMismatch
from dotdo.service import Service


def asked_for_another(
    service: Service[..., Any], unmatched: Iterable[StepRecord], name: str, id: str, input: bytes
) -> ReplayMismatch | None:
    """The code has asked for a new step; an error if one of its name is recorded and was never asked for."""
    for record in unmatched:
        if record.id.partition(":")[0] == name:
            return ReplayMismatch(
                f"The service {service.name}@{service.version} asked for the step {told_step(id, input)}, "
                f"but its journal has {_told(record)} instead. The code or something that it depends "
                "on has changed since: bring back what it did, then retry the run."
            )
    return None


def leftover_step(service: Service[..., Any], record: StepRecord) -> ReplayMismatch:
    """The code has ended, and never asked for a recorded step."""
    return ReplayMismatch(
        f"The service {service.name}@{service.version} ended without asking for the recorded step "
        f"{_told(record)}. Its code has changed since: bring that call back, then retry the run."
    )


def leftover_undo(service: Service[..., Any], step: str) -> ReplayMismatch:
    """The code has ended, and did not take back a step that was taken back."""
    return ReplayMismatch(
        f"The service {service.name}@{service.version} ended without undoing the step {step}, as its journal has it. "
        "Its code has changed since: bring that back, then retry the run."
    )


def leftover_wait(service: Service[..., Any], timer: str) -> ReplayMismatch:
    """The code has ended without a wait that is over in its journal."""
    return ReplayMismatch(
        f"The service {service.name}@{service.version} ended without the wait {timer} that its journal has. Bring that "
        "wait back, then retry the run."
    )


def told_step(id: str, input: bytes | None) -> str:
    """A step and what it was given, if that is known: ids tell nobody in what two calls of one name differ."""
    return id if not input else f"{id} with input {_shorten(input)}"


def _shorten(data: bytes) -> str:
    text = data.decode()
    return text if len(text) <= 200 else text[:200] + "..."


def _told(record: StepRecord) -> str:
    return told_step(record.id, bytes(record.completion.input) if record.completion else None)
