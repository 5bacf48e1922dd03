"""Previews without SQL: stand-ins for the outside world, and a service's code run in its own time."""

import asyncio
import threading
from typing import Any

import pytest

from dotdo import (
    Action,
    ActionFailed,
    AsyncContext,
    AsyncDo,
    Catalogue,
    Context,
    Effect,
    EffectCall,
    Fail,
    InvalidInput,
    Preview,
    RetryLater,
    StandIn,
    UnknownName,
    action,
    call,
    continue_as_new,
    effect,
    map,
    now,
    service,
    sleep,
    wait_for_event,
)
from dotdo.engine import preview_services, previewing, rehearsing
from dotdo.errors import ClientClosed
from dotdo.records import ErrorRecord, Failure
from tests.workshop import PATIENCE, Workshop


def notes_of(preview: Preview[Any]) -> str:
    return "\n".join(note.text for note in preview.notes)


def steps_of(preview: Preview[Any]) -> list[str]:
    return [
        f"{step.id.partition(':')[0] if step.kind == 'action' else step.kind} {step.status}" for step in preview.steps
    ]


def standing(workshop: Workshop, name: str, preview: Any) -> Effect[..., Any]:
    """An effect with a stand-in, which must never be called itself."""

    @effect(name, preview=preview, catalogue=workshop.catalogue)
    def forbidden(call: EffectCall, text: str) -> str:
        raise AssertionError("it was called")

    return forbidden


# -- effects -----------------------------------------------------------------------------------------------------------


def test_effects_are_listed_in_the_order_in_which_they_would_happen(workshop: Workshop):
    ask = standing(workshop, "reply", lambda call, input: f"reply to {input['text']}")

    @action("work", catalogue=workshop.catalogue)
    async def work(ctx: AsyncContext) -> list[str]:
        ctx.stage(workshop.send, text="first")
        answer = await ctx.request(ask, text="a")
        ctx.stage(workshop.send, text=answer)
        return [answer, await ctx.request(ask, text="b")]

    preview = workshop.open().preview(work)
    assert preview.result == ["reply to a", "reply to b"]
    assert [(one.kind, one.name, one.version, one.input["text"], one.answer) for one in preview.effects] == [
        ("requested", "reply", 1, "a", "reply to a"),
        ("requested", "reply", 1, "b", "reply to b"),
        ("staged", "send", 1, "first", None),
        ("staged", "send", 1, "reply to a", None),
    ]
    assert workshop.receiver.heard == []


def test_sync_handler_is_answered_by_stand_ins_too(workshop: Workshop):
    async def stand_in(call: EffectCall) -> str:
        return f"{call.step} {call.attempt} {call.key.startswith(call.run_id)}"

    ask = standing(workshop, "reply", stand_in)

    @action("work", catalogue=workshop.catalogue)
    def work(ctx: Context) -> str:
        return ctx.request(ask, text="a")

    assert workshop.open().preview(work).result == "work 1 True"


def test_stand_in_may_show_and_answer(workshop: Workshop):
    shown = standing(workshop, "shown", lambda call, input: StandIn(text=f"TO {input['text']}", answer="done"))

    @action("work", catalogue=workshop.catalogue)
    async def work(ctx: AsyncContext) -> str:
        ctx.stage(shown, text="b")
        return await ctx.request(shown, text="a")

    preview = workshop.open().preview(work)
    assert preview.result == "done"
    assert [(one.text, one.answer) for one in preview.effects] == [("TO a", "done"), ("TO b", "done")]


def test_stand_in_without_an_answer_ends_the_preview_at_a_request_only(workshop: Workshop):
    shown = standing(workshop, "shown", lambda call, input: StandIn(text="how it looks"))

    @action("work", catalogue=workshop.catalogue)
    async def work(ctx: AsyncContext, ask: bool) -> None:
        ctx.stage(shown, text="a")
        if ask:
            await ctx.request(shown, text="b")

    client = workshop.open()
    staged, requested = client.preview(work, ask=False), client.preview(work, ask=True)
    assert (staged.status, [one.text for one in staged.effects]) == ("completed", ["how it looks"])
    assert (requested.status, [one.input for one in requested.effects]) == ("incomplete", [{"text": "b"}])
    assert "gives no answer" in notes_of(requested)


