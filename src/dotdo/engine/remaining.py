"""What remains of what a run has done outside: effects that have left, and that nothing has taken back."""

from dotdo.engine.history import History
from dotdo.engine.step_call import OWN_STEPS

PERHAPS = " (perhaps)"  # nobody knows whether it happened


def effects_left(history: History) -> list[str]:
    """Effects that have left and stay: what was sent is not taken back by a step's undo; a request is, by its own or by
    that of its step."""
    found: list[str] = []
    for id, record in history.steps.items():
        if id.startswith(OWN_STEPS):
            continue
        completion = record.completion
        if record.child is not None:
            left = completion.left if completion is not None and not record.undone else record.not_undone
            found += [f"{id}: {effect}" for effect in left]
            continue
        if completion is not None:
            for effect, delivery in zip(completion.effects, record.deliveries, strict=False):
                if delivery.delivered or delivery.unknown:
                    found.append(f"{id}: {effect.effect}{'' if delivery.delivered else PERHAPS}")
        if not record.undone:
            requests = [known for known in record.requests.values() if not known.refused]
            found += [f"{id}: {known.intent.effect}{PERHAPS if known.in_doubt else ''}" for known in requests]
    return found
