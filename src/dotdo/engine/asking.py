"""The questions of a blocked run, in words and in data. `client.runs.resolve` brings the answers back."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from dotdo import codec
from dotdo.effect import Effect
from dotdo.engine.doubts import first_used
from dotdo.engine.failing import Block, error_record, message_of
from dotdo.records import ErrorRecord, Outcome, Question
from dotdo.sealing import masked

if TYPE_CHECKING:
    from dotdo.engine.running import LiveRun
    from dotdo.engine.step_record import Delivery, Request, StepRecord
    from dotdo.journal import StagedEffect

UNKNOWN = "unknown outcome"
UNDO_FAILED = "undo failed"


def about_request(run: "LiveRun", record: "StepRecord", effect: Effect[..., Any], known: "Request") -> Block:
    """Has this request happened?"""
    intent = known.intent
    text = (
        f"Nobody knows whether {effect.name} happened, which the step {record.id} asked for at {_time(known.first_at)} "
        f"(key {intent.key}). {_why(effect, known.error)} Find out at the receiver, then resolve the run: it happened "
        "(with its answer), it did not happen, or try again, which sends it once more under the same key."
    )
    question = Question(
        key=intent.key,
        about="request",
        step=record.id,
        effect=effect.name,
        version=effect.version,
        text=text,
        at=known.first_at,
        input=masked(codec.decode(bytes(intent.input))),
        error=known.error,
        answers=["happened", "did_not_happen", "try_again"],
        shape=effect.schema.output_schema(),
    )
    return Block(UNKNOWN, text, step=record.id, questions=[question])


def about_delivery(
    run: "LiveRun", record: "StepRecord", effect: Effect[..., Any], staged: "StagedEffect", delivery: "Delivery"
) -> Block:
    """Was this staged effect delivered?"""
    first_at = first_used(record, delivery)
    then = "the step fails and is undone" if delivery.given_up else "it is sent"
    text = (
        f"Nobody knows whether {effect.name} was delivered, which the step {record.id} had staged "
        f"(key {staged.key}, first sent at {_time(first_at)}). {_why(effect, delivery.error)} Find out at the "
        f"receiver, then resolve the run: it happened, it did not happen ({then}), or try again, which sends it once "
        "more under the same key."
    )
    question = Question(
        key=staged.key,
        about="delivery",
        step=record.id,
        effect=effect.name,
        version=effect.version,
        text=text,
        at=first_at,
        input=masked(codec.decode(bytes(staged.input))),
        error=delivery.error,
        answers=["happened", "did_not_happen", "try_again"],
        shape=effect.schema.output_schema(),
    )
    return Block(UNKNOWN, text, step=record.id, questions=[question])


def about_request_undo(run: "LiveRun", record: "StepRecord", known: "Request", error: Exception) -> Block:
    """The undo of a request failed for good."""
    intent = known.intent
    text = (
        f"The request {intent.effect} of the step {record.id} (key {intent.key}) could not be undone: "
        f"{message_of(error)}. Undo it at the receiver, or mend what keeps it from being undone, then resolve the run: "
        "it happened (you undid it), it did not happen (it stays as it is), or try again."
    )
    question = Question(
        key=f"{intent.key}.undo",
        about="request_undo",
        step=record.id,
        effect=intent.effect,
        version=intent.version,
        text=text,
        at=run.engine.clock.now(),
        input=masked(codec.decode(bytes(intent.input))),
        error=error_record(error),
        answers=_UNDO,
    )
    return Block(UNDO_FAILED, text, step=record.id, questions=[question])


def about_undo(run: "LiveRun", record: "StepRecord", why: str, error: ErrorRecord | None = None) -> Block:
    """The undo of a step failed for good, or cannot be called here."""
    completion = record.completion
    assert completion is not None, "only what has committed is undone"
    text = (
        f"The step {record.id} could not be undone: {why}. Take it back by hand, or mend its undo, then resolve the "
        "run: it happened (you undid it), it did not happen (it stays as it is), or try again."
    )
    question = Question(
        key=f"undo:{record.id}",
        about="undo",
        step=record.id,
        effect=completion.action,
        version=completion.version,
        text=text,
        at=run.engine.clock.now(),
        input=codec.decode(bytes(completion.result)),
        error=error,
        answers=_UNDO,
    )
    return Block(UNDO_FAILED, text, step=record.id, error=error, questions=[question])


_UNDO: list[Outcome] = ["happened", "did_not_happen", "try_again"]


def _why(effect: Effect[..., Any], error: ErrorRecord | None) -> str:
    lost = (
        f"The last try ended with {error.type}: {error.message}." if error else "The process ended before its answer."
    )
    if effect.dedup == "key" and effect.key_window is not None and effect.lookup is None:
        return f"{lost} The receiver remembers our keys for {effect.key_window:g} s."
    return lost


def _time(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
