"""Requests: the intent is journaled before the call, the answer is replayed, and a step that fails takes them back."""

import asyncio
from typing import Any

import apsw
import msgspec
import pytest

from dotdo import (
    ActionFailed,
    AsyncContext,
    Context,
    DefinitionError,
    Effect,
    EffectCall,
    Fail,
    Retry,
    RunBlocked,
    action,
    service,
)
from dotdo.journal import read
from tests.workshop import PATIENCE, Receiver, Workshop, data, kinds


class Customer(msgspec.Struct):
    id: str
    tags: list[str]


async def create_customer(call: EffectCall, name: str) -> Customer:
    return Customer(call.resource(Receiver).take("customer", name, call), [name])


def test_answer_comes_back_in_async_and_sync_handlers(workshop: Workshop):
    @action("buy-async", catalogue=workshop.catalogue)
    async def buy_async(ctx: AsyncContext) -> str:
        return await ctx.request(workshop.order, text="bread")

    @action("buy", catalogue=workshop.catalogue)
    def buy(ctx: Context) -> str:
        return ctx.request(workshop.order, text="milk")

    client = workshop.open()
    assert client.run(buy_async) == "order bread: 1"
    assert client.run(buy) == "order milk: 2"


def test_intent_is_durable_before_the_call(workshop: Workshop):
    seen: list[list[str]] = []
    client = workshop.open()

    class Watching(Receiver):
        def take(self, what: str, text: str, call: EffectCall) -> str:
            seen.append([row[0] for row in stored(workshop, call.run_id)])
            return super().take(what, text, call)

    @action("buy", catalogue=workshop.catalogue)
    async def buy(ctx: AsyncContext) -> str:
        return await ctx.request(workshop.order, text="bread")

    client.close()
    handle = workshop.open(resources=[Watching()]).start(buy)
    handle.result(timeout=PATIENCE)

    assert seen == [["accepted", "requested"]]
    assert kinds(handle) == ["accepted", "requested", "answered", "completed", "ended"]
    (intent,) = data(handle, "requested")
    assert (intent.effect, intent.version, bytes(intent.input)) == ("order", 1, b'{"text":"bread"}')


