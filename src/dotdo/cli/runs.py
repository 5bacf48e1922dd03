"""`dotdo runs`: look at runs, follow one, and cancel, retry, undo or resolve one.

Looking reads the store beside a live engine, and steering asks that engine. When no process runs one, steering runs one
here, and so needs the application.
"""

import re
import shlex
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar, cast

import click
import msgspec

from dotdo import maintaining
from dotdo.async_client import AsyncDo
from dotdo.catalogue import Catalogue
from dotdo.cli import Group
from dotdo.cli.attending import UNDONE, report, user, wait_for_end, with_engine
from dotdo.cli.loading import Application, load_application
from dotdo.cli.output import (
    Span,
    clock_time,
    json_option,
    mark,
    print_json,
    print_json_line,
    print_lines,
    print_table,
    say,
    status_span,
)
from dotdo.cli.parameters import labels_of
from dotdo.cli.settings import Number, WholeNumber, app_option, sql_option, store_option
from dotdo.cli.showing import View
from dotdo.clock import duration
from dotdo.embedding import engine_on, open_reader
from dotdo.errors import StillRunning, UnknownName, failure_text
from dotdo.journal import Entry
from dotdo.records import HELD, Outcome, Run, RunFilter, Status, WaitingFor
from dotdo.sealing import masked
from dotdo.store.protocol import Store
from dotdo.timeline import Builder, Moment, timeline

# How often `watch` looks into the store, in seconds.
LOOK = 0.1
MAX_NAMED = 5
_PARAMETER = re.compile(r"([A-Za-z_]\w*):=")

id_argument = click.argument("id")
F = TypeVar("F", bound=Callable[..., Any])

wait_option = click.option(
    "--wait", type=Number(min=0), metavar="SECONDS", help="Stop waiting after so long (exit code 3)."
)


def steering(command: F) -> F:
    """Adds what every command needs that asks something of one run and waits for its end."""
    for option in (json_option, wait_option, sql_option, store_option, app_option, id_argument):
        command = option(command)
    return command


@click.group(cls=Group)
def runs() -> None:
    """Look at runs, send them events, and cancel, retry, undo or resolve them.

    ID is a run's id or the beginning of one, with or without `run_`; `latest` is the newest run.
    """


@runs.command("ls")
@store_option
@click.option("--status", type=click.Choice(list(Status.__args__)), help="Only runs in this state.")
@click.option("--name", metavar="TEXT", help="Only runs of this action or service.")
@click.option("--trail", metavar="TEXT", help="Only runs with this trail.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Only runs with this label; repeatable.")
@click.option("--limit", type=WholeNumber(1, 10_000), default=20, show_default=True, help="How many.")
@json_option
def ls(store: str, limit: int, as_json: bool, labels: tuple[str, ...], **filter: str | None) -> None:
    """List runs, newest first."""
    opened = open_reader(store)
    wanted = RunFilter(**cast("dict[str, Any]", filter), labels=labels_of(labels), limit=limit)
    found = _as_they_stand(opened.list_runs(wanted), store)
    if as_json:
        print_json(found)
        return
    if not found:
        restricted = any((labels, *filter.values()))
        say("There are no such runs." if restricted else f"The store {opened.where} has no runs yet.")
        return
    headings = ["RUN", "NAME", "STATUS", "STARTED", "TOOK", "WHY"]
    print_table(headings, [_row(run) for run in found])
    if len(found) == limit:
        say(f"(the newest {limit}; --limit for more)")


def _as_they_stand(found: list[Run], store: str) -> list[Run]:
    """Runs that a process had in memory wait for an engine when nobody runs one any more."""
    held = [run for run in found if run.waiting_for is not None and run.waiting_for.kind == HELD]
    if not held or engine_on(store) is not None:
        return found
    waits = WaitingFor(HELD, "an engine: no process runs one on this store now")
    return [msgspec.structs.replace(run, waiting_for=waits) if run in held else run for run in found]


