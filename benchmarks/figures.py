"""What a benchmark hands back: figures, each with the bar that it must meet, if there is one."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Bar:
    """What a figure must be: `Bar("<=", 4)`, in the figure's unit."""

    sign: str
    limit: float

    def met(self, value: float) -> bool:
        """Whether the figure is good enough."""
        return value <= self.limit if self.sign == "<=" else value >= self.limit

    def __str__(self) -> str:
        return f"{self.sign} {number(self.limit)}"


def at_most(limit: float) -> Bar:
    """The smaller the better."""
    return Bar("<=", limit)


def at_least(limit: float) -> Bar:
    """The larger the better."""
    return Bar(">=", limit)


@dataclass(frozen=True)
class Figure:
    """One measured quantity: the median of its repetitions, all of which are in the JSON."""

    name: str
    value: float
    unit: str
    bar: Bar | None = None
    repetitions: list[float] = field(default_factory=list[float])
    note: str = ""

    @property
    def verdict(self) -> str:
        """`met`, `missed`, or nothing when there is no bar."""
        return "" if self.bar is None else "met" if self.bar.met(self.value) else "missed"

    def as_json(self) -> dict[str, Any]:
        """All of it, with the verdict."""
        return {**asdict(self), "verdict": self.verdict}


def median(name: str, repetitions: Sequence[float], unit: str, bar: Bar | None = None, note: str = "") -> Figure:
    """The figure of several repetitions."""
    return Figure(name, statistics.median(repetitions), unit, bar, list(repetitions), note)


def number(value: float) -> str:
    """A number with the digits that matter."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
