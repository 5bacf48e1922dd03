"""A run that stops settles everything in flight before it undoes anything, and whoever commits first wins.

What is in flight stands at gates, so each test says exactly what has happened when the run is stopped.
"""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from dotdo import (
    ActionFailed,
    AsyncContext,
    AsyncHandle,
    Catalogue,
    EffectCall,
    Fail,
    Retry,
    RetryLater,
    RunBlocked,
    RunCancelled,
    action,
    effect,
    service,
    wait_for_event,
)
from dotdo.errors import InvalidOperation
from dotdo.records import Outcome
from tests.guarantees.lab import Lab, World, book, catalogue, in_loop, laboratory, note, refuse


async def tear_up(call: EffectCall, answer: str) -> None:
    world = call.resource(World)
    world.say(f"tear up {answer}")
    if world.failures.get("tear up"):
        raise Fail("it is laminated")


async def at_the_counter(call: EffectCall, name: str) -> str:
    world = call.resource(World)
    world.say(f"ask for {name}")
    await world.pass_gate(f"counter {name}")
    if world.failures.get(f"counter {name}"):
        raise ConnectionError("the counter has closed")
    return f"form {name}"


async def send_form(call: EffectCall, name: str) -> str:
    return await at_the_counter(call, name)


form = effect("race.form", undo=tear_up, retry=1, catalogue=catalogue)(at_the_counter)
letter = effect("race.letter", dedup="key", retry=3, catalogue=catalogue)(send_form)


@action("ask-for-form", retry=1, catalogue=catalogue)
async def ask_for_form(ctx: AsyncContext, name: str) -> str:
    answer = await ctx.request(form, name=name)
    await ctx.resource(World).pass_gate(f"desk {name}")
    return answer


@action("post-letters", catalogue=catalogue)
async def post_letters(ctx: AsyncContext, names: list[str]) -> None:
    for name in names:
        ctx.stage(letter, name=name)


@service("asks-beside", catalogue=catalogue)
async def asks_beside(names: list[str]) -> list[str]:
    await book(item="trip")
    return list(await asyncio.gather(*(ask_for_form(name=name) for name in names)))


def lose(lab: Lab, name: str) -> None:
    """The form's counter closes without a word; whoever stands there is let go."""
    lab.world.fail(f"counter {name}", 99)
    lab.world.open(f"counter {name}")