def test_handler_cannot_swallow_the_end_of_a_preview(workshop: Workshop):
    @action("work", catalogue=workshop.catalogue)
    async def work(ctx: AsyncContext) -> str:
        try:
            return await ctx.request(workshop.ask, text="a")
        except BaseException:
            ctx.stage(workshop.send, text="never known")
            return "as if nothing were"

    preview = workshop.open().preview(work)
    assert (preview.status, preview.result) == ("incomplete", None)
    assert [one.name for one in preview.effects] == ["ask"]
    assert "nothing stands in for its answer" in notes_of(preview)


def test_what_a_stand_in_raises_is_raised_in_the_handler(workshop: Workshop):
    def stand_in(call: EffectCall, input: dict[str, Any]) -> str:
        raise Fail("No such card.")

    ask = standing(workshop, "pay", stand_in)

    @action("work", catalogue=workshop.catalogue)
    async def work(ctx: AsyncContext, catches: bool) -> str:
        try:
            return await ctx.request(ask, text="a")
        except Fail as error:
            if catches:
                return f"caught: {error}"
            raise

    client = workshop.open()
    assert client.preview(work, catches=True).result == "caught: No such card."
    failed = client.preview(work, catches=False)
    assert (failed.status, failed.error and failed.error.message) == ("failed", "No such card.")


def test_rendering_that_fails_is_noted_and_changes_nothing(workshop: Workshop):
    broken = standing(workshop, "broken", lambda call, input: input["missing"])

    @action("work", catalogue=workshop.catalogue)
    def work(ctx: Context) -> int:
        ctx.stage(broken, text="a")
        return 1

    preview = workshop.open().preview(work)
    assert (preview.status, preview.result, len(preview.effects)) == ("completed", 1, 1)
    assert "preview= raised KeyError" in notes_of(preview)


def test_answer_that_does_not_fit_the_effect_is_an_error(workshop: Workshop):
    ask = standing(workshop, "reply", lambda call, input: 42)

    @action("work", catalogue=workshop.catalogue)
    async def work(ctx: AsyncContext) -> str:
        return await ctx.request(ask, text="a")

    preview = workshop.open().preview(work)
    assert (preview.status, preview.error and preview.error.type) == ("failed", "InvalidValue")


def test_failed_step_sends_nothing_and_takes_its_requests_back(workshop: Workshop):
    @effect("reserve", undo=lambda call, answer: None, preview=lambda call, input: "r1", catalogue=workshop.catalogue)
    def reserve(call: EffectCall, text: str) -> str:
        raise AssertionError("it was called")

    @action("work", catalogue=workshop.catalogue)
    async def work(ctx: AsyncContext) -> None:
        ctx.stage(workshop.send, text="dropped")
        await ctx.request(reserve, text="a")
        await ctx.request(reserve, text="b")
        raise Fail("no")

    preview = workshop.open().preview(work)
    found = [(one.kind, one.input["text"]) for one in preview.effects]
    assert found == [("requested", "a"), ("requested", "b"), ("undone", "b"), ("undone", "a")]


# -- attempts ----------------------------------------------------------------------------------------------------------


def test_handler_is_run_once_and_the_policy_is_told(workshop: Workshop):
    called: list[int] = []

    @action("work", catalogue=workshop.catalogue)
    def work(ctx: Context) -> None:
        called.append(ctx.attempt)
        raise RetryLater("busy", after=60)

    preview = workshop.open().preview(work)
    assert (preview.status, called) == ("failed", [1])
    assert "would be tried again (up to 4 attempts)" in notes_of(preview)


