"""Whatever a run does belongs to one trace, its caller's: its steps, their attempts and effects, also after a SIGKILL.

With OpenTelemetry's own SDK, its spans kept in memory or, by the process that dies, written to a file.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from dotdo import (
    ActionFailed,
    AsyncContext,
    AsyncDo,
    Catalogue,
    Context,
    Do,
    EffectCall,
    Fail,
    Retry,
    RetryLater,
    RunCancelled,
    Secret,
    action,
    effect,
    service,
    sleep,
)
from dotdo.tracing import place_in_trace
from tests.guarantees.ledger import ROOT
from tests.guarantees.neighbours import catalogue as neighbours_catalogue
from tests.guarantees.neighbours import neighbours

catalogue = Catalogue()
seen: dict[str, Any] = {}
GIVEN = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def here() -> str:
    """The current span, as a traceparent has it."""
    found = trace.get_current_span().get_span_context()
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-01" if found.is_valid else ""


@effect("post-note", catalogue=catalogue, dedup="key")
def post_note(call: EffectCall, text: str) -> None:
    seen["effect"] = (here(), call.traceparent)


@effect("ask-note", catalogue=catalogue, dedup="key")
async def ask_note(call: EffectCall, text: str) -> str:
    seen["request"] = (here(), call.traceparent)
    return text


@action("write-note", catalogue=catalogue, retry=Retry(attempts=2, delay=0, jitter=False))
def write_note(ctx: Context, text: str) -> str:
    seen.setdefault("write", []).append((here(), ctx.traceparent))
    if ctx.attempt == 1:
        raise RetryLater("not yet")
    ctx.stage(post_note, text=text)
    return ctx.request(ask_note, text=text)


@action("read-note", catalogue=catalogue, retry=1)
async def read_note(ctx: AsyncContext, text: str) -> None:
    await asyncio.sleep(0)
    seen["read"] = (here(), ctx.traceparent)


@action("betray", catalogue=catalogue, retry=1)
async def betray(password: Secret[str]) -> None:
    raise Fail(f"cannot sign in with {password.reveal()}")


@service("inner", catalogue=catalogue)
async def inner(text: str) -> None:
    await read_note(text=text)


@service("notes", catalogue=catalogue)
async def notes(text: str) -> str:
    written = await write_note(text=text)
    await inner(text=text)
    return written


class Spans:
    """A tracer provider that keeps its spans."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def named(self, name: str) -> list[ReadableSpan]:
        """Those of that name, in the order in which they ended."""
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        """The one of that name."""
        (found,) = self.named(name)
        return found


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def text_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-01"


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


@pytest.fixture
def spans():
    seen.clear()
    return Spans()


def test_run_steps_attempts_and_effects_are_spans_of_the_callers_trace(tmp_path: Path, spans: Spans):
    with Do(str(tmp_path / "dotdo.db"), catalogue=catalogue, tracer_provider=spans.provider) as client:
        with spans.provider.get_tracer("shop").start_as_current_span("signup"):
            handle = client.start(notes, "hi")
        assert handle.result(timeout=60) == "hi"
    caller = spans.one("signup")
    assert {span.context.trace_id for span in spans.exporter.get_finished_spans() if span.context} == {
        caller.context.trace_id if caller.context else 0
    }
    start, run, step = spans.one("start notes"), spans.one("run notes"), spans.one("step write-note")
    first, second = spans.named("attempt write-note")
    sent, asked = spans.one("effect post-note"), spans.one("effect ask-note")
    child, childs_run, childs_step = spans.one("start inner"), spans.one("run inner"), spans.one("step read-note")
    read = spans.one("attempt read-note")
    parents = [(start, caller), (run, start), (step, run), (first, step), (second, step), (sent, step)]
    parents += [(asked, second), (child, run), (childs_run, child), (childs_step, childs_run), (read, childs_step)]
    for span, parent in parents:
        assert parent_of(span) == id_of(parent), f"{span.name} is below {parent.name}"
    assert attributes(run) == {
        "dotdo.kind": "service",
        "dotdo.name": "notes",
        "dotdo.version": 1,
        "dotdo.run.id": handle.id,
        "dotdo.run.resumed": False,
        "dotdo.run.status": "completed",
    }
    assert attributes(step)["dotdo.step.state"] == "completed"
    assert attributes(second) == {
        "dotdo.run.id": handle.id,
        "dotdo.step": attributes(step)["dotdo.step"],
        "dotdo.attempt": 2,
        "dotdo.name": "write-note",
        "dotdo.version": 1,
        "code.function.name": f"{__name__}.write_note",
    }
    assert (first.status.status_code, second.status.status_code) == (StatusCode.ERROR, StatusCode.UNSET)
    (event,) = first.events
    assert event.name == "exception"
    told = dict(event.attributes or {})
    assert (told["exception.type"], told["exception.message"]) == ("RetryLater", "not yet")
    assert "write_note" in str(told["exception.stacktrace"])
    assert attributes(first)["error.type"] == "RetryLater"
    assert [link.context.span_id for link in second.links] == [id_of(first)], "a retry is linked to what it retries"
    assert run.status.status_code == StatusCode.UNSET
    # The code is within those spans, in threads and on the loop, and is told of them.
    assert seen["write"] == [(text_of(first),) * 2, (text_of(second),) * 2]
    assert seen["read"] == (text_of(read),) * 2
    assert seen["effect"] == (text_of(sent),) * 2
    assert seen["request"] == (text_of(asked),) * 2


