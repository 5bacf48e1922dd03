"""What tests put in the place of an application's parts: `dotdo.testing` does. Every other engine has none."""

from collections.abc import Callable
from typing import Any, Protocol

from dotdo.action import Action
from dotdo.effect import Effect


class Doubles(Protocol):
    """Stands between an engine and the functions that it would call."""

    def action(self, definition: Action[..., Any]) -> Action[..., Any]:
        """What is run instead of an action."""
        ...

    def effect(self, effect: Effect[..., Any]) -> Effect[..., Any]:
        """What is called instead of an effect."""
        ...

    def companion(self, effect: Effect[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
        """What is called instead of an effect's lookup or undo."""
        ...

    def seed(self, run: str) -> str:
        """What a run's random numbers and ids are drawn from, in hexadecimal; the same in each repetition."""
        ...