@in_loop
async def test_block_of_one_step_leaves_alone_what_parallel_steps_have_asked_for(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(asks_beside, names=["a", "b", "c"])
        lab.world.open("counter a")
        await lab.world.reached("desk a")  # a has its answer; b is about to lose its own; c waits for its own
        await lab.world.reached("counter c")
        lose(lab, "b")
        lab.world.open("counter c")  # goes on to its answer, because it has begun
        with pytest.raises(RunBlocked, match=r"Nobody knows whether race.form happened"):
            await handle.result()
        assert not [text for text in lab.world.said if text.startswith(("tear", "unbook"))]
        answered = [one.request for one in await lab.data(handle.id, "answered")]
        assert len(answered) == 2
        for desk in "abc":
            lab.world.open(f"desk {desk}")
        await lab.client.runs.resolve(handle.id, "happened", answer="form b")
        assert await handle.result() == ["form a", "form b", "form c"]
        assert sorted(lab.world.said) == ["ask for a", "ask for b", "ask for c", "book trip"]


@pytest.mark.usefixtures("both_doors")
@in_loop
async def test_questions_of_parallel_steps_are_asked_together_and_answered_one_by_one(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(asks_beside, names=["a", "b"])
        for name in "ab":
            await lab.world.reached(f"counter {name}")
        for name in "ab":
            lose(lab, name)
            lab.world.open(f"desk {name}")
        with pytest.raises(RunBlocked):
            await handle.result()
        first, second = sorted((await handle.get()).questions, key=lambda question: question.input["name"])
        with pytest.raises(InvalidOperation, match="several open questions"):
            await lab.client.runs.resolve(handle.id, "happened", answer="form a")
        await lab.client.runs.resolve(handle.id, "happened", answer="form a", key=first.key)
        with pytest.raises(RunBlocked):
            await handle.result()
        assert (await handle.get()).questions == [second]
        with pytest.raises(InvalidOperation, match="no such open question"):
            await lab.client.runs.resolve(handle.id, "happened", answer="form a", key=first.key)
        await lab.client.runs.resolve(handle.id, "happened", answer="form b", step=second.step)
        assert await handle.result() == ["form a", "form b"]
        assert (await handle.get()).generation == 1
        assert len(await lab.entries(handle.id, "resolved")) == 2


@pytest.mark.usefixtures("both_doors")
@in_loop
async def test_both_answers_at_once(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(asks_beside, names=["a", "b"])
        for name in "ab":
            await lab.world.reached(f"counter {name}")
            lab.world.open(f"desk {name}")
        for name in "ab":
            lose(lab, name)
        with pytest.raises(RunBlocked):
            await handle.result()
        questions = (await handle.get()).questions
        answers = [
            lab.client.runs.resolve(handle.id, "happened", answer=f"form {one.input['name']}", key=one.key)
            for one in questions
        ]
        await asyncio.gather(*answers)
        assert await handle.result() == ["form a", "form b"]


async def cancelled(lab: Lab, handle: "AsyncHandle[Any]") -> list[str]:
    run = await lab.until_status(handle.id, "cancelled")
    assert run.undo == "all"
    return lab.world.said


@in_loop
async def test_call_under_way_goes_on_to_its_answer_and_is_taken_back(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(asks_beside, names=["a"])
        await lab.world.reached("counter a")
        await handle.cancel()
        await lab.until_status(handle.id, "stopping")
        waiting = (await handle.get()).waiting_for
        assert waiting is not None
        assert (waiting.kind, waiting.text) == ("answer", "the answer of race.form")
        lab.world.open("counter a")
        assert await cancelled(lab, handle) == ["book trip", "ask for a", "tear up form a", "unbook trip"]


@pytest.mark.parametrize("outcome", ["happened", "did_not_happen"])
@in_loop
async def test_nothing_is_undone_before_what_nobody_knows_is_settled(tmp_path: Path, outcome: Outcome):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(asks_beside, names=["a"])
        await lab.world.reached("counter a")
        await handle.cancel()
        await lab.until_status(handle.id, "stopping")
        lose(lab, "a")
        blocked = await lab.until_status(handle.id, "blocked")
        assert lab.world.said == ["book trip", "ask for a"]
        (question,) = blocked.questions
        answer = "form a" if outcome == "happened" else None
        await lab.client.runs.resolve(handle.id, outcome, answer=answer, key=question.key)
        taken_back = ["tear up form a"] if outcome == "happened" else []
        assert await cancelled(lab, handle) == ["book trip", "ask for a", *taken_back, "unbook trip"]


@in_loop
async def test_undo_of_a_request_that_fails_for_good_blocks_once_the_rest_is_undone(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        lab.world.fail("tear up", 1)
        lab.world.open("counter a")
        handle = await lab.client.start(asks_beside, names=["a"])
        await lab.world.reached("desk a")
        await handle.cancel()
        blocked = await lab.until_status(handle.id, "blocked")
        assert lab.world.said == ["book trip", "ask for a", "tear up form a", "unbook trip"]
        (question,) = blocked.questions
        assert (question.about, question.effect) == ("request_undo", "race.form")
        await lab.client.runs.resolve(handle.id, "did_not_happen")
        run = await lab.until_status(handle.id, "cancelled")
        assert [one.partition(": ")[2] for one in run.not_undone] == ["race.form"]


@service("posts", catalogue=catalogue)
async def posts(names: list[str]) -> None:
    await book(item="trip")
    await post_letters(names=names)


@in_loop
async def test_deliveries_under_way_are_settled_and_listed_and_no_new_one_begins(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(posts, names=["sent", "lost"])
        await lab.world.reached("counter sent")
        await lab.world.reached("counter lost")
        await handle.cancel()
        await lab.until_status(handle.id, "stopping")
        lab.world.open("counter sent")
        lose(lab, "lost")
        run = await lab.until_status(handle.id, "cancelled")
        assert [one.partition(": ")[2] for one in run.not_undone] == ["race.letter", "race.letter (perhaps)"]
        assert sorted(lab.world.said) == ["ask for lost", "ask for sent", "book trip", "unbook trip"]


plain = effect("race.plain", retry=1, catalogue=catalogue)(send_form)


@action("asks-for-no-form", retry=1, catalogue=catalogue)
async def asks_for_no_form(ctx: AsyncContext, name: str) -> str:
    return await ctx.request(plain, name=name)


@in_loop
async def test_retry_of_a_run_that_was_stopped_asks_what_did_not_matter_before(tmp_path: Path):
    """Nothing takes the request back, so the stopped run only listed it; to send it again would be a guess."""
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(asks_for_no_form, name="a")
        await lab.world.reached("counter a")
        await handle.cancel()
        await lab.until_status(handle.id, "stopping")
        lose(lab, "a")
        run = await lab.until_status(handle.id, "cancelled")
        assert run.not_undone == ["asks-for-no-form: race.plain (perhaps)"]
        await lab.client.runs.retry(handle.id)
        with pytest.raises(RunBlocked, match=r"Nobody knows whether race.plain happened"):
            await handle.result()
        assert lab.world.said == ["ask for a"]
        await lab.client.runs.resolve(handle.id, "happened", answer="form a")
        assert await handle.result() == "form a"


@effect("race.full", dedup="key", retry=Retry(attempts=3, delay=3600), catalogue=catalogue)
async def full(call: EffectCall) -> None:
    raise RetryLater("the box is full")


@action("posts-to-a-full-box", catalogue=catalogue)
async def posts_to_a_full_box(ctx: AsyncContext) -> None:
    ctx.stage(full)


@service("posts-when-approved", catalogue=catalogue)
async def posts_when_approved() -> None:
    await wait_for_event("approved")
    await posts_to_a_full_box()


@in_loop
async def test_what_was_committed_after_a_crash_was_tried_by_nobody_else(tmp_path: Path):
    """A process that dies may have sent what it had committed, unseen; not what the next one committed."""
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(posts_when_approved)
        await lab.until_asleep(handle.id)
        await lab.sql("update runs set crashed = 1 where id = :id", id=handle.id)
        await handle.send_event("approved")
        await lab.until_journal_has(handle.id, "delivery_failed")
        await handle.cancel()
        run = await lab.until_status(handle.id, "cancelled")
        assert [claimed.crashed for claimed in await lab.data(handle.id, "claimed")] == [1]
        assert run.not_undone == []


async def send_parcel(call: EffectCall, name: str) -> None:
    world = call.resource(World)
    world.say(f"{name} under {call.key}")
    await world.pass_gate(f"counter {name}")
    if world.failures.get(f"counter {name}"):
        raise ConnectionError("the counter has closed")


known = effect("race.known", dedup="key", retry=3, catalogue=catalogue)(send_parcel)
unmarked = effect("race.unmarked", retry=3, catalogue=catalogue)(send_parcel)


@action("send-parcels", catalogue=catalogue)
async def send_parcels(ctx: AsyncContext) -> None:
    for name in ("first", "second"):
        ctx.stage(known, name=name)
    ctx.stage(unmarked, name="third")


@in_loop
async def test_what_was_perhaps_sent_keeps_its_key_when_its_step_is_done_again(tmp_path: Path):
    """A receiver that knows our keys takes it once; of the one that does not, a person says whether it has it."""
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(send_parcels)
        for name in ("first", "second", "third"):
            await lab.world.reached(f"counter {name}")
        await handle.cancel()
        await lab.until_status(handle.id, "stopping")
        lab.world.open("counter first")
        for name in ("second", "third"):
            lose(lab, name)
        run = await lab.until_status(handle.id, "cancelled")
        assert run.not_undone == [
            "send-parcels: race.known",
            "send-parcels: race.known (perhaps)",
            "send-parcels: race.unmarked (perhaps)",
        ]
        before, lab.world.failures = dict(sorted(said.split(" under ") for said in lab.world.said)), {}
        lab.world.said.clear()
        await lab.client.runs.retry(handle.id)
        with pytest.raises(RunBlocked, match=r"Nobody knows whether race.unmarked was delivered") as blocked:
            await handle.result()
        assert "counter has closed" in str(blocked.value)
        again = dict(sorted(said.split(" under ") for said in lab.world.said))
        assert again["second"] == before["second"], "it may be there"
        assert again["first"] != before["first"], "it is there, and now a second one is meant"
        assert "third" not in again
        (question,) = (await handle.get()).questions
        assert question.key == before["third"]
        lab.world.said.clear()
        await lab.client.runs.resolve(handle.id, "try_again")
        assert await handle.result() is None
        assert lab.world.said == [f"third under {before['third']}"]


@action("elsewhere", catalogue=catalogue)
async def elsewhere(ctx: AsyncContext, name: str) -> str:
    ctx.resource(World).say("elsewhere")
    return "elsewhere"


careless = effect("race.careless", on_unknown="resend", retry=1, catalogue=catalogue)(send_form)


@action("tries-elsewhere", retry=1, fallback=elsewhere, catalogue=catalogue)
async def tries_elsewhere(ctx: AsyncContext, name: str) -> str:
    return await ctx.request(careless, name=name)


@in_loop
async def test_fallback_never_starts_after_an_unknown_outcome_even_where_sending_twice_is_harmless(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        lose(lab, "a")
        handle = await lab.client.start(tries_elsewhere, name="a")
        with pytest.raises(RunBlocked):
            await handle.result()
        assert lab.world.said == ["ask for a"]
        await lab.client.runs.resolve(handle.id, "did_not_happen")
        assert await handle.result() == "elsewhere"


# -- children ----------------------------------------------------------------------------------------------------------


@service("packs-two", catalogue=catalogue)
async def packs_two() -> None:
    await book(item="cup")
    await book(item="plate")


@service("moves-house", catalogue=catalogue)
async def moves_house() -> None:
    await book(item="van")
    await packs_two()
    await book(item="helper")
    await refuse()


@pytest.mark.parametrize("outcome", ["happened", "did_not_happen"])
@in_loop
async def test_child_whose_undo_asks_a_person_is_waited_for_while_the_rest_is_undone(tmp_path: Path, outcome: Outcome):
    async with laboratory(tmp_path) as lab, lab.time_passing():
        lab.world.fail("unbook cup", 99)
        handle = await lab.client.start(moves_house)
        await lab.world.heard("unbook van")
        (child,) = await lab.client.runs.list(parent=handle.id)
        blocked = await lab.until_status(child.id, "blocked")
        assert blocked.questions
        assert lab.world.said[4:] == ["unbook helper", "unbook plate", "unbook van"]
        assert not (await handle.get()).ended
        await lab.client.runs.resolve(child.id, outcome)
        with pytest.raises(ActionFailed) as failure:
            await handle.result()
        left = outcome == "did_not_happen"
        assert failure.value.undo == ("partial" if left else "all")
        assert (await lab.client.runs.get(child.id)).undo == ("partial" if left else "all")


@in_loop
async def test_parent_that_sleeps_or_restarts_meanwhile_learns_how_its_child_was_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("dotdo.engine.parking.LINGER_FOR_CHILD", 0.05)
    async with laboratory(tmp_path) as lab, lab.time_passing():
        lab.world.fail("unbook cup", 99)
        handle = await lab.client.start(moves_house)
        await lab.world.heard("unbook van")
        (child,) = await lab.client.runs.list(parent=handle.id)
        await lab.until_status(child.id, "blocked")
        world, clock = lab.world, lab.clock
    async with laboratory(tmp_path, world=world, clock=clock) as lab:
        await lab.client.runs.resolve(child.id, "happened")
        with pytest.raises(ActionFailed) as failure:
            await lab.client.handle(handle.id).result()
        assert failure.value.undo == "all"


# -- undo, days later --------------------------------------------------------------------------------------------------


def release(*, without: str) -> Catalogue:
    """The definitions of a later release, which has dropped one."""
    later = Catalogue()
    for kind in ("effect", "action", "service"):
        for definition in catalogue.all(kind):
            if definition.name != without:
                later.add(kind, definition.name, definition.version, definition, definition.plain)
    return later


@pytest.mark.parametrize("gone", ["packs-two", "book"])
@in_loop
async def test_completed_run_is_undone_days_later_by_other_code(tmp_path: Path, gone: str):
    """The service that it ran is not needed; an undo that is missing is asked about, or brought back."""
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(packs_two)
        await handle.result()
        world = lab.world
    later = release(without=gone)
    async with laboratory(tmp_path, world=world, catalogue=later) as lab:
        lab.clock.advance("30 days")
        await lab.client.runs.undo(handle.id)
        if gone == "book":
            blocked = await lab.until_status(handle.id, "blocked")
            assert len(blocked.questions) == 2
            assert "is not defined in this process" in blocked.questions[0].text
            by_hand, _ = blocked.questions
            await lab.client.runs.resolve(handle.id, "happened", key=by_hand.key)

            async def is_journaled() -> bool:
                return len((await lab.client.runs.get(handle.id)).questions) == 1

            await lab.until(is_journaled)
            assert world.said == ["book cup", "book plate"]
        else:
            run = await lab.client.runs.wait(handle.id)
            assert (run.status, run.undo) == ("completed", "all")
            assert world.said[2:] == ["unbook plate", "unbook cup"]
            later.add("service", "packs-two", 1, packs_two, packs_two.plain)  # to replay the run, as the lab does
    if gone == "book":
        async with laboratory(tmp_path, world=world) as lab:
            await lab.until_status(handle.id, "blocked")
            await lab.client.runs.resolve(handle.id, "try_again")
            run = await lab.client.runs.wait(handle.id)
            assert (run.undo, world.said[2:]) == ("all", ["unbook cup"])


# -- cancel, at every commit -------------------------------------------------------------------------------------------


@service("does-everything", catalogue=catalogue)
async def does_everything() -> str:
    await book(item="a")
    await asyncio.gather(book(item="b"), packs_two(), post_letters(names=["x"]))
    await note(text="noted")
    return "done"


async def cancelled_at(folder: Path, commit: int) -> tuple[str, str, list[str]]:
    """Runs the service and cancels it when so many commits were made; how it has ended."""
    async with laboratory(folder) as lab:
        lab.world.open("counter x")
        loop, write, count = asyncio.get_running_loop(), lab.engine.store.write, 0
        asked: list[asyncio.Task[None]] = []
        too_late: list[str] = []
        handle = await lab.client.start(does_everything)

        async def cancel() -> None:
            try:
                await handle.cancel()
            except InvalidOperation as refused:
                too_late.append(refused.message)

        def counted(writes: Any) -> None:
            nonlocal count
            write(writes)
            count += 1
            if count == commit:
                loop.call_soon_threadsafe(lambda: asked.append(loop.create_task(cancel())))

        lab.engine.store.write = counted  # type: ignore[method-assign]
        try:
            await handle.result()
        except RunCancelled:
            assert not too_late
        await asyncio.gather(*asked)
        run = await handle.get()
        assert all("has ended (completed)" in message for message in too_late)
        assert not (await lab.client.runs.list(status="running"))
        return run.status, run.undo, lab.world.said


@in_loop
async def test_cancel_at_every_commit_of_a_run(tmp_path: Path):
    ends: list[str] = []
    for commit in range(1, 40):
        status, undo, said = await cancelled_at(tmp_path / f"{commit}", commit)
        booked = [text for text in said if text.startswith("book ")]
        unbooked = [text for text in said if text.startswith("unbook ")]
        if status == "completed":
            assert not unbooked
        else:
            assert sorted(unbooked) == sorted(f"un{text}" for text in booked)
            assert undo == ("all" if booked else "none")
        ends.append(status)
        if ends[-3:] == ["completed"] * 3:
            break
    assert ends.count("cancelled") >= 3
    assert ends[-3:] == ["completed"] * 3