def test_run_without_a_caller_is_a_trace_of_its_own_and_its_failure_is_told(tmp_path: Path, spans: Spans):
    with Do(str(tmp_path / "dotdo.db"), catalogue=catalogue, tracer_provider=spans.provider) as client:
        handle = client.start(betray, Secret("hunter2-and-more"))
        with pytest.raises(ActionFailed):
            handle.result(timeout=60)
    start, run, attempt = spans.one("start betray"), spans.one("run betray"), spans.one("attempt betray")
    assert start.parent is None
    assert run.context is not None
    assert start.context is not None
    assert run.context.trace_id == start.context.trace_id
    for span in (run, spans.one("step betray"), attempt):
        assert span.status.status_code == StatusCode.ERROR
        assert span.status.description is not None
        assert span.status.description.endswith("cannot sign in with ***")
    shown = "".join(span.to_json() for span in spans.exporter.get_finished_spans())
    assert "hunter2" not in shown


# -- a process that dies ----------------------------------------------------------------------------------------------


class FileExporter(SpanExporter):
    """Writes each span to a file as it ends, so that it survives the process."""

    def __init__(self, file: str) -> None:
        self._file = Path(file)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with self._file.open("a", encoding="utf-8") as out:
            out.writelines(span.to_json(indent=None) + "\n" for span in spans)
        return SpanExportResult.SUCCESS


dying = Catalogue()


@action("first", catalogue=dying)
async def first(ctx: AsyncContext) -> str | None:
    return ctx.traceparent


@action("second", catalogue=dying)
async def second(ctx: AsyncContext) -> str | None:
    if told := os.environ.get("DIES"):
        while "signup" not in Path(told).read_text():  # noqa: ASYNC110, ASYNC240 - ended on another thread
            await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return ctx.traceparent


@service("both", catalogue=dying)
async def both() -> list[str | None]:
    return [await first(), await second()]


@service("naps", catalogue=dying)
async def naps() -> str | None:
    await sleep(3600)
    return await first()


PROGRAM = """
import os, sys
from dotdo import Do
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from tests.guarantees.test_one_trace import FileExporter, both, dying

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(FileExporter(sys.argv[2])))
client = Do(sys.argv[1], catalogue=dying, tracer_provider=provider)
with provider.get_tracer("shop").start_as_current_span("signup"):
    handle = client.start(both)
    os.write(1, handle.id.encode())
handle.result()
"""