def _row(run: Run) -> list[Span]:
    took = duration(run.ended_at - run.created_at) if run.ended_at is not None else ""
    why = ""
    if run.waiting_for is not None and run.status != "blocked":
        why = f"waits for {run.waiting_for.text}"
    elif run.error is not None:
        text = failure_text(run.error.type, run.error.message)
        why = f"{run.error.action}: {text}" if run.error.action else text
    return [
        (run.id, ""),
        (f"{run.name}@{run.version}" if run.version > 1 else run.name, "bold"),
        status_span(run.status, run.undo),
        (clock_time(run.created_at), ""),
        (took, ""),
        (why, "dim"),
    ]


@runs.command("show", short_help="Show a run as a timeline.")
@id_argument
@store_option
@click.option("-v", "--verbose", is_flag=True, help="With inputs, whole results and tracebacks.")
@json_option
def show(id: str, store: str, verbose: bool, as_json: bool) -> None:
    """Show a run as a timeline: steps, attempts, effects, undo, and what it waits for."""
    opened = open_reader(store)
    [run] = _as_they_stand([find_run(opened, id)], store)
    entries = opened.read_journal(run.id)
    if as_json:
        print_json({"run": run, "journal": [entry_json(entry) for entry in entries]})
    else:
        print_lines(View(run, timeline(entries), engine_on(store), verbose=verbose).lines())


@runs.command("watch", short_help="Follow a run until it has ended.")
@steering
@click.option("--resume", is_flag=True, help="Run an engine here meanwhile, when no other process does.")
def watch(resume: bool, as_json: bool, **target: Any) -> int:
    """Follow a run until it has ended or is blocked; prints each entry of its journal as it comes."""
    store, wait = target["store"], target["wait"]
    opened = open_reader(store)
    run = find_run(opened, target["id"])
    if not resume:
        if not run.ended and engine_on(store) is None:
            say(
                "No process runs an engine on this store now, so nothing moves. Start your application or add --resume."
            )
        return follow(opened, run, wait, as_json=as_json)
    opened.close()

    async def work(client: AsyncDo) -> int:
        return report(await wait_for_end(client, run.id, wait, quiet=as_json), as_json=as_json)

    return _attended(target, work)


def follow(opened: Store, run: Run, wait: float | None, *, as_json: bool) -> int:
    """Prints a run's entries until it has ended. Raises StillRunning."""
    builder, seen = Builder(), 0
    end = None if wait is None else time.monotonic() + wait
    while True:
        # The row first: a terminal row then has its whole journal.
        run = opened.get_run(run.id) or run
        for entry in opened.read_journal(run.id, seen):
            seen = entry.seq
            _print_entry(run, builder, entry, as_json=as_json)
        if run.rests:
            break
        if end is not None and time.monotonic() >= end:
            error = StillRunning(f"The run {run.id} had not ended after {wait:g} s.")
            error.run_id = run.id
            raise error
        time.sleep(LOOK)
    if as_json:
        print_json_line({"run": run})
        return 0 if run.status == "completed" else 1
    return report(run, as_json=False)


def _print_entry(run: Run, builder: Builder, entry: Entry, *, as_json: bool) -> None:
    if as_json:
        print_json_line(entry_json(entry))
        return
    item = builder.add(entry)
    text = f": {item.text.removeprefix('progress: ')}" if entry.kind == "published" and isinstance(item, Moment) else ""
    subject = f"{entry.step.partition(':')[0]} " if entry.step else ""
    attempt = f" (attempt {entry.attempt})" if entry.attempt > 1 else ""
    print_lines(
        [
            [
                (f"{clock_time(entry.at, exact=True)}  ", "dim"),
                (subject, ""),
                (entry.kind.replace("_", " ") + attempt + text, ""),
            ]
        ]
    )


@runs.command("cancel", short_help="Cancel a run and undo what it did.")
@steering
def cancel(as_json: bool, **target: Any) -> int:
    """Cancel a run, undo what it did, and wait until that is done."""

    def tell(run: Run) -> int:
        if run.status != "cancelled":
            report(run, as_json=as_json)
            return 1  # it had come to another end first, or what it did could not be undone
        if as_json:
            print_json(run)
        say(f"{run.name} was cancelled{UNDONE[run.undo]}. More: dotdo runs show {run.id}")
        return 0

    return steer(target, lambda client, id: client.runs.cancel(id), tell, as_json=as_json)


