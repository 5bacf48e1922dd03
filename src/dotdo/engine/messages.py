"""Messages from outside, taken into the journal by the run's owner: events, cancel, retry, undo, ended children.

The entry that is made of a message, and the message's deletion, are one transaction: nothing is taken twice or lost.
"""

from typing import TYPE_CHECKING

import msgspec

from dotdo.engine.children import take_child_message
from dotdo.engine.history import History
from dotdo.engine.resolving import Answer
from dotdo.engine.settling import leaves_unsettled
from dotdo.engine.step_call import OWN_STEPS
from dotdo.engine.step_record import CANCELLED, COMPLETED, FAILED, OPEN
from dotdo.journal import CancelRequested, EventReceived, Reopened, Resolved, Stopping
from dotdo.records import ErrorRecord
from dotdo.store.protocol import Message

if TYPE_CHECKING:
    from dotdo.engine.running import LiveRun


def apply_message(run: "LiveRun", message: Message) -> None:
    """Journals a message and does what it says."""
    if run.continuing and message.kind != "child":
        return  # it is for the run that goes on for this one, and moves there
    run.taken = max(run.taken, message.id)
    if message.kind == "child":
        take_child_message(run, message)
        return
    if message.kind == "cancel" and run.status == "blocked":
        return  # it stays in the inbox, and makes the run due as soon as its row says that it is blocked
    run.journal.take(message.id)
    if message.kind == "event":
        if message.sender is not None and message.sender in run.history.senders:
            return  # sent again after the first one was taken
        data = EventReceived(message.name, msgspec.Raw(message.value.encode()), message.sender, message.actor)
        run.append("event", data)
    elif message.kind == "cancel":
        _cancel(run, message)
    elif message.kind in ("retry", "undo"):
        _reopen(run, message)
    elif message.kind == "resolve":
        _resolve(run, message)
    elif message.kind == "slot" and message.value == f"{run.journal.claim}":
        # What an earlier claim was granted may have been given to others since; this one asks where it stands.
        run.waiting.grant(int(message.name))


def _cancel(run: "LiveRun", message: Message) -> None:
    if run.is_stopping or run.history.stopping is not None or run.history.ended is not None:
        return  # it is on its way out already, the first commit won; or it had ended, and an operator undoes it
    run.append("cancel_requested", CancelRequested(message.actor))
    by = f" by {message.actor}" if message.actor else ""
    run.stop(Stopping("cancelled", ErrorRecord("Cancelled", f"The run was cancelled{by}.")))


def _reopen(run: "LiveRun", message: Message) -> None:
    history = run.history
    if history.ended is None and history.blocked is None:
        return  # reopened twice; once is enough
    run.journal.generation += 1
    operation = _operation(history, message.kind)
    run.append("reopened", Reopened(operation, message.actor, _dropped(history, operation)))
    run.journal.update("running", owner=run.engine.node, unsettled=leaves_unsettled(run))


def _resolve(run: "LiveRun", message: Message) -> None:
    """A person has answered a question; with the last answer the run goes on, in a new generation."""
    history = run.history
    open_questions = history.blocked.questions if history.blocked is not None else []
    question = next((one for one in open_questions if one.key == message.name), None)
    if question is None:
        return  # another answer, a retry or a cancellation came first
    answer = Answer.read(message.value)
    data = Resolved(question.key, question.about, answer.outcome, answer.answer, message.actor)
    run.append("resolved", data, question.step)
    if len(open_questions) > 1:
        return
    run.journal.generation += 1
    run.append("reopened", Reopened("resolve", message.actor, _dropped(history, "resolve")))
    run.journal.update("running", owner=run.engine.node, unsettled=leaves_unsettled(run))


def _operation(history: History, asked: str) -> str:
    """What an operator's word means here: a run that was blocked while it undid goes on undoing, never forward."""
    if asked == "retry" and history.blocked is not None and (history.stopping is not None or history.ended is not None):
        return "undo on"
    return asked


def _dropped(history: History, operation: str) -> list[str]:
    """The steps that a new generation does again: what failed the run, what came after, and what was undone."""
    told = [id for id in history.steps if id.startswith("on_failure:")]  # a new generation tells again
    if operation == "resolve":
        return told
    if operation != "retry":
        return told + [id for id, record in history.steps.items() if id.startswith("undo:") and record.state == FAILED]
    if history.stopping is None:  # it was blocked while it ran: it goes on where it was
        return told + [id for id, record in history.steps.items() if id.startswith("undo:") and record.state == FAILED]
    causes = set(history.stopping.causes)
    return [
        id
        for id, record in history.steps.items()
        if id in causes
        or (record.undone and record.undone_at > history.stopping_seq)  # else the service itself has undone it
        or record.state in (CANCELLED, OPEN)
        or (record.state == FAILED and record.seq > history.stopping_seq)
        or id.startswith(OWN_STEPS)
        or (record.state != COMPLETED and record.state != FAILED)
    ]
