"""An undo whose own effect nobody knows of waits for a person, and goes on as the answer says: it has not failed."""

import pytest

from dotdo import AsyncContext, Catalogue, Fail, Retry, RunBlocked, action, effect, service
from dotdo.testing import TestDo

catalogue = Catalogue()
SOON = Retry(attempts=2, delay=1, jitter=False)


@effect("question.letter", retry=SOON, catalogue=catalogue)
def letter(text: str) -> None: ...


@effect("question.call", retry=SOON, catalogue=catalogue)
def phone(text: str) -> str:
    return "answered"


@action("book", catalogue=catalogue)
async def book() -> str:
    return "seat"


@book.undo
async def unbook(ctx: AsyncContext, seat: str) -> None:
    await ctx.request(phone, text=f"about the {seat}")
    ctx.stage(letter, text=f"we give the {seat} back")


@action("refuse", catalogue=catalogue)
async def refuse() -> None:
    raise Fail("no")


@service("trip", catalogue=catalogue)
async def trip() -> None:
    await book()
    await refuse()


@pytest.mark.parametrize("lost", [letter, phone], ids=["delivery", "request"])
@pytest.mark.parametrize("outcome, calls", [("happened", 1), ("did_not_happen", 2), ("try_again", 2)])
def test_answer_lets_the_undo_end(lost: object, outcome: str, calls: int):
    with TestDo(catalogue=catalogue) as do:
        fake = do.fake(lost, raises=TimeoutError, times=1, result="answered" if lost is phone else None)  # type: ignore[arg-type]
        run = do.start(trip)
        with pytest.raises(RunBlocked):
            run.result()
        [question] = run.get().questions
        assert question.about in ("delivery", "request")
        answer = "by phone" if lost is phone and outcome == "happened" else None
        do.runs.resolve(run.id, outcome, answer=answer)  # type: ignore[arg-type]
        do.settle()
        assert (run.get().status, run.get().undo, run.get().questions) == ("failed", "all", [])
        assert fake.count == calls
