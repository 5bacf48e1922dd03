"""How `dotdo runs show` and `watch` print a run: a header, its timeline, and where to look next."""

import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

from dotdo.cli.output import STATUS_STYLES, Span, clock_time, is_terminal, mark, one_line, status_span, until, width
from dotdo.clock import duration
from dotdo.records import HELD, ErrorRecord, Question, Run, erased_text
from dotdo.timeline import EffectItem, Moment, StepItem, Timeline, Try, step_name

Line = Sequence[Span]
Part = tuple[str, ...]  # into an input, by names
DIM, BAD, GOOD = "dim", "red", "green"
NAME_WIDTH, SHORTEST_INPUT, SHOWN_INPUT = 30, 6, 200
MARGIN = 12  # labels stand in it
_AWAITED = re.compile(r"the event '([\w.-]+)'")
SHORT_ID = 20  # what is typed to name a run: its time in ms and some random bits
STEP_MARKS = {
    "open": ("…", ".", "blue"),
    "committed": ("◐", "~", "cyan"),
    "completed": ("✓", "+", GOOD),
    "failed": ("✗", "x", BAD),
    "cancelled": ("-", "-", "yellow"),
}
EFFECT_WORDS = {
    "pending": ("not delivered yet", "cyan"),
    "delivered": ("delivered", GOOD),
    "answered": ("answered", GOOD),
    "failed": ("could not be delivered", BAD),
    "dropped": ("dropped, never sent", "yellow"),
    "undone": ("undone", "yellow"),
    "unknown": ("nobody knows whether it happened", "yellow"),
}


RESOLVE = {
    "call": (
        ("--happened --answer JSON", "go on with what the effect answered"),
        ("--did-not-happen", "go on knowing that it did not"),
        ("--try-again", "send it once more, under the same key"),
    ),
    "undo": (
        ("--happened", "you have undone it by hand"),
        ("--did-not-happen", "leave it as it is"),
        ("--try-again", "run the undo again"),
    ),
}