def stored(workshop: Workshop, run: str) -> list[tuple[str]]:
    """The kinds of a run's entries as another connection to the store sees them: what is committed."""
    connection = apsw.Connection(str(workshop.store), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return list(connection.execute("select kind from journal where run = ? order by seq", (run,)))
    finally:
        connection.close()


def test_retry_replays_the_answer_instead_of_asking_again(workshop: Workshop):
    answers: list[str] = []

    @action("buy", retry=3, catalogue=workshop.catalogue)
    async def buy(ctx: AsyncContext) -> str:
        answers.append(await ctx.request(workshop.order, text="bread"))
        if ctx.attempt < 3:
            raise ConnectionError("later")
        return answers[-1]

    handle = workshop.open().start(buy)
    workshop.clock.advance_to_next()
    workshop.clock.advance_to_next()
    assert handle.result(timeout=PATIENCE) == "order bread: 1"

    assert answers == ["order bread: 1"] * 3
    assert len(workshop.receiver.heard) == 1


def test_replayed_answer_has_its_type(workshop: Workshop):
    create = Effect("create-customer", create_customer, dedup="key", catalogue=workshop.catalogue)
    answers: list[Customer] = []

    @action("sign-up", retry=2, catalogue=workshop.catalogue)
    async def sign_up(ctx: AsyncContext) -> None:
        answers.append(await ctx.request(create, name="ada"))
        if ctx.attempt == 1:
            raise ConnectionError("later")

    handle = workshop.open().start(sign_up)
    workshop.clock.advance_to_next()
    handle.result(timeout=PATIENCE)

    assert answers == [Customer("customer ada: 1", ["ada"])] * 2


def test_answer_is_replayed_after_a_restart(workshop: Workshop):
    @action("buy", retry=2, catalogue=workshop.catalogue)
    async def buy(ctx: AsyncContext) -> str:
        answer = await ctx.request(workshop.order, text="bread")
        if ctx.attempt == 1:
            raise ConnectionError("later")
        return answer

    before = workshop.open()
    handle = before.start(buy)
    workshop.receiver.wait_for("order")
    before.close()

    after = workshop.open()
    workshop.clock.advance("1 day")
    assert after.runs.wait(handle.id, timeout=PATIENCE).result == "order bread: 1"
    assert len(workshop.receiver.heard) == 1


def test_equal_requests_of_one_attempt_are_two_and_each_keeps_its_answer(workshop: Workshop):
    seen: list[list[str]] = []

    @action("buy", retry=2, catalogue=workshop.catalogue)
    async def buy(ctx: AsyncContext) -> None:
        seen.append([await ctx.request(workshop.order, text="bread"), await ctx.request(workshop.order, text="bread")])
        if ctx.attempt == 1:
            raise ConnectionError("later")

    handle = workshop.open().start(buy)
    workshop.clock.advance_to_next()
    handle.result(timeout=PATIENCE)

    assert seen == [["order bread: 1", "order bread: 2"]] * 2
    assert len(set(workshop.receiver.keys("order"))) == 2


def test_failed_call_is_made_again_under_its_key(workshop: Workshop):
    @action("buy", retry=3, catalogue=workshop.catalogue)
    async def buy(ctx: AsyncContext) -> str:
        return await ctx.request(workshop.order, text="bread")

    workshop.receiver.fail("order", ConnectionError("no answer"), ConnectionError("no answer"))
    handle = workshop.open().start(buy)
    workshop.clock.advance_to_next()
    workshop.clock.advance_to_next()
    handle.result(timeout=PATIENCE)

    assert len(workshop.receiver.keys("order")) == 3
    assert len(set(workshop.receiver.keys("order"))) == 1
    assert len(data(handle, "requested")) == 1


class Slow:
    """What a call waits for that is seen through in spite of its cancellation."""

    def __init__(self) -> None:
        self.began, self.cancelled, self.may_end = asyncio.Event(), asyncio.Event(), asyncio.Event()


async def see_through(call: EffectCall, text: str) -> str:
    answer = call.resource(Receiver).take("through", text, call)
    slow = call.resource(Slow)
    slow.began.set()
    try:
        await slow.may_end.wait()
    except asyncio.CancelledError:
        slow.cancelled.set()
        await slow.may_end.wait()
    return answer


def test_call_that_was_cut_short_and_answered_all_the_same_is_not_made_again(workshop: Workshop):
    """The next attempt asks while it is still on its way out. The receiver honours no key."""
    through = Effect("through", see_through, catalogue=workshop.catalogue)

    @action("buy", retry=Retry(attempts=2, delay=0, jitter=False), catalogue=workshop.catalogue)
    async def buy(ctx: AsyncContext) -> str:
        asking = asyncio.ensure_future(ctx.request(through, text="bread"))
        slow = ctx.resource(Slow)
        if ctx.attempt == 1:
            await slow.began.wait()
            asking.cancel()
            await slow.cancelled.wait()
            raise ConnectionError("too slow")
        for _ in range(10):  # turns of the loop, in which it comes to wait for the call of the first attempt
            await asyncio.sleep(0)
        slow.may_end.set()
        return await asking

    handle = workshop.open(resources=[workshop.receiver, Slow()]).start(buy)
    assert handle.result(timeout=PATIENCE) == "through bread: 1"
    assert len(workshop.receiver.heard) == 1
    assert kinds(handle, "buy") == ["requested", "attempt_failed", "answered", "completed"]


def test_final_failure_undoes_requests_newest_first(workshop: Workshop):
    @action("buy", retry=2, catalogue=workshop.catalogue)
    async def buy(ctx: AsyncContext) -> None:
        for item in ("bread", "milk", "eggs"):
            await ctx.request(workshop.order, text=item)
        raise ConnectionError("no")

    handle = workshop.open().start(buy)
    workshop.receiver.wait_for("order", 3)
    assert workshop.receiver.texts("cancel") == []  # an attempt is left
    workshop.clock.advance_to_next()
    with pytest.raises(ActionFailed):
        handle.result(timeout=PATIENCE)

    assert workshop.receiver.texts("order") == ["bread", "milk", "eggs"]
    assert workshop.receiver.texts("cancel") == [
        "eggs (order eggs: 3)",
        "milk (order milk: 2)",
        "bread (order bread: 1)",
    ]
    assert kinds(handle, "buy")[-5:] == ["attempt_failed", *["request_undone"] * 3, "failed"]


def test_undo_of_a_request_is_tried_until_it_is_done(workshop: Workshop):
    @action("buy", retry=1, catalogue=workshop.catalogue)
    async def buy(ctx: AsyncContext) -> None:
        await ctx.request(workshop.order, text="bread")
        raise Fail("no")

    workshop.receiver.fail("cancel", ConnectionError("busy"), ConnectionError("busy"))
    handle = workshop.open().start(buy)
    workshop.clock.advance_to_next()
    workshop.clock.advance_to_next()
    with pytest.raises(ActionFailed):
        handle.result(timeout=PATIENCE)

    assert [one.attempt for one in workshop.receiver.heard if one.what == "cancel"] == [1, 2, 3]
    assert len(set(workshop.receiver.keys("cancel"))) == 1
    assert set(workshop.receiver.keys("cancel")).isdisjoint(workshop.receiver.keys("order"))


def test_request_that_was_refused_is_not_undone(workshop: Workshop):
    @action("buy", retry=1, catalogue=workshop.catalogue)
    async def buy(ctx: AsyncContext) -> None:
        await ctx.request(workshop.order, text="bread")

    workshop.receiver.fail("order", Fail("sold out"))
    handle = workshop.open().start(buy)
    with pytest.raises(ActionFailed, match="sold out"):
        handle.result(timeout=PATIENCE)

    assert workshop.receiver.texts("cancel") == []
    assert "request_failed" in kinds(handle, "buy")


def test_undone_requests_are_asked_anew_under_new_keys(workshop: Workshop):
    """Also when another request of the step, which nothing takes back, stands: its answer is kept."""
    broken = [True]

    @action("buy", retry=1, catalogue=workshop.catalogue)
    async def buy(ctx: AsyncContext) -> list[str]:
        answers = [await ctx.request(workshop.ask, text="price"), await ctx.request(workshop.order, text="bread")]
        if broken.pop():
            raise Fail("no")
        return answers

    client = workshop.open()
    handle = client.start(buy)
    with pytest.raises(ActionFailed):
        handle.result(timeout=PATIENCE)
    broken.append(False)
    client.runs.retry(handle.id)
    client.runs.wait(handle.id, timeout=PATIENCE)

    assert workshop.receiver.texts("order") == ["bread", "bread"]
    first, second = workshop.receiver.keys("order")
    assert first != second


def test_fallback_does_not_replay_an_undone_request(workshop: Workshop):
    @action("buy-elsewhere", catalogue=workshop.catalogue)
    async def buy_elsewhere(ctx: AsyncContext) -> list[str]:
        return [await ctx.request(workshop.ask, text="price"), await ctx.request(workshop.order, text="bread")]

    @action("buy", retry=1, fallback=buy_elsewhere, catalogue=workshop.catalogue)
    async def buy(ctx: AsyncContext) -> list[str]:
        await ctx.request(workshop.ask, text="price")
        await ctx.request(workshop.order, text="bread")
        raise Fail("no")

    assert workshop.open().run(buy) == ["ask price: 1", "order bread: 4"]

    assert [(one.what, one.text) for one in workshop.receiver.heard] == [
        ("ask", "price"),  # nothing takes it back, so its answer still stands
        ("order", "bread"),
        ("cancel", "bread (order bread: 2)"),
        ("order", "bread"),
    ]
    first, second = workshop.receiver.keys("order")
    assert first != second


def test_requests_of_a_cancelled_step_are_undone(workshop: Workshop):
    @action("buy", retry=5, catalogue=workshop.catalogue)
    async def buy(ctx: AsyncContext) -> None:
        await ctx.request(workshop.order, text="bread")
        raise ConnectionError("later")

    @service("shop", catalogue=workshop.catalogue)
    async def shop() -> None:
        await buy()

    client = workshop.open()
    handle = client.start(shop)
    workshop.receiver.wait_for("order")
    handle.cancel()
    workshop.receiver.wait_for("cancel")

    assert workshop.receiver.texts("cancel") == ["bread (order bread: 1)"]


def test_undo_of_a_completed_step_leaves_its_requests_to_its_own_undo(workshop: Workshop):
    """What a completed step asked for belongs to it: its undo knows how to take it back, and is told the answer."""

    @action("buy", catalogue=workshop.catalogue)
    async def buy(ctx: AsyncContext) -> str:
        return await ctx.request(workshop.order, text="bread")

    @buy.undo
    def give_back(ctx: Context, receipt: str, input: dict[str, Any]) -> None:
        ctx.stage(workshop.send, text=f"return {receipt} {input}")

    @action("refuse", retry=1, catalogue=workshop.catalogue)
    def refuse() -> None:
        raise Fail("no")

    @service("shop", catalogue=workshop.catalogue)
    async def shop() -> None:
        await buy()
        await refuse()

    handle = workshop.open().start(shop)
    with pytest.raises(ActionFailed):
        handle.result(timeout=PATIENCE)
    assert workshop.receiver.texts() == ["bread", "return order bread: 1 {}"]


def test_undo_that_could_not_be_called_is_refused_when_it_is_defined(workshop: Workshop):
    def wants_an_id(call: EffectCall, id: str) -> None:
        raise NotImplementedError

    def takes_no_call(answer: str) -> None:
        raise NotImplementedError

    for function in (wants_an_id, takes_no_call):
        with pytest.raises(DefinitionError, match=function.__name__):
            Effect("order-2", create_customer, undo=function, catalogue=workshop.catalogue)
        with pytest.raises(DefinitionError, match=function.__name__):
            Effect("order-3", create_customer, lookup=function, catalogue=workshop.catalogue)


def test_journal_says_whose_attempt_asked(workshop: Workshop):
    @action("buy", retry=2, catalogue=workshop.catalogue)
    async def buy(ctx: AsyncContext) -> None:
        if ctx.attempt == 1:
            raise ConnectionError("later")
        await ctx.request(workshop.order, text="bread")

    handle = workshop.open().start(buy)
    workshop.clock.advance_to_next()
    handle.result(timeout=PATIENCE)

    asked = [
        (entry.kind, entry.step, entry.attempt) for entry in handle.journal() if entry.kind in ("requested", "answered")
    ]
    assert asked == [("requested", "buy", 2), ("answered", "buy", 2)]
    answered = [read(entry) for entry in handle.journal() if entry.kind == "answered"]
    assert bytes(answered[0].answer) == b'"order bread: 1"'


@pytest.mark.parametrize("shape", ["async", "group", "thread", "everything"])
def test_handler_cannot_swallow_that_nobody_knows_what_happened(workshop: Workshop, shape: str):
    """The answer was lost with its engine and nothing can find out: a person must decide, whatever the handler does."""

    async def swallow(ctx: AsyncContext) -> str:
        try:
            return await ctx.request(workshop.hang, text="bread")
        except Exception:
            return "it has probably happened"

    async def wrap_in_a_group(ctx: AsyncContext) -> str:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(ctx.request(workshop.hang, text="bread"))
        return task.result()

    def swallow_in_a_thread(ctx: Context) -> str:
        try:
            return ctx.request(workshop.hang, text="bread")
        except Exception:
            return "it has probably happened"

    async def swallow_everything(ctx: AsyncContext) -> str:
        try:
            return await ctx.request(workshop.hang, text="bread")
        except BaseException:
            return "it has probably happened"

    handlers: dict[str, Any] = {
        "async": swallow,
        "group": wrap_in_a_group,
        "thread": swallow_in_a_thread,
        "everything": swallow_everything,
    }
    buy = action("buy", retry=3, catalogue=workshop.catalogue)(handlers[shape])

    before = workshop.open(grace=0.0)
    handle = before.start(buy)
    workshop.receiver.wait_for("hang")
    before.close()
    after = workshop.open()
    with pytest.raises(RunBlocked, match="Nobody knows whether hang happened"):
        after.runs.wait(handle.id, timeout=PATIENCE)

    run = after.runs.get(handle.id)
    assert run.waiting_for is not None
    assert (run.status, run.waiting_for.kind) == ("blocked", "person")
    assert workshop.receiver.texts("hang") == ["bread"]


def test_lost_answer_is_asked_for_again_where_the_receiver_honours_the_key(workshop: Workshop):
    keyed = Effect("order-once", order_and_hang_at_first, dedup="key", catalogue=workshop.catalogue)

    @action("buy", retry=3, catalogue=workshop.catalogue)
    async def buy(ctx: AsyncContext) -> str:
        return await ctx.request(keyed, text="bread")

    before = workshop.open(grace=0.0)
    handle = before.start(buy)
    workshop.receiver.wait_for("order-once")
    before.close()
    after = workshop.open()

    assert after.runs.wait(handle.id, timeout=PATIENCE).result == "order-once bread: 2"
    first, second = workshop.receiver.keys("order-once")
    assert first == second


async def order_and_hang_at_first(call: EffectCall, text: str) -> str:
    answer = call.resource(Receiver).take("order-once", text, call)
    if len(call.resource(Receiver).heard) == 1:
        await asyncio.get_running_loop().create_future()
    return answer
