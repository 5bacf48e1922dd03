"""What to do about a call whose answer was lost: one decision for requests and for staged deliveries.

Nothing here calls or journals anything. A lost answer is never guessed: inside the window in which the receiver
remembers our key the call is sent again under it, else it is looked up, else the effect says whether to send it again
or to ask a person.
"""

from typing import Any, Literal

from dotdo.effect import Effect
from dotdo.errors import DefinitionError, Fail, InvalidInput, RetryLater

Move = Literal["send", "look up", "ask"]


def next_move(effect: Effect[..., Any], first_at: int, now: int) -> Move:
    """What to do next about a call that may have happened. first_at: when its key was first used; both in ms."""
    if effect.dedup == "key" and (effect.key_window is None or now - first_at < effect.key_window * 1000):
        return "send"
    if effect.lookup is not None:
        return "look up"
    return "send" if effect.on_unknown == "resend" else "ask"


def leaves_unknown(effect: Effect[..., Any], error: BaseException, *, was_unknown: bool) -> bool:
    """Whether nobody knows what happened after a try that raised. was_unknown: so it was before that try."""
    if isinstance(error, Fail):
        # A receiver that honours our key would have answered a call that had happened as it did then.
        return was_unknown and effect.dedup != "key"
    if isinstance(error, RetryLater):
        return was_unknown or error.unknown
    if isinstance(error, DefinitionError | InvalidInput):
        return was_unknown  # nothing was sent: the call could not even be made
    return True
