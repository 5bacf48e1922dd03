"""One call of an action or child service by a service, as its code and the engine know it."""

from typing import Any

from dotdo.action import Overrides
from dotdo.step import Step

# Steps that the engine adds by itself; the service never asks for them.
OWN_STEPS = ("undo:", "on_failure:")


class TakingBack:
    """Stands for a definition in the call of `step.undo()`: what to run, the step's action says."""


TAKING_BACK = TakingBack()


class Call:
    """One call of an action or child service by a service. step: what the code awaits; None once it has a result."""

    __slots__ = ("definition", "id", "input", "name", "overrides", "step", "typed")

    def __init__(
        self, step: Step[Any], name: str, definition: Any, input: bytes, overrides: Overrides, typed: bool
    ) -> None:
        self.step: Step[Any] | None = step
        self.id, self.name, self.definition, self.input = step.identity, name, definition, input
        self.overrides, self.typed = overrides, typed

    @property
    def begun(self) -> bool:
        """Whether somebody waits, or has waited, for the step."""
        return self.step is None or self.step.begun

    @property
    def done(self) -> bool:
        """Whether the code has an outcome of the step, be it that it has cancelled it."""
        return self.step is None or self.step.done()
