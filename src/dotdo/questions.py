"""Which open question of a blocked run a person means."""

from dotdo.errors import InvalidOperation
from dotdo.records import Question, Run


def the_question(run: Run, step: str | None = None, key: str | None = None) -> Question:
    """The open question with that key, or of that step (its id, or its action's name); or the only one there is.

    Raises InvalidOperation when there is none, or more than one.
    """
    if run.status != "blocked":
        raise InvalidOperation(f"The run {run.id} is {run.status}; only a blocked run has questions to resolve.")
    questions = run.questions
    if not questions:
        why = f" ({run.error.message})" if run.error else ""
        raise InvalidOperation(f"The blocked run {run.id} asks no question{why}; mend what blocks it, then retry it.")
    found = [one for one in questions if (key is None or one.key == key) and (step is None or _is_of(one, step))]
    if len(found) == 1:
        return found[0]
    known = "".join(f"\n  {one.effect} of the step {one.step}, key {one.key}" for one in questions)
    what = "several open questions" if found else "no such open question"
    raise InvalidOperation(f"The run {run.id} has {what}; name one by its step or key:{known}")


def _is_of(question: Question, step: str) -> bool:
    return step in (question.step, question.step.partition(":")[0])


def check_outcome(question: Question, outcome: str) -> None:
    """Raises InvalidOperation when that is no answer to the question."""
    if outcome not in question.answers:
        possible = ", ".join(question.answers)
        raise InvalidOperation(f"{outcome!r} is no answer to that question; possible are: {possible}.")