class View:
    """A run as lines.

    engine: which process runs the store's engine, if one does. verbose: with inputs, results in full, and tracebacks.
    """

    def __init__(self, run: Run, timeline: Timeline, engine: str | None, *, verbose: bool = False) -> None:
        self.run, self.timeline, self.engine, self.verbose = run, timeline, engine, verbose
        self._limit = 100_000 if verbose else max(width() - 20, 40)
        self._varying = _varying(timeline.steps)

    def lines(self) -> list[Line]:
        """All of it."""
        lines: list[Line] = [*self._header(), *([[]] if self.timeline.items else [])]
        for item in self.timeline.items:
            lines += self.moment(item) if isinstance(item, Moment) else self.step(item)
        return [*lines, *self._ending(), *self._next()]

    # -- above and below the timeline ---------------------------------------------------------------------------------

    def _header(self) -> list[Line]:
        run = self.run
        lines: list[Line] = [
            [
                (f"{run.name}@{run.version}", "bold"),
                (f"  {run.kind}  ", DIM),
                status_span(run.status, run.undo),
            ],
            [(run.id, DIM)],
            [],
        ]
        took = f", took {duration(run.ended_at - run.created_at)}" if run.ended_at is not None else ""
        facts = {
            "started": clock_time(run.created_at, exact=True) + took,
            "by": run.actor,
            "key": run.key,
            "trail": run.trail,
            "labels": ", ".join(f"{name}={value}" for name, value in run.labels.items()),
            "priority": f"{run.priority:+}" if run.priority else None,
            "parent": run.parent,
            "continues": run.continues,
            "reopened": f"{run.generation} times" if run.generation > 1 else "once" if run.generation else None,
            "input": None if run.erased_at is not None else one_line(self.timeline.input, self._limit),
            "progress": one_line(run.progress, self._limit) if run.progress is not None else None,
        }
        lines += [_fact(label, value) for label, value in facts.items() if value]
        return lines

    def _ending(self) -> list[Line]:
        run = self.run
        lines: list[Line] = []
        if run.erased_at is not None:
            lines += [[], _fact("erased", erased_text(run.erased_at, run.erased_by), "yellow")]
        if run.continued_as is not None:
            lines += [[], _fact("continued", f"as {run.continued_as}")]
        elif run.status == "completed" and run.erased_at is None:
            lines += [[], _fact("result", one_line(run.result, self._limit))]
        elif run.questions:
            for number, question in enumerate(run.questions, 1):
                lines += self._question(question, number if len(run.questions) > 1 else None)
        elif run.error is not None and run.erased_at is None:
            where = f"{run.error.action}: " if run.error.action else ""
            lines += [[], _fact("error", where + _error(run.error), BAD)]
            lines += self._traceback(run.error)
        elif run.waiting_for is not None and not (run.waiting_for.kind == HELD and self.engine is None):
            limit = "at the latest " if run.waiting_for.kind == "event" else ""
            when = f", {limit}{until(run.waiting_for.until)}" if run.waiting_for.until is not None else ""
            lines += [[], _fact("waits for", run.waiting_for.text + when, "cyan")]
        if not run.ended and run.status != "blocked" and self.engine is None:
            lines += [_fact("no engine", "no process runs an engine on this store now, so nothing moves", "yellow")]
        for effect in run.not_undone:
            step, _, name = effect.rpartition(": ")
            lines.append(_fact("not undone", f"{step_name(step)}: {name}" if step else name, "yellow"))
        return lines

    def _question(self, question: Question, number: int | None) -> list[Line]:
        about = {"undo": "undo of ", "request_undo": "undo of the request "}.get(question.about, f"{question.about} ")
        lines: list[Line] = [[], _fact(f"question {number or ''}".strip(), f"{about}{question.effect}", BAD)]
        lines += [_fact("", line) for line in textwrap.wrap(question.text, max(width() - 14, 40))]
        facts = {"step": question.step, "key": question.key}
        if question.input is not None:
            facts["result" if question.about == "undo" else "input"] = one_line(question.input, self._limit)
        lines += [_fact(label, value) for label, value in facts.items()]
        return [*lines, *(self._traceback(question.error) if question.error else [])]

    def _next(self) -> list[Line]:
        """What can be done about the run now."""
        run = self.run
        short = run.id if "." in run.id else run.id[:SHORT_ID]
        hints: list[tuple[str, str]] = []
        if run.status in ("failed", "cancelled") and run.erased_at is None:
            kept = "completed steps keep their results" if run.undo == "none" else "what was undone is done again"
            hints.append((f"dotdo runs retry {short}", f"open it again; {kept}"))
        elif run.status == "blocked":
            which = " --step NAME" if len(run.questions) > 1 else ""
            for option, what in RESOLVE[_kind_of(run.questions[0])] if run.questions else ():
                hints.append((f"dotdo runs resolve {short}{which} {option}", what))
            what = "the same as --try-again for all" if run.questions else "go on, once what blocks it is mended"
            hints.append((f"dotdo runs retry {short}", what))
            hints.append((f"dotdo runs cancel {short}", "give it up and undo what it did"))
        elif not run.ended:
            awaited = _AWAITED.match(run.waiting_for.text) if run.waiting_for is not None else None
            if awaited is not None:
                hints.append((f"dotdo runs send-event {short} {awaited[1]} VALUE", "what it waits for"))
            resume = " --resume" if self.engine is None else ""
            hints.append((f"dotdo runs watch {short}{resume}", "run an engine for it here" if resume else "follow it"))
            if self.engine is None:
                hints.append((f"dotdo runs cancel {short}", "give it up and undo what it did"))
        if run.ended and any(step.undoable and not step.undone for step in self.timeline.steps):
            hints.append((f"dotdo runs undo {short}", "take back what it did"))
        hints += [
            (f"dotdo runs show {step.child}", f"the child run {step.name}")
            for step in self.timeline.steps
            if step.child is not None
        ]
        if run.continued_as is not None:
            hints.append((f"dotdo runs show {run.continued_as}", "the run that goes on for it"))
        if not self.verbose and run.erased_at is None:
            hints.append((f"dotdo runs show {short} -v", "with inputs, results and tracebacks"))
        size = max((len(command) for command, _ in hints), default=0)
        # Side by side only where it fits: wrapped, the words of each would stand between the commands of others.
        below = is_terminal() and any(MARGIN + size + 2 + len(what) > width() for _, what in hints)
        lines: list[Line] = [[]]
        for number, (command, what) in enumerate(hints):
            label = f"{'next' if number == 0 else '':<{MARGIN}}"
            if below:
                lines += [[(label, DIM), (command, "")], [(" " * (MARGIN + 2), ""), (what, DIM)]]
            else:
                lines.append([(label, DIM), (f"{command:<{size}}", ""), (f"  {what}", DIM)])
        return lines

    # -- the timeline -------------------------------------------------------------------------------------------------

    def moment(self, moment: Moment) -> list[Line]:
        """Something that happened to the run as a whole."""
        style = STATUS_STYLES.get(moment.text, DIM) if moment.kind == "ended" else DIM
        style = BAD if moment.kind == "blocked" else style
        return [
            [
                self._at(moment.at),
                (mark("■ ", "= ") if moment.kind == "ended" else mark("· ", "  "), style),
                (moment.text, style),
            ]
        ]

    def step(self, step: StepItem) -> list[Line]:
        """A step with its attempts and effects."""
        symbol, plain, style = STEP_MARKS[step.state]
        if step.purpose == "undo" and step.state == "completed":
            symbol, plain, style = "↩", "<", "yellow"
        name = {"undo": f"undo {step.name}", "on_failure": f"{step.name} (on failure)"}.get(step.purpose, step.name)
        version = f"@{step.version}" if step.version > 1 else ""
        inputs = self._inputs(step, NAME_WIDTH - len(name + version) - 2)
        line: list[Span] = [
            self._at(step.at),
            (mark(symbol, plain) + " ", style),
            (name + version, ""),
            (f"{inputs:<{NAME_WIDTH - len(name + version)}}", DIM),
        ]
        line += self._outcome(step)
        lines: list[Line] = [line]
        if self.verbose and step.input is not None:
            lines.append(_detail("input   ", one_line(step.input, self._limit)))
        for failure in step.failures:
            lines += self._failure("attempt", failure)
        if step.fallback is not None:
            lines.append(_detail("fallback", f"{step.fallback} gave this result"))
        for effect in step.effects:
            lines += self._effect(effect)
        if step.child is not None:
            lines.append(_detail("child   ", step.child))
        if step.undo_error is not None:
            lines.append(_detail("undo    ", f"failed: {_error(step.undo_error)}", BAD))
        return lines

    def _inputs(self, step: StepItem, room: int) -> str:
        """What tells a step from others of its name, cut to the room that there is."""
        names, given = self._varying.get((step.name, step.purpose)), _parameters(step)
        if not names or room < SHORTEST_INPUT:
            return ""
        text = ", ".join(f"{name}={one_line(given[path], room)}" for path, name in names.items() if path in given)
        return f" {text}" if len(text) <= room else f" {text[: room - 1]}{mark('…', '~')}"

    def _outcome(self, step: StepItem) -> list[Span]:
        took = f"{duration(step.ended_at - step.at):>9}  " if step.ended_at is not None else " " * 11
        spans: list[Span] = [(took, DIM)]
        if step.state == "failed":
            attempts = len(step.failures)
            spans.append((f"failed after {attempts} attempts" if attempts > 1 else "failed", BAD))
            if not step.failures and step.error is not None:
                spans.append((f": {_error(step.error)}", BAD))
        elif step.state == "open":
            spans.append(("waits for its next attempt" if step.failures else "in progress", "blue"))
        elif step.state == "committed":
            spans.append(("committed, effects are being delivered", "cyan"))
        elif step.state == "cancelled":
            spans.append(("cancelled", "yellow"))
        elif step.purpose == "step" or self.verbose:
            room = self._limit if self.verbose else max(width() - NAME_WIDTH - 28 - (10 if step.undone else 0), 20)
            spans.append((f"{mark('→', '->')} {one_line(step.result, room)}", DIM))
        if step.undone:
            spans.append((f"  {mark('↩', '<')} undone", "yellow"))
        return spans

    def _failure(self, what: str, failure: Try) -> list[Line]:
        wait = failure.next_at - failure.at if failure.next_at is not None else None
        after = f"  (again in {duration(wait)})" if wait else ""
        lines = [
            _detail(f"{what} {failure.number}", f"{self._offset(failure.at)}  {_error(failure.error)}", BAD, after)
        ]
        return lines + self._traceback(failure.error)

    def _effect(self, effect: EffectItem) -> list[Line]:
        word, style = EFFECT_WORDS[effect.state]
        if effect.requested and effect.state in ("pending", "failed"):
            word = "not answered yet" if effect.state == "pending" else "refused"
        tries = f" at try {len(effect.tries) + 1}" if effect.tries and effect.state == "delivered" else ""
        when = f"{self._offset(effect.at)}  " if effect.at is not None else ""
        label = "request " if effect.requested else "effect  "
        line = [*_detail(label, f"{when}{effect.name}", ""), (f" {word}{tries}", style)]
        key = f"  key {effect.key}"
        lines: list[Line] = [[*line, (key, DIM)]]
        if is_terminal() and sum(len(text) for text, _ in line) + len(key) > width():
            lines = [line, _detail("  key   ", effect.key)]
        for failure in effect.tries:
            lines += self._failure("  try", failure)
        return lines

    def _traceback(self, error: ErrorRecord) -> list[Line]:
        if not self.verbose or not error.traceback:
            return []
        return [[(" " * 16 + line, DIM)] for line in error.traceback.rstrip().splitlines()]

    def _at(self, ms: int) -> Span:
        return f"{self._offset(ms):>10}  ", DIM

    def _offset(self, ms: int) -> str:
        return f"+{duration(max(ms - self.run.created_at, 0))}"