def test_fallback_stands_in_for_what_failed(workshop: Workshop):
    @action("plan-b", catalogue=workshop.catalogue)
    async def plan_b(ctx: AsyncContext, text: str) -> str:
        ctx.stage(workshop.send, text="b")
        return f"b of {text}"

    @action("plan-a", fallback=plan_b, catalogue=workshop.catalogue)
    def plan_a(ctx: Context, text: str) -> str:
        ctx.stage(workshop.send, text="a")
        raise Fail("no")

    preview = workshop.open().preview(plan_a, text="x")
    assert (preview.status, preview.result) == ("completed", "b of x")
    assert [(step.name, step.status) for step in preview.steps] == [("plan-a", "failed"), ("plan-b", "completed")]
    assert [one.input["text"] for one in preview.effects] == ["b"]


def test_on_failure_actions_are_previewed(workshop: Workshop):
    @action("tell", catalogue=workshop.catalogue)
    def tell(ctx: Context, failure: Failure) -> None:
        ctx.stage(workshop.send, text=f"{failure.name}: {failure.error.message}")

    @action("work", on_failure=[tell], catalogue=workshop.catalogue)
    def work() -> None:
        raise Fail("no")

    preview = workshop.open().preview(work)
    assert [(one.step, one.input["text"]) for one in preview.effects] == [("on_failure:tell", "work: no")]


def test_time_limits_of_a_call_hold(workshop: Workshop):
    @action("slow", catalogue=workshop.catalogue)
    async def slow() -> None:
        await asyncio.Event().wait()

    preview = workshop.open().preview(slow.with_(timeout=0.01))
    assert (preview.status, preview.error and preview.error.type) == ("failed", "AttemptTimedOut")


