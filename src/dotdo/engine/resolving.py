"""What a person answers to the questions of a blocked run: checked here, applied by `messages` and `history`."""

from typing import TYPE_CHECKING, Self

import msgspec

from dotdo.errors import InvalidInput, InvalidOperation, Problem
from dotdo.questions import check_outcome
from dotdo.records import Outcome, Question, Run
from dotdo.store.protocol import Message, Store

if TYPE_CHECKING:
    from dotdo.engine.serving import Serving

# Messages by which a person lets a blocked run go on.
PERSONS = ("cancel", "retry", "resolve")


class Answer(msgspec.Struct, frozen=True):
    """An answer as a message carries it."""

    outcome: Outcome
    answer: msgspec.Raw = msgspec.Raw(b"null")

    @classmethod
    def read(cls, data: str) -> Self:
        """From a message's value."""
        return msgspec.json.decode(data, type=cls)


async def resolve(
    engine: "Serving", id: str, key: str, outcome: Outcome, answer: bytes | None, actor: str | None
) -> None:
    """Answers the question with that key; durable when this returns."""
    run = await engine.get(id)
    question = next((one for one in run.questions if one.key == key), None)
    if question is None:
        raise InvalidOperation(f"The run {id} ({run.status}) has no open question {key!r}.")
    value = Answer(outcome, msgspec.Raw(_checked(engine, question, outcome, answer)))
    encoded = msgspec.json.encode(value).decode()
    await engine.post(Message(id, "resolve", key, encoded, None, actor, engine.clock.now()))


def _checked(engine: "Serving", question: Question, outcome: Outcome, answer: bytes | None) -> bytes:
    """The answer as it would have come from the effect. Raises InvalidOperation, InvalidInput, InvalidValue."""
    check_outcome(question, outcome)
    is_call = question.about in ("request", "delivery")
    if outcome != "happened" or not is_call:
        if answer is not None:
            problem = "is given only with the outcome `happened` of a request or delivery"
            raise InvalidInput(f"the answer to {question.key}", [Problem("$.answer", problem)])
        return b"null"
    effect = engine.catalogue.find("effect", question.effect, question.version)
    if effect is None:
        raise InvalidOperation(
            f"The effect {question.effect}@{question.version} is not defined in this process, so its answer cannot be "
            "checked. Import the module that defines it."
        )
    if answer is None and question.about == "delivery":
        return b"null"  # nobody waits for it
    data, _ = effect.schema.dump(effect.schema.load(answer if answer is not None else b"null"))
    return data


def questions_of(store: Store, id: str) -> list[str]:
    """The keys of what the run asks, or the one that goes on for it."""
    run = store.get_run(store.newest_of_chain(id) or id)
    return [question.key for question in run.questions] if run is not None else []


def still_blocked(store: Store, id: str) -> Run | None:
    """The run, if it is blocked and no message waits by which a person lets it go on."""
    # The inbox first: who takes a message out of it writes the row in the same transaction.
    answered = any(message.kind in PERSONS for message in store.read_inbox([id])[id])
    run = store.get_run(id)
    return run if run is not None and run.status == "blocked" and not answered else None