@runs.command("retry", short_help="Open a failed or blocked run again.")
@steering
def retry(as_json: bool, **target: Any) -> int:
    """Open a failed, cancelled or blocked run again, and wait for its end. Completed steps keep their results."""

    def tell(run: Run) -> int:
        return report(run, as_json=as_json)

    return steer(target, lambda client, id: client.runs.retry(id), tell, as_json=as_json)


@runs.command("undo", short_help="Take back what an ended run did.")
@steering
def undo(as_json: bool, **target: Any) -> int:
    """Take back what an ended run did, newest first, and wait until that is done."""

    def tell(run: Run) -> int:
        if run.status == "blocked":
            return report(run, as_json=as_json)
        if as_json:
            print_json(run)
        done = {"all": "Everything that it did is undone.", "partial": "What it did is undone in part."}
        say(f"{done.get(run.undo, 'It had done nothing that can be undone.')} More: dotdo runs show {run.id}")
        return 0

    return steer(target, lambda client, id: client.runs.undo(id), tell, as_json=as_json)


@runs.command("resolve", short_help="Answer a question of a blocked run.")
@steering
@click.option("--happened", "outcome", flag_value="happened", help="It happened; an undo: you did it by hand.")
@click.option("--did-not-happen", "outcome", flag_value="did_not_happen", help="It did not; an undo: leave it so.")
@click.option("--try-again", "outcome", flag_value="try_again", help="Do it once more, under the same key.")
@click.option("--answer", metavar="JSON", help="With --happened: what the effect answered.")
@click.option("--step", metavar="NAME", help="Which question, if there are several: of this step.")
@click.option("--key", metavar="TEXT", help="Which question, if there are several: with this key.")
def resolve(
    as_json: bool, outcome: Outcome | None, answer: str | None, step: str | None, key: str | None, **target: Any
) -> int:
    """Say what only a person can find out, and wait for what comes of it. `dotdo runs show` has the questions."""
    if outcome is None:
        raise click.UsageError("Say --happened, --did-not-happen or --try-again.")
    value: Any = None
    if answer is not None:
        try:
            value = msgspec.json.decode(answer)
        except msgspec.DecodeError as error:
            raise click.UsageError(
                f"--answer {answer!r} is no JSON: {error}. A text goes in quotes: '\"text\"'."
            ) from None

    def tell(run: Run) -> int:
        return report(run, as_json=as_json)

    def ask(client: AsyncDo, id: str) -> Awaitable[None]:
        return client.runs.resolve(id, outcome, answer=value, step=step, key=key)

    return steer(target, ask, tell, as_json=as_json, defines=answer is not None)


@runs.command("erase", short_help="Erase the data of ended runs for good.")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@store_option
@json_option
def erase(ids: tuple[str, ...], store: str, as_json: bool) -> int:
    """Erase the data of ended runs and their children for good. No engine may hold the store.

    Inputs, results, errors, events, effects, progress, labels, keys and trails go, from the file, too. The runs stay,
    and say that they were erased; `dotdo audit verify` accepts that. Beside a live engine, use client.runs.erase(...)
    in the application.
    """
    reader = open_reader(store)
    found = [find_run(reader, id).id for id in ids]
    reader.close()
    count = maintaining.erase(store, found, user())
    if as_json:
        print_json({"erased": count})
    said = "The data of 1 run was" if count == 1 else f"The data of {count} runs was"
    say(f"{mark('✓', '+')} {said} erased." if count else "It was erased before, and nothing of it is left.")
    return 0


def steer(
    target: dict[str, Any],
    ask: Callable[[AsyncDo, str], Awaitable[None]],
    tell: Callable[[Run], int],
    *,
    as_json: bool,
    defines: bool = False,
) -> int:
    """Asks something of a run, waits for its end, and returns what `tell` makes of that.

    defines: whether the question can be put only by who has the application's definitions.
    """
    store = target["store"]
    reader = open_reader(store)
    run = find_run(reader, target["id"])
    reader.close()

    async def work(client: AsyncDo) -> int:
        await ask(client, run.id)
        return tell(await wait_for_end(client, run.id, target["wait"], quiet=as_json))

    return _attended(target, work, defines=defines)


