"""Undo: what a failed run has committed is taken back, newest first, down to the last pivot; each once."""

import asyncio
from typing import Any

import pytest

from dotdo import ActionFailed, AsyncContext, Context, DefinitionError, Fail, Retry, RunBlocked, action, service
from tests.workshop import PATIENCE, Workshop, data, kinds

pytestmark = pytest.mark.usefixtures("both_doors")

STEADY = Retry(attempts=2, delay=10, jitter=False)


class Shop:
    """Actions that say what they do and undo. `make` and `pivot` can be undone; `note` declares no undo."""

    def __init__(self, workshop: Workshop) -> None:
        self.said: list[str] = []
        self.failures: dict[str, int] = {}
        catalogue = workshop.catalogue

        @action("make", catalogue=catalogue)
        def make(name: str) -> str:
            self.said.append(f"make {name}")
            return f"made {name}"

        @make.undo
        def unmake(ctx: Context, made: str) -> None:
            self.said.append(f"undo {made}")
            if self.failures.get(made, 0):
                self.failures[made] -= 1
                raise ConnectionError("cannot undo now")

        @action("ship", pivot=True, catalogue=catalogue)
        def ship(name: str) -> str:
            self.said.append(f"ship {name}")
            return f"shipped {name}"

        @ship.undo
        def unship(ctx: Context, shipped: str) -> None:
            raise NotImplementedError

        @action("note", catalogue=catalogue)
        def note(name: str) -> None:
            self.said.append(f"note {name}")

        @action("refuse", retry=1, catalogue=catalogue)
        def refuse() -> None:
            raise Fail("no")

        self.make, self.ship, self.note, self.refuse, self.unmake = make, ship, note, refuse, unmake


@pytest.fixture
def shop(workshop: Workshop) -> Shop:
    return Shop(workshop)


def test_committed_steps_are_undone_newest_first(workshop: Workshop, shop: Shop):
    @service("fails", catalogue=workshop.catalogue)
    async def fails() -> None:
        for name in ("a", "b", "c"):
            await shop.make(name=name)
            await shop.note(name=name)
        await shop.refuse()

    handle = workshop.open().start(fails)
    with pytest.raises(ActionFailed) as failure:
        handle.result(timeout=PATIENCE)

    assert failure.value.undo == "all"
    assert shop.said[-3:] == ["undo made c", "undo made b", "undo made a"]
    (plan,) = data(handle, "undo_planned")
    assert [one.step for one in data(handle, "undone")] == plan.steps
    assert len(plan.steps) == 3


def test_order_is_that_of_the_commits_not_of_the_calls(workshop: Workshop, shop: Shop):
    release = asyncio.Event()

    @action("make-slowly", catalogue=workshop.catalogue)
    async def make_slowly(name: str) -> str:
        await release.wait()
        return name

    @make_slowly.undo
    def unmake_slowly(ctx: Context, made: str) -> None:
        shop.said.append(f"undo {made}")

    @action("make-last", catalogue=workshop.catalogue)
    async def make_quickly(name: str) -> str:
        release.set()
        return name

    @make_quickly.undo
    def unmake_quickly(ctx: Context, made: str) -> None:
        shop.said.append(f"undo {made}")

    @service("fails", catalogue=workshop.catalogue)
    async def fails() -> None:
        slow = asyncio.ensure_future(make_slowly(name="slow"))
        await make_quickly(name="quick")
        await slow
        await shop.refuse()

    with pytest.raises(ActionFailed):
        workshop.open().run(fails)
    assert shop.said == ["undo slow", "undo quick"]


def test_pivot_ends_the_undoing_at_itself(workshop: Workshop, shop: Shop):
    @service("fails", catalogue=workshop.catalogue)
    async def fails() -> None:
        await shop.make(name="before")
        await shop.ship(name="parcel")
        await shop.make(name="after")
        await shop.refuse()

    with pytest.raises(ActionFailed) as failure:
        workshop.open().run(fails)
    assert failure.value.undo == "partial"
    assert shop.said == ["make before", "ship parcel", "make after", "undo made after"]


def test_last_pivot_counts(workshop: Workshop, shop: Shop):
    @service("fails", catalogue=workshop.catalogue)
    async def fails() -> None:
        await shop.ship(name="first")
        await shop.make(name="between")
        await shop.ship(name="second")
        await shop.refuse()

    with pytest.raises(ActionFailed) as failure:
        workshop.open().run(fails)
    assert failure.value.undo == "none"
    assert [text for text in shop.said if text.startswith("undo")] == []