def test_handler_that_refuses_to_end_is_left_behind(workshop: Workshop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dotdo.engine.preview_steps.ENDING", 0.01)
    released = threading.Event()

    @action("stubborn", timeout=0.01, catalogue=workshop.catalogue)
    async def stubborn() -> None:
        while not released.is_set():
            try:
                await asyncio.sleep(0.005)
            except asyncio.CancelledError:
                continue

    preview = workshop.open().preview(stubborn)
    released.set()
    assert preview.status == "incomplete"
    assert "did not end" in notes_of(preview)


def test_context_says_who_asks_and_that_there_is_no_run(workshop: Workshop):
    @action("work", catalogue=workshop.catalogue)
    def work(ctx: Context) -> list[Any]:
        return [ctx.run_id, ctx.step, ctx.actor, ctx.trail, ctx.idempotency_key.startswith(ctx.run_id)]

    client = workshop.open(actor="Ada")
    found = client.action("work", trail="t").preview().result
    assert found is not None
    assert found[0].startswith("preview_")
    assert found[1:] == ["work", "Ada", "t", True]
    assert found[0] not in (client.preview(work).result or [])


def test_wrong_calls_are_refused_as_for_runs(workshop: Workshop):
    @action("work", catalogue=workshop.catalogue)
    def work(number: int) -> int:
        return number

    client = workshop.open()
    with pytest.raises(InvalidInput, match="number"):
        client.action("work").preview(number="many")
    with pytest.raises(UnknownName):
        client.action("wrok").preview()
    with pytest.raises(UnknownName):
        client.action("work", version=2).preview(number=1)


def test_key_that_has_a_run_does_not_matter(workshop: Workshop):
    @action("work", catalogue=workshop.catalogue)
    def work(number: int) -> int:
        return number

    client = workshop.open()
    client.action("work", key="k").invoke(number=1)
    assert client.action("work", key="k").preview(number=2).result == 2
    assert client.preview(work.with_(key="k"), number=3).result == 3


def test_version_is_the_one_that_is_asked_for(workshop: Workshop):
    Action("work", lambda: 1, catalogue=workshop.catalogue)
    Action("work", lambda: 2, version=2, catalogue=workshop.catalogue)
    client = workshop.open()
    assert (client.action("work@1").preview().result, client.action("work").preview().result) == (1, 2)
    assert client.action("work").preview().version == 2


# -- services ----------------------------------------------------------------------------------------------------------


def test_timers_are_skipped_in_the_runs_own_time(workshop: Workshop):
    @action("work", catalogue=workshop.catalogue)
    async def work() -> str:
        return "done"

    @service("patient", catalogue=workshop.catalogue)
    async def patient() -> list[Any]:
        began = now()
        async with asyncio.timeout(3600):
            first = await work()  # takes no time of the run's own
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await sleep(3600)
        await sleep(30 * 24 * 3600)
        return [first, (now() - began).total_seconds()]

    client = workshop.open()
    preview = client.preview(patient)
    assert preview.result == ["done", 60.0 + 30 * 24 * 3600]
    assert [(step.kind, step.name, step.at) for step in preview.steps[1:]] == [
        ("timer", "1 min", 60_000),
        ("timer", "30 d", 60_000 + 30 * 24 * 3600 * 1000),
    ]
    assert client.service("patient", delay=5).preview().result == preview.result


def test_service_sees_failures_and_goes_on(workshop: Workshop):
    @action("work", catalogue=workshop.catalogue)
    def work(fails: bool) -> str:
        if fails:
            raise Fail("no")
        return "yes"

    @service("careful", catalogue=workshop.catalogue)
    async def careful() -> list[str]:
        try:
            await work(fails=True)
        except ActionFailed as error:
            return [error.error_message, await work(fails=False)]
        return []

    preview = workshop.open().preview(careful)
    assert (preview.status, preview.result) == ("completed", ["no", "yes"])
    assert steps_of(preview) == ["work failed", "work completed"]


def test_event_ends_the_preview_even_beside_a_timer(workshop: Workshop):
    @action("work", catalogue=workshop.catalogue)
    def work() -> None: ...

    @service("approval", catalogue=workshop.catalogue)
    async def approval() -> None:
        await work()
        await wait_for_event("approved", timeout=60)
        await work()

    preview = workshop.open().preview(approval)
    assert (preview.status, steps_of(preview)) == ("incomplete", ["work completed"])
    assert "waits for the event 'approved'" in notes_of(preview)


def test_children_are_previewed_in_place_and_undone_with_their_parent(workshop: Workshop):
    @action("work", catalogue=workshop.catalogue)
    def work(text: str) -> str:
        return text

    @work.undo
    def undo_work(text: str) -> None: ...

    @action("refuse", catalogue=workshop.catalogue)
    def refuse() -> None:
        raise Fail("no")

    @service("child", catalogue=workshop.catalogue)
    async def child(text: str, fails: bool = False) -> str:
        found = await work(text=text)
        await sleep(60)
        if fails:
            await refuse()
        return found.upper()

    @service("parent", catalogue=workshop.catalogue)
    async def parent(fails: bool = False) -> list[str]:
        found = [await child(text="a"), await call("child", text="b")]
        try:
            await child(text="c", fails=True)
        except ActionFailed as error:
            found.append(error.action)
        if fails:
            await refuse()
        return found

    client = workshop.open()
    preview = client.preview(parent)
    assert preview.result == ["A", "B", "child"]
    assert [step.status for step in preview.steps if step.kind == "service"] == ["completed", "completed", "failed"]
    assert [step.input["text"] for step in preview.steps if step.kind == "undo"] == ["c"]
    failed = client.preview(parent, fails=True)
    assert [step.input["text"] for step in failed.steps if step.kind == "undo"] == ["c", "b", "a"]
    assert failed.steps[-1].at == 180_000


def test_child_that_takes_longer_than_its_parent_allows(workshop: Workshop):
    @service("child", catalogue=workshop.catalogue)
    async def child() -> None:
        await sleep(3600)

    @service("parent", catalogue=workshop.catalogue)
    async def parent() -> str:
        try:
            async with asyncio.timeout(60):
                await child()
        except TimeoutError:
            return "too late"
        return "in time"

    preview = workshop.open().preview(parent)
    assert preview.result == "too late"
    assert "cancelled this child while it was under way" in notes_of(preview)


def test_sibling_that_is_cancelled_before_its_turn_is_told(workshop: Workshop):
    @action("work", catalogue=workshop.catalogue)
    def work() -> None: ...

    @action("refuse", catalogue=workshop.catalogue)
    def refuse() -> None:
        raise Fail("no")

    @service("group", catalogue=workshop.catalogue)
    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(refuse())
            tasks.create_task(work())

    preview = workshop.open().preview(group)
    assert preview.status == "failed"
    assert steps_of(preview) == ["refuse failed", "work cancelled"]
    assert "In a run it may have begun" in notes_of(preview)


def test_pivot_and_undo_false_keep_what_they_keep(workshop: Workshop):
    def define(name: str, *, pivot: bool = False) -> Action[..., Any]:
        def handler() -> str:
            return name

        def undo(done: str) -> None: ...

        return Action(name, handler, undo=undo, pivot=pivot, catalogue=workshop.catalogue)

    before, pivot, after = define("before"), define("pivot", pivot=True), define("after")

    async def code() -> None:
        await before()
        await pivot()
        await after()
        raise Fail("no")

    service("undoes", catalogue=workshop.catalogue)(code)

    async def halts() -> None:
        await before()
        raise Fail("no")

    service("halts", undo=False, catalogue=workshop.catalogue)(halts)
    client = workshop.open()
    undone = [step.id for step in client.service("undoes").preview().steps if step.kind == "undo"]
    assert [id.split(":")[1] for id in undone] == ["after"]
    halted = client.service("halts").preview()
    assert (halted.status, steps_of(halted)) == ("failed", ["before completed"])


def test_undo_that_fails_is_told(workshop: Workshop):
    def refuse(done: str) -> None:
        raise Fail("cannot")

    work = Action("work", lambda: "done", undo=refuse, catalogue=workshop.catalogue)

    @service("doomed", catalogue=workshop.catalogue)
    async def doomed() -> None:
        await work()
        raise Fail("no")

    @service("careful", catalogue=workshop.catalogue)
    async def careful() -> None:
        step = work()
        await step
        await step.undo()

    client = workshop.open()
    for preview in (client.preview(doomed), client.preview(careful)):
        assert (preview.status, steps_of(preview)) == ("blocked", ["work completed", "undo failed"])
        assert preview.error is not None
        assert "Could not be undone: work:" in preview.error.message


def test_step_that_the_service_undoes_by_hand_is_not_undone_again(workshop: Workshop):
    def undo(done: str) -> None: ...

    work = Action("work", lambda: "done", undo=undo, pivot=True, catalogue=workshop.catalogue)

    @service("thorough", catalogue=workshop.catalogue)
    async def thorough() -> None:
        step = work()
        await step
        await step.undo()
        raise Fail("no")

    preview = workshop.open().preview(thorough)
    assert (preview.status, steps_of(preview)) == ("failed", ["work completed", "undo completed"])


@pytest.mark.parametrize("on_bug", ["block", "fail"])
def test_bug_in_a_service_is_told(workshop: Workshop, on_bug: Any):
    @service("buggy", on_bug=on_bug, catalogue=workshop.catalogue)
    async def buggy() -> None:
        raise KeyError("oops")

    preview = workshop.open().preview(buggy)
    assert preview.status == ("blocked" if on_bug == "block" else "failed")
    assert preview.error is not None
    assert preview.error.type == "KeyError"


async def _deadlock() -> None:
    await asyncio.get_running_loop().create_future()


async def _io() -> None:
    await asyncio.to_thread(print)


async def _spins() -> None:
    while True:  # noqa: ASYNC110 - that is what is wrong with it
        await asyncio.sleep(0)


async def _not_json() -> Any:
    return object()


@pytest.mark.parametrize(
    "code, told",
    [(_deadlock, "nothing can bring about"), (_io, "cannot do I/O"), (_spins, "without waiting"), (_not_json, "JSON")],
)
def test_service_that_would_be_blocked_says_why(workshop: Workshop, code: Any, told: str):
    service("wrong", catalogue=workshop.catalogue)(code)
    preview = workshop.open().service("wrong").preview()
    assert preview.status == "blocked"
    assert preview.error is not None
    assert told in preview.error.message


def test_deadline_passes_in_the_runs_own_time(workshop: Workshop):
    work = Action("work", lambda: "done", undo=lambda done: None, catalogue=workshop.catalogue)

    @service("slow", catalogue=workshop.catalogue)
    async def slow() -> None:
        await work()
        await sleep(3600)

    client = workshop.open()
    preview = client.service("slow", deadline=60).preview()
    assert (preview.status, preview.error and preview.error.type) == ("failed", "DeadlineExceeded")
    assert steps_of(preview) == ["work completed", "undo completed"]
    assert preview.steps[-1].at == 60_000
    assert client.service("slow", deadline=7200).preview().status == "completed"


def test_service_that_continues_as_new_ends_the_preview(workshop: Workshop):
    @service("rounds", catalogue=workshop.catalogue)
    async def rounds(number: int) -> None:
        await sleep(60)
        continue_as_new(number=number + 1)

    preview = workshop.open().preview(rounds, number=1)
    assert (preview.status, len(preview.steps)) == ("incomplete", 1)
    assert "continues as new" in notes_of(preview)


def test_many_items_are_previewed_one_at_a_time(workshop: Workshop):
    @action("square", catalogue=workshop.catalogue)
    async def square(number: int) -> int:
        return number * number

    @service("squares", catalogue=workshop.catalogue)
    async def squares() -> list[int]:
        return await map(square, [1, 2, 3, 4, 5], limit=2)

    assert workshop.open().preview(squares).result == [1, 4, 9, 16, 25]


def test_endless_services_and_families_end(workshop: Workshop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rehearsing, "MAX_STEPS", 20)
    monkeypatch.setattr(preview_services, "MAX_DEPTH", 5)

    @service("endless", catalogue=workshop.catalogue)
    async def endless() -> None:
        while True:
            await sleep(60)

    @service("family", catalogue=workshop.catalogue)
    async def family() -> None:
        await family()

    client = workshop.open()
    long, deep = client.preview(endless), client.preview(family)
    assert (long.status, len(long.steps)) == ("incomplete", 20)
    assert "20 steps" in notes_of(long)
    assert (deep.status, len(deep.steps)) == ("incomplete", 5)
    assert "5 levels" in notes_of(deep)


# -- clients -----------------------------------------------------------------------------------------------------------


def test_typed_result_and_plain_result(workshop: Workshop):
    @action("work", catalogue=workshop.catalogue)
    def work(failure: Failure) -> Failure:
        return failure

    failure = Failure("r", "n", None, ErrorRecord("E", "m"))
    client = workshop.open()
    assert client.preview(work, failure=failure).result == failure
    plain: Any = client.action("work").preview(failure=failure).result
    assert plain["error"]["message"] == "m"


def test_cap_ends_a_preview_and_says_so(workshop: Workshop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(previewing, "MAX_SECONDS", 0.05)

    @action("slow", catalogue=workshop.catalogue)
    async def slow() -> None:
        await asyncio.Event().wait()

    client = workshop.open()
    for preview in (client.preview(slow), client.action("slow", wait=60).preview()):
        assert (preview.status, [step.status for step in preview.steps]) == ("incomplete", ["incomplete"])
        assert "may take 0.05 s in all" in notes_of(preview)


def test_caller_that_gives_up_and_client_that_closes_end_their_previews():
    catalogue, ends = Catalogue(), list[str]()

    async def main() -> None:
        began = asyncio.Queue[None]()

        @action("slow", catalogue=catalogue)
        async def slow(name: str) -> None:
            began.put_nowait(None)
            try:
                await asyncio.Event().wait()
            finally:
                ends.append(name)

        async with asyncio.timeout(PATIENCE), AsyncDo("sqlite://", catalogue=catalogue) as client:
            given_up = asyncio.create_task(client.preview(slow, name="given up"))
            await began.get()
            given_up.cancel()
            with pytest.raises(asyncio.CancelledError):
                await given_up
            closed = asyncio.create_task(client.action("slow").preview(name="closed"))
            await began.get()
            await client.close()
            with pytest.raises(ClientClosed):
                await closed

    asyncio.run(main())
    assert ends == ["given up", "closed"]


def test_closed_client_makes_no_previews(workshop: Workshop):
    Action("work", lambda: 1, catalogue=workshop.catalogue)
    client = workshop.open()
    client.close()
    with pytest.raises(ClientClosed):
        client.action("work").preview()
