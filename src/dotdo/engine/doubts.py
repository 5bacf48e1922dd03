"""Deliveries of which nobody knows whether they happened, when their step is done again: they keep their keys.

All else that is done again is done under new keys. A delivery that perhaps happened is not: under its old key the
receiver can tell it from a second one, it can be looked up, or a person is asked, just as if the step had gone on.
"""

from types import MappingProxyType
from typing import TYPE_CHECKING, cast

import msgspec

from dotdo.journal import Completion

if TYPE_CHECKING:
    from dotdo.engine.step_record import Delivery, StepRecord
    from dotdo.records import ErrorRecord


class Doubt(msgspec.Struct, frozen=True, gc=False):
    """A delivery that may have happened: under which key, since when (ms), and how the last try failed."""

    key: str
    used_at: int
    error: "ErrorRecord | None"


# Most steps have none, so this is shared.
NO_DOUBTS = cast("dict[str, Doubt]", MappingProxyType({}))


def doubts_of(record: "StepRecord") -> dict[str, Doubt]:
    """What is in doubt of a step that is to be done again, by the keys without their epochs.

    What was in doubt before, and the step did not stage this time, is still so.
    """
    if record.completion is None:
        return record.doubts
    found = dict(record.doubts)
    for effect, delivery in zip(record.completion.effects, record.deliveries, strict=True):
        found.pop(_stem(effect.key), None)
        if delivery.in_doubt:
            found[_stem(effect.key)] = Doubt(effect.key, first_used(record, delivery), delivery.error)
    return found or NO_DOUBTS


def keep_keys(record: "StepRecord", completion: Completion) -> Completion:
    """The completion of a step that was done again, with the keys of what is in doubt."""
    doubts = [record.doubts.get(_stem(effect.key)) for effect in completion.effects]
    effects = [
        msgspec.structs.replace(effect, key=doubt.key) if doubt is not None else effect
        for effect, doubt in zip(completion.effects, doubts, strict=True)
    ]
    return msgspec.structs.replace(completion, effects=effects)


def carry_over(record: "StepRecord", completion: Completion) -> None:
    """The step has committed again: its deliveries with the keys of what was in doubt are so, too."""
    for effect, delivery in zip(completion.effects, record.deliveries, strict=True):
        doubt = record.doubts.get(_stem(effect.key))
        if doubt is not None and doubt.key == effect.key:
            delivery.unknown, delivery.used_at, delivery.error = True, doubt.used_at, doubt.error


def first_used(record: "StepRecord", delivery: "Delivery") -> int:
    """When its key was first used, at the earliest (ms)."""
    return delivery.used_at or delivery.first_at or record.at


def _stem(key: str) -> str:
    return key.rpartition(".")[0]