def test_run_that_is_resumed_after_a_sigkill_goes_on_in_its_trace(tmp_path: Path, spans: Spans):
    store, file = tmp_path / "dotdo.db", tmp_path / "spans.jsonl"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "DIES": str(file)}
    command = [sys.executable, "-c", PROGRAM, str(store), str(file)]
    died = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert died.returncode == -signal.SIGKILL, died.stderr
    told = {span["name"]: span for span in map(json.loads, file.read_text().splitlines())}
    assert {"signup", "start both", "attempt first", "step first"} <= set(told)
    assert "run both" not in told, "it died with the process"

    with Do(str(store), catalogue=dying, tracer_provider=spans.provider) as client:
        was, now = client.handle(died.stdout).result(timeout=60)
    run, step, attempt = spans.one("run both"), spans.one("step second"), spans.one("attempt second")
    assert spans.named("step first") == [], "it was done"
    of = told["start both"]["context"]
    for span in (run, step, attempt):
        assert span.context is not None
        assert f"0x{span.context.trace_id:032x}" == of["trace_id"] == told["signup"]["context"]["trace_id"]
    assert f"0x{parent_of(run):016x}" == of["span_id"], "below a span that was exported before the crash"
    assert [f"0x{link.context.span_id:016x}" for link in run.links] == [of["span_id"]]
    assert attributes(run)["dotdo.run.resumed"] is True
    assert now == text_of(attempt)
    assert was[3:35] == now[3:35]


def test_run_that_leaves_memory_ends_its_span_and_comes_back_with_another(tmp_path: Path, spans: Spans):
    store = str(tmp_path / "dotdo.db")
    with Do(store, catalogue=dying, tracer_provider=spans.provider) as client:
        handle = client.start(naps)
    (left,) = spans.named("run naps")
    assert attributes(left)["dotdo.run.status"] == "waiting"
    with Do(store, catalogue=dying, tracer_provider=spans.provider) as client:
        handle = client.handle(handle.id)
        handle.cancel()
        with pytest.raises(RunCancelled):
            handle.result(timeout=60)
    run = spans.named("run naps")[-1]
    assert attributes(run)["dotdo.run.status"] == "cancelled"
    assert parent_of(run) == id_of(spans.one("start naps"))


# -- without the SDK --------------------------------------------------------------------------------------------------


def test_trace_of_the_caller_goes_through_where_nothing_makes_spans(tmp_path: Path):
    async def main() -> Any:
        async with AsyncDo(str(tmp_path / "dotdo.db"), catalogue=dying) as client:
            place = place_in_trace(GIVEN)
            assert place is not None
            platform = await client.platform()
            from dotdo.records import Options

            options = Options(traceparent=place.traceparent)
            return (await platform.execute("service", "both", {}, options)).result

    assert asyncio.run(main()) == [GIVEN, GIVEN]


def test_nothing_of_opentelemetry_is_loaded_unless_the_program_does(tmp_path: Path):
    program = """
import sys
from dotdo import Do
from tests.guarantees.neighbours import catalogue, where
with Do(sys.argv[1], catalogue=catalogue) as client:
    client.run(where)
print([name for name in sys.modules if "opentelemetry" in name])
"""
    command = [sys.executable, "-c", program, str(tmp_path / "dotdo.db")]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("defined", [neighbours_catalogue, Catalogue()], ids=["defined here", "not defined here"])
def test_client_beside_the_engine_of_another_process_hands_the_trace_on(
    tmp_path: Path, spans: Spans, defined: Catalogue
):
    store = tmp_path / "dotdo.db"
    with (
        neighbours(store, 1) as (engine,),
        Do(str(store), catalogue=defined, tracer_provider=spans.provider) as client,
    ):
        with spans.provider.get_tracer("shop").start_as_current_span("signup") as signup:
            run = client.action.execute(name="where")
        assert run.result == engine.pid
        options = json.loads(client.runs.journal(run.id)[0].data)["options"]
    assert options["traceparent"][3:35] == f"{signup.get_span_context().trace_id:032x}"


@pytest.mark.parametrize(
    "text, sound",
    [
        (GIVEN, True),
        (f"cc{GIVEN[2:]}-what-comes-later", True),
        (f"{GIVEN}-more", False),
        (GIVEN.upper(), False),
        (f"ff{GIVEN[2:]}", False),
        ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", False),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", False),
        ("", False),
        ("00-4bf9", False),
    ],
)
def test_place_in_a_trace_is_read_strictly(text: str, sound: bool):
    found = place_in_trace(text, "a=1")
    assert (found is not None) == sound
    if found is not None:
        assert (found.traceparent, found.tracestate) == (GIVEN, "a=1")