def _attended(
    target: dict[str, Any], work: Callable[[AsyncDo], Coroutine[Any, Any, int]], *, defines: bool = False
) -> int:
    """Beside a live engine, which has the definitions, no application is needed for most of it."""
    beside = engine_on(target["store"]) is not None
    none = beside and not defines
    application = Application("", Catalogue()) if none else load_application(target["app"])
    return with_engine(application, target["store"], target["sql"], work, engine=not beside)


@runs.command("send-event", short_help="Send an event to a run.")
@id_argument
@click.argument("name")
@click.argument("value", required=False, metavar="[VALUE | :=JSON]")
@store_option
@click.option("--key", metavar="TEXT", help="The sender's own key: the same one twice is one event.")
def send_event(id: str, name: str, value: str | None, store: str, key: str | None) -> int:
    """Send the event NAME to a run. VALUE is text, or JSON after `:=`; without one it is null.

    The run takes it at once if a process runs an engine on the store, else when one does.
    """
    _refuse_joined(name, value)
    reader = open_reader(store)
    run = find_run(reader, id)
    reader.close()

    async def work(client: AsyncDo) -> int:
        await client.runs.send_event(run.id, name, _event_value(value), key=key)
        waiting = run.waiting_for
        is_other = waiting is not None and waiting.kind == "event" and repr(name) not in waiting.text
        waits = f", and waits for {waiting.text}" if waiting is not None and is_other else ""
        later = "" if engine_on(store) else " No process runs an engine on this store now: it is taken when one does."
        say(f"{run.name} was sent the event {name!r}{waits}.{later} More: dotdo runs show {run.id}")
        return 0

    return with_engine(Application("", Catalogue()), store, (), work, engine=False)


def _refuse_joined(name: str, value: str | None) -> None:
    """Raises UsageError for what is written as a parameter of `dotdo run`: NAME=VALUE would be a part of the name."""
    event, equals, rest = name.partition("=")
    if value is None and equals:
        json = ":=" if event.endswith(":") else ""
        raise click.UsageError(
            f"The value of an event is a word of its own: {shlex.quote(event.rstrip(':'))} {shlex.quote(json + rest)}"
        )
    parameter = _PARAMETER.match(value or "")
    if parameter is not None:
        raise click.UsageError(
            f"{value!r} would be sent as this text. An object is JSON behind `:=`, such as "
            f"':={{\"{parameter[1]}\": ...}}'; send it as text with ':=\"...\"'."
        )


def _event_value(text: str | None) -> Any:
    if text is None or not text.startswith(":="):
        return text
    try:
        return msgspec.json.decode(text.removeprefix(":="))
    except msgspec.DecodeError as error:
        raise click.UsageError(f"{text!r} is not JSON after := ({error}).") from None


def find_run(store: Store, id: str) -> Run:
    """The run that an id, or the beginning of one, means. Raises UnknownName."""
    if id == "latest":
        newest = store.list_runs(RunFilter(limit=1))
        if not newest:
            raise UnknownName(f"The store {store.where} has no runs yet.")
        return newest[0]
    prefix = id if id.startswith("run_") else f"run_{id}"
    exact = store.get_run(prefix)
    if exact is not None:
        return exact
    found = [one for one in store.find_runs(prefix, MAX_NAMED + 1) if "." in prefix or "." not in one]
    if len(found) == 1:
        run = store.get_run(found[0])
        if run is not None:
            return run
    if not found:
        raise UnknownName(f"There is no run {id!r} in {store.where}; `dotdo runs ls` lists them.")
    more = ", ..." if len(found) > MAX_NAMED else ""
    raise UnknownName(
        f"{id!r} is the beginning of several runs: {', '.join(found[:MAX_NAMED])}{more}. Give more of it."
    )


def entry_json(entry: Entry) -> dict[str, Any]:
    """An entry for JSON output, with its data as JSON, and `***` for each secret."""
    names = ("seq", "kind", "step", "generation", "attempt", "at")
    return {
        **{name: getattr(entry, name) for name in names},
        "data": msgspec.Raw(masked(entry.data).encode() or b"null"),  # erased
        "digest": entry.digest,
    }