def _kind_of(question: Question) -> str:
    return "undo" if question.about in ("undo", "request_undo") else "call"


def _varying(steps: list[StepItem]) -> dict[tuple[str, str], dict[Part, str]]:
    """By name and purpose of steps, in which parts of their inputs those differ, and what to call each part.

    The shortest come first: an id tells more in the little room than a long text.
    """
    first: dict[tuple[str, str], dict[Part, Any]] = {}
    found: dict[tuple[str, str], dict[Part, int]] = {}
    for step in steps:
        which, given = (step.name, step.purpose), _parameters(step)
        before, longest = first.setdefault(which, given), found.setdefault(which, {})
        for path in given.keys() | before.keys():
            if given.get(path) != before.get(path):
                longest[path] = max(longest.get(path, 0), len(one_line(given.get(path), SHOWN_INPUT)))
    return {which: _named(sorted(longest, key=lambda path: (longest[path], path))) for which, longest in found.items()}


def _named(paths: list[Part]) -> dict[Part, str]:
    """What to call each part: its last name, where that says which."""
    last = Counter(path[-1] for path in paths)
    return {path: path[-1] if last[path[-1]] == 1 else ".".join(path) for path in paths}


def _parameters(step: StepItem) -> dict[Part, Any]:
    """What a step was given; objects by their parts."""
    found: dict[Part, Any] = {}

    def look(value: object, path: Part) -> None:
        if isinstance(value, dict) and (value or not path):
            for name, part in cast("dict[str, Any]", value).items():
                look(part, (*path, name))
        elif path:
            found[path] = value

    look(step.input, ())
    return found


def _fact(label: str, value: str, style: str = "") -> Line:
    return [(f"{label:<{MARGIN}}", DIM), (value, style)]


def _detail(label: str, text: str, style: str = DIM, more: str = "") -> list[Span]:
    return [(" " * 14 + f"{label}  ", DIM), (text, style), (more, DIM)]


def _error(error: ErrorRecord) -> str:
    return f"{error.type}: {error.message}" if error.message else error.type