def test_service_may_halt_without_undoing(workshop: Workshop, shop: Shop):
    @service("halts", undo=False, catalogue=workshop.catalogue)
    async def halts() -> None:
        await shop.make(name="a")
        await shop.refuse()

    client = workshop.open()
    handle = client.start(halts)
    with pytest.raises(ActionFailed) as failure:
        handle.result(timeout=PATIENCE)
    assert failure.value.undo == "none"
    assert shop.said == ["make a"]
    assert data(handle, "undone") == []

    client.runs.undo(handle.id)  # an operator may still do it
    workshop.until(lambda: client.runs.get(handle.id).undo == "all")
    assert shop.said == ["make a", "undo made a"]


def test_undo_gets_the_output_and_the_input_if_it_asks(workshop: Workshop, shop: Shop):
    got: list[Any] = []

    @action("create", catalogue=workshop.catalogue)
    async def create(name: str, tags: list[str]) -> dict[str, str]:
        return {"id": f"id of {name}"}

    @create.undo
    async def remove(ctx: AsyncContext, created: dict[str, str], input: dict[str, Any]) -> None:
        got.append((ctx.step.partition(":")[0], created, input))

    @service("fails", catalogue=workshop.catalogue)
    async def fails() -> None:
        await create(name="ada", tags=["x"])
        await shop.refuse()

    with pytest.raises(ActionFailed):
        workshop.open().run(fails)
    assert got == [("undo", {"id": "id of ada"}, {"name": "ada", "tags": ["x"]})]


def test_undo_may_be_an_action_of_its_own(workshop: Workshop, shop: Shop):
    @action("create", undo=shop.note, catalogue=workshop.catalogue)
    def create() -> str:
        return "thing"

    @service("fails", catalogue=workshop.catalogue)
    async def fails() -> None:
        await create()
        await shop.refuse()

    with pytest.raises(ActionFailed):
        workshop.open().run(fails)
    assert shop.said == ["note thing"]


def test_undo_that_could_not_be_called_is_refused_when_it_is_defined(workshop: Workshop):
    @action("create", catalogue=workshop.catalogue)
    def create() -> str:
        raise NotImplementedError

    with pytest.raises(DefinitionError, match="takes reason"):

        @create.undo
        def remove(ctx: Context, created: str, reason: str) -> None:
            raise NotImplementedError


def test_undo_is_retried_like_any_action(workshop: Workshop, shop: Shop):
    shop.failures["made a"] = 1

    @service("fails", catalogue=workshop.catalogue)
    async def fails() -> None:
        await shop.make(name="a")
        await shop.refuse()

    handle = workshop.open().start(fails)
    workshop.clock.advance_to_next()
    with pytest.raises(ActionFailed) as failure:
        handle.result(timeout=PATIENCE)
    assert failure.value.undo == "all"
    assert shop.said == ["make a", "undo made a", "undo made a"]
    assert kinds(handle, "undo:make") == ["attempt_failed", "completed"]


def test_undo_that_fails_for_good_blocks_the_run_and_the_rest_is_still_undone(workshop: Workshop, shop: Shop):
    shop.failures["made b"] = 1000

    @service("fails", catalogue=workshop.catalogue)
    async def fails() -> None:
        for name in ("a", "b", "c"):
            await shop.make(name=name)
        await shop.refuse()

    client = workshop.open()
    handle = client.start(fails)
    for _ in range(3):
        workshop.clock.advance_to_next()
    with pytest.raises(RunBlocked, match="cannot undo now"):
        handle.result(timeout=PATIENCE)
    assert [text for text in shop.said if text != "undo made b"][-2:] == ["undo made c", "undo made a"]

    shop.failures.clear()
    shop.said.clear()
    client.runs.retry(handle.id)  # mended: only what is left is undone
    with pytest.raises(ActionFailed) as failure:
        client.runs.wait(handle.id, timeout=PATIENCE)
    assert (failure.value.undo, failure.value.action) == ("all", "refuse")
    assert shop.said == ["undo made b"]


def test_completed_run_can_be_undone_later_once(workshop: Workshop, shop: Shop):
    @service("succeeds", catalogue=workshop.catalogue)
    async def succeeds() -> str:
        await shop.make(name="a")
        await shop.make(name="b")
        return "done"

    client = workshop.open()
    handle = client.start(succeeds)
    handle.result(timeout=PATIENCE)
    workshop.clock.advance("30 days")
    client.runs.undo(handle.id, actor="kim")
    workshop.until(lambda: client.runs.get(handle.id).undo == "all")

    run = client.runs.get(handle.id)
    assert (run.status, run.result, run.generation) == ("completed", "done", 1)
    assert shop.said[2:] == ["undo made b", "undo made a"]
    with pytest.raises(Exception, match="undone already"):
        client.runs.undo(handle.id)


def test_action_that_ran_alone_can_be_undone(workshop: Workshop, shop: Shop):
    client = workshop.open()
    handle = client.start(shop.make, name="a")
    assert handle.result(timeout=PATIENCE) == "made a"
    client.runs.undo(handle.id)
    workshop.until(lambda: client.runs.get(handle.id).undo == "all")
    assert shop.said == ["make a", "undo made a"]
