"""What a preview found: what a run would have done, told without doing it.

A preview runs handlers in a transaction that is rolled back and sends nothing, so all of this is conditional.
`str()` of a Preview is a page for people; its fields are for programs.
"""

import re
from collections.abc import Callable
from typing import Any, Generic, Literal, TypeVar

import msgspec

from dotdo.clock import duration
from dotdo.records import ErrorRecord, RunKind

R = TypeVar("R")

PreviewStatus = Literal["completed", "failed", "cancelled", "blocked", "incomplete"]
StepKind = Literal["action", "service", "timer", "undo", "on_failure"]
StepStatus = Literal["completed", "failed", "cancelled", "incomplete"]
EffectKind = Literal["staged", "requested", "undone"]

Span = tuple[str, str]  # a piece of text, and rich's name of how it looks
Line = list[Span]

VERDICTS: dict[str, str] = {
    "completed": "would complete",
    "failed": "would fail",
    "cancelled": "would be cancelled",
    "blocked": "would be blocked",
    "incomplete": "could not be previewed to its end",
}
EFFECT_WORDS: dict[str, str] = {"staged": "send", "requested": "request", "undone": "undo"}
DIM = "dim"
_STYLES = {"completed": "green", "failed": "red", "cancelled": "yellow", "blocked": "bold red", "incomplete": "yellow"}
_DIGEST = re.compile(r":[0-9a-f]{16}(?=#|$)")
SHOWN = 300  # characters of one value
SHOWN_LINES = 12  # of one rendering


class PreviewedStatement(msgspec.Struct, frozen=True, kw_only=True):
    """An SQL statement of a handler, as it was sent to the driver.

    rows: written or returned; None where the driver does not tell (SELECT on SQLite). parameters: as plain JSON values.
    kept: False when it was rolled back within the preview, because its step failed.
    """

    step: str
    sql: str
    rows: int | None = None
    parameters: Any = None
    kept: bool = True


class PreviewedEffect(msgspec.Struct, frozen=True, kw_only=True):
    """A call to the outside world that would have been made.

    kind: `staged` (sent after the step's commit), `requested` (made while the handler waits), or `undone` (a request
    that is taken back because its step failed). text: how its `preview=` shows it. answer: what its `preview=` answered
    as a stand-in, as plain JSON values.
    """

    step: str
    kind: EffectKind
    name: str
    version: int
    input: Any = None
    text: str | None = None
    answer: Any = None


class PreviewedStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step, in the order in which they were previewed.

    at: ms of the run's own time since its start. name: of the definition; of a timer, how long it waited, in words.
    """

    id: str
    kind: StepKind
    name: str
    version: int | None = None
    status: StepStatus
    input: Any = None
    result: Any = None
    error: ErrorRecord | None = None
    at: int = 0


class PreviewNote(msgspec.Struct, frozen=True):
    """What could not be previewed and why, or what else a reader must know. step: where, if at a step."""

    text: str
    step: str | None = None


class Preview(msgspec.Struct, Generic[R], frozen=True, kw_only=True):
    """What a run would have done; nothing of it has happened.

    status: how the run would end, or `incomplete` when the preview ended before; the notes say why. result: if it would
    complete. error: what the handler or service raised. effects: in the order in which they would happen.
    """

    kind: RunKind
    name: str
    version: int
    status: PreviewStatus
    result: R | None = None
    error: ErrorRecord | None = None
    steps: list[PreviewedStep] = []
    effects: list[PreviewedEffect] = []
    statements: list[PreviewedStatement] = []
    notes: list[PreviewNote] = []

    @property
    def verdict(self) -> str:
        """How it would end, in one sentence."""
        return f"{self.kind} {self.name}@{self.version} {VERDICTS[self.status]}. Nothing was changed, nothing was sent."

    def __str__(self) -> str:
        return "\n".join("".join(text for text, _ in line).rstrip() for line in page(self))


def shown(preview: Preview[Any], show: Callable[[Any], Any]) -> Preview[Any]:
    """The preview with every value and text of the user's as `show` shows it, such as without secrets."""
    replace = msgspec.structs.replace

    def error(record: ErrorRecord | None) -> ErrorRecord | None:
        if record is None:
            return None
        return replace(record, type=show(record.type), message=show(record.message), traceback=show(record.traceback))

    return replace(
        preview,
        result=show(preview.result),
        error=error(preview.error),
        steps=[
            replace(one, input=show(one.input), result=show(one.result), error=error(one.error))
            for one in preview.steps
        ],
        effects=[
            replace(one, input=show(one.input), text=show(one.text), answer=show(one.answer)) for one in preview.effects
        ],
        statements=[replace(one, sql=show(one.sql), parameters=show(one.parameters)) for one in preview.statements],
        notes=[replace(one, text=show(one.text)) for one in preview.notes],
    )


def page(preview: Preview[Any]) -> list[Line]:
    """A preview as lines of styled pieces: each step with its SQL and effects, then the end, then the notes."""
    lines: list[Line] = [[("Preview: ", DIM), (preview.verdict, _STYLES[preview.status])]]
    if preview.steps:
        lines.append([])
    for step in preview.steps:
        lines += _step(preview, step)
    if preview.status == "completed":
        lines += [[], [("Result  ", DIM), (one_line(preview.result), "")]]
    elif preview.error is not None:
        lines += [[], [("Error  ", DIM), (error_text(preview.error), "red")]]
    if preview.notes:
        lines += [[], [("Notes", DIM)]]
    for note in preview.notes:
        place = f"{_bare(note.step)}: " if note.step and preview.kind == "service" else ""
        lines.append([("  * ", DIM), (place + note.text, "yellow")])
    return lines


def _step(preview: Preview[Any], step: PreviewedStep) -> list[Line]:
    at = f"+{duration(step.at)}"
    if step.kind == "timer":
        return [[(f"{at:>8}  ", DIM), (f"({step.name} passed)", DIM)]]
    told: Span = ("", "")
    if step.error is not None and preview.kind == "service":
        told = (f"  {step.status}: {error_text(step.error)}", "red")
    elif step.status != "completed":
        told = (f"  {step.status}", "yellow")
    elif preview.kind == "service" and step.result is not None:
        told = (f"  -> {one_line(step.result)}", "")
    service = "service " if step.kind == "service" else ""
    lines: list[Line] = [[(f"{at:>8}  ", DIM), (service + _bare(step.id), "bold"), told]]
    for statement in preview.statements:
        if statement.step == step.id:
            parameters = f"  {one_line(statement.parameters)}" if statement.parameters else ""
            sql = one_line_of(statement.sql)
            lines.append([(f"{rows_text(statement):>22}  ", DIM), (sql, ""), (parameters, DIM)])
    for effect in preview.effects:
        if effect.step == step.id:
            lines += _effect(effect)
    return lines


def _effect(effect: PreviewedEffect) -> list[Line]:
    word = f"{EFFECT_WORDS[effect.kind]:>22}  "
    name = f"{effect.name}@{effect.version}"
    if effect.text is None:
        lines: list[Line] = [[(word, DIM), (name, "cyan"), (f"  {one_line(effect.input)}", "")]]
    else:
        shown = effect.text.splitlines()
        lines = [[(word, DIM), (name, "cyan")]]
        lines += [[(" " * 24 + "| ", DIM), (line[:SHOWN], "")] for line in shown[:SHOWN_LINES]]
        if len(shown) > SHOWN_LINES:
            lines.append([(" " * 24 + "| ", DIM), (f"... ({len(shown) - SHOWN_LINES} more lines)", DIM)])
    if effect.kind == "requested" and effect.answer is not None:
        lines.append([(f"{'stand-in answer':>22}  ", DIM), (one_line(effect.answer), "")])
    return lines


def _bare(step: str) -> str:
    """A step without the digest of its input, which means little to a reader."""
    return _DIGEST.sub("", step)


def rows_text(statement: PreviewedStatement) -> str:
    """The row count of a statement, in words."""
    if not statement.kept:
        return "rolled back"
    if statement.rows is None:
        return "sql"
    return "1 row" if statement.rows == 1 else f"{statement.rows} rows"


def error_text(error: ErrorRecord) -> str:
    """An error on one line."""
    return one_line_of(f"{error.type}: {error.message}" if error.message else error.type)


def one_line(value: Any) -> str:
    """A JSON value on one line, cut."""
    return one_line_of(msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=0).decode())


def one_line_of(text: str) -> str:
    """A text on one line, cut."""
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
