"""A lost answer is never guessed, whichever way the effect can be deduplicated and whenever the answer was lost.

In each case the receiver knows the truth: it has acted, or it has not, when the answer is lost. Once the run has ended
it has acted exactly once, or a person was asked and answered; only `on_unknown="resend"` may act twice.
"""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dotdo import AsyncContext, Context, Effect, EffectCall, Retry, RetryLater, RunBlocked, action
from dotdo.engine.engine import Engine
from dotdo.errors import InvalidOperation, InvalidValue
from dotdo.store.protocol import Message
from tests import doors
from tests.workshop import PATIENCE, Workshop, data, kinds

pytestmark = pytest.mark.usefixtures("both_doors")

WINDOW = 100.0  # seconds for which the receiver remembers keys
STEADY = Retry(attempts=5, delay=200, factor=1, max_delay=200, jitter=False)  # the second try is beyond the window
SOON = Retry(attempts=5, delay=10, factor=1, jitter=False)


class Loss(NamedTuple):
    """What happens to the first call: whether the receiver acts, and how the caller loses the answer."""

    acts: bool
    how: str


class Office:
    """The receiver. It acts once per key while it remembers that, if it honours keys at all."""

    def __init__(self) -> None:
        self.acted: list[str] = []
        self.calls: list[str] = []
        self.lookups: list[str] = []
        self.honours_keys = False
        self.losses: list[Loss] = []
        self._lock = threading.Lock()

    def take(self, call: EffectCall) -> tuple[str, Loss | None]:
        """Acts or not; says how the answer is lost, if it is."""
        with self._lock:
            self.calls.append(call.key)
            loss = self.losses.pop(0) if self.losses else None
            if (loss is None or loss.acts) and not (self.honours_keys and call.key in self.acted):
                self.acted.append(call.key)
            return f"receipt {len(self.acted)}", loss


async def file_form(call: EffectCall, name: str) -> str:
    receipt, loss = call.resource(Office).take(call)
    if loss is not None:
        if loss.how == "silence":
            await asyncio.get_running_loop().create_future()
        if loss.how == "refusal":
            raise RetryLater("busy", after=10)
        raise ConnectionError("the line is dead")
    return receipt


async def find_form(call: EffectCall) -> str | None:
    office = call.resource(Office)
    office.lookups.append(call.key)
    return f"receipt {office.acted.index(call.key) + 1}" if call.key in office.acted else None


class Case(NamedTuple):
    """How the effect is defined, and what is expected after one lost answer: asked, looked up, sent how often."""

    name: str
    options: dict[str, Any]
    retry: Retry
    asks: bool = False
    looks_up: bool = False
    may_act_twice: bool = False


CASES = [
    Case("key", {"dedup": "key"}, SOON),
    Case("key, inside its window", {"dedup": "key", "key_window": WINDOW}, SOON),
    Case("key, beyond its window", {"dedup": "key", "key_window": WINDOW}, STEADY, asks=True),
    Case("key, beyond, lookup", {"dedup": "key", "key_window": WINDOW, "lookup": find_form}, STEADY, looks_up=True),
    Case("key, inside, lookup", {"dedup": "key", "key_window": WINDOW, "lookup": find_form}, SOON),
    Case(
        "key, beyond, resend",
        {"dedup": "key", "key_window": WINDOW, "on_unknown": "resend"},
        STEADY,
        may_act_twice=True,
    ),
    Case("find", {"dedup": "find", "lookup": find_form}, SOON, looks_up=True),
    Case("none, lookup", {"lookup": find_form}, SOON, looks_up=True),
    Case("none", {}, SOON, asks=True),
    Case("none, resend", {"on_unknown": "resend"}, SOON, may_act_twice=True),
]
LOSSES = [Loss(acts, how) for acts in (True, False) for how in ("error", "silence")]


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    workshop = Workshop(tmp_path)
    yield workshop
    workshop.close()


def form_of(workshop: Workshop, case: Case) -> "Effect[..., Any]":
    return Effect("file-form", file_form, timeout=0.05, retry=case.retry, catalogue=workshop.catalogue, **case.options)


def filing(workshop: Workshop, case: Case, kind: str) -> Any:
    """An action that files a form, requested or staged."""
    form = form_of(workshop, case)
    if kind == "request":

        @action("file", retry=case.retry, catalogue=workshop.catalogue)
        async def file(ctx: AsyncContext) -> str:
            return await ctx.request(form, name="ada")

        return file

    @action("file", catalogue=workshop.catalogue)
    def file_staged(ctx: Context) -> str:
        return ctx.stage(form, name="ada").id

    return file_staged


@pytest.mark.parametrize("kind", ["request", "delivery"])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{'acts' if loss.acts else 'idle'}-{loss.how}")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_lost_answer(workshop: Workshop, case: Case, loss: Loss, kind: str):
    office = Office()
    office.honours_keys = case.options.get("dedup") == "key" and case.retry is SOON
    office.losses = [loss]
    client = workshop.open(resources=[office])
    handle = client.start(filing(workshop, case, kind))
    workshop.clock.advance_to_next()  # the fault has fired: a retry waits
    if case.asks:
        with pytest.raises(RunBlocked, match="Nobody knows whether file-form"):
            handle.result(timeout=PATIENCE)
        assert office.calls == [office.calls[0]], "nothing is sent before a person has answered"
        (question,) = handle.get().questions
        assert (question.about, question.effect, question.key) == (kind, "file-form", office.calls[0])
        assert question.input == {"name": "ada"}
        assert question.answers == ["happened", "did_not_happen", "try_again"]
        if loss.acts:
            client.runs.resolve(handle.id, "happened", answer="receipt 1", actor="kim")
        else:
            client.runs.resolve(handle.id, "did_not_happen", actor="kim")
    result = handle.result(timeout=PATIENCE)

    assert len(set(office.calls)) == 1, "one key for one effect"
    assert len(office.acted) == (2 if case.may_act_twice and loss.acts else 1)
    assert bool(office.lookups) == case.looks_up
    assert set(office.lookups) <= set(office.calls)
    if kind == "request":
        assert result == f"receipt {len(office.acted)}"
    resends = not (loss.acts and (case.asks or case.looks_up))
    assert len(office.calls) == 1 + resends
    assert ("resolved" in kinds(handle)) == case.asks


@pytest.mark.parametrize("kind", ["request", "delivery"])
def test_answers_of_a_person_are_checked_and_journaled(workshop: Workshop, kind: str):
    office = Office()
    office.losses = [Loss(acts=True, how="error")]
    case = Case("none", {}, SOON, asks=True)
    client = workshop.open(resources=[office])
    handle = client.start(filing(workshop, case, kind))
    workshop.clock.advance_to_next()
    with pytest.raises(RunBlocked):
        handle.result(timeout=PATIENCE)

    with pytest.raises(InvalidValue, match="does not fit its return hint str"):
        client.runs.resolve(handle.id, "happened", answer=17)
    with pytest.raises(InvalidOperation, match="'perhaps' is no answer"):
        client.runs.resolve(handle.id, "perhaps")  # type: ignore[arg-type]
    with pytest.raises(InvalidOperation, match="no such open question"):
        client.runs.resolve(handle.id, "did_not_happen", key="another")
    with pytest.raises(Exception, match="only with the outcome `happened`"):
        client.runs.resolve(handle.id, "try_again", answer="receipt 1")
    assert handle.get().status == "blocked"

    client.runs.resolve(handle.id, "happened", answer="receipt 1", step="file", actor="kim")
    handle.result(timeout=PATIENCE)
    with pytest.raises(InvalidOperation, match="only a blocked run"):
        client.runs.resolve(handle.id, "happened", answer="receipt 1")
    (resolved,) = data(handle, "resolved")
    assert (resolved.outcome, resolved.actor, bytes(resolved.answer)) == (
        "happened",
        doors.actor("kim"),
        b'"receipt 1"',
    )
    assert [(one.operation, one.actor) for one in data(handle, "reopened")] == [("resolve", doors.actor("kim"))]
    assert handle.get().generation == 1
    assert len(office.calls) == 1


@pytest.mark.parametrize("kind", ["request", "delivery"])
def test_try_again_sends_once_more_under_the_same_key_and_may_have_to_ask_again(workshop: Workshop, kind: str):
    office = Office()
    office.losses = [Loss(acts=False, how="error")] * 2
    client = workshop.open(resources=[office])
    handle = client.start(filing(workshop, Case("none", {}, SOON), kind))
    workshop.clock.advance_to_next()
    for tries in (1, 2):
        with pytest.raises(RunBlocked):
            handle.result(timeout=PATIENCE)
        assert len(office.calls) == tries
        client.runs.resolve(handle.id, "try_again")
        if tries == 1:
            workshop.clock.advance_to_next()
    handle.result(timeout=PATIENCE)
    assert len(office.calls) == 3
    assert len(set(office.calls)) == 1
    assert handle.get().generation == 2


@pytest.mark.parametrize("kind", ["request", "delivery"])
def test_retry_tries_again_what_was_asked_before_it_and_nothing_else(
    workshop: Workshop, kind: str, monkeypatch: pytest.MonkeyPatch
):
    office = Office()
    office.losses = [Loss(acts=True, how="error")]
    client = workshop.open(resources=[office])
    handle = client.start(filing(workshop, Case("none", {}, SOON), kind))
    asked, goes_on = threading.Event(), threading.Event()
    post = Engine.post

    async def held(engine: Engine, message: Message) -> None:
        if message.kind == "retry":
            asked.set()
            assert await asyncio.to_thread(goes_on.wait, PATIENCE)
        await post(engine, message)

    with ThreadPoolExecutor(1) as elsewhere:
        monkeypatch.setattr(Engine, "post", held)
        retried = elsewhere.submit(client.runs.retry, handle.id)
        assert asked.wait(PATIENCE)
        workshop.clock.advance_to_next()
        with pytest.raises(RunBlocked):
            handle.result(timeout=PATIENCE)
        goes_on.set()
        with pytest.raises(InvalidOperation, match=f"has asked meanwhile.* {office.calls[0]}.* retry it once more"):
            retried.result(PATIENCE)
    assert (handle.get().status, len(office.calls)) == ("blocked", 1)
    client.runs.retry(handle.id)
    handle.result(timeout=PATIENCE)
    assert len(office.calls) == 2
    assert len(set(office.calls)) == 1


@pytest.mark.parametrize("kind", ["request", "delivery"])
def test_refusal_after_a_lost_answer_does_not_settle_it(workshop: Workshop, kind: str):
    """`RetryLater` says that this try did not happen; of the one before nobody knows any more than before."""
    office = Office()
    office.losses = [Loss(acts=True, how="error"), Loss(acts=False, how="refusal")]
    case = Case("key, for a while", {"dedup": "key", "key_window": 15.0}, SOON)
    client = workshop.open(resources=[office])
    handle = client.start(filing(workshop, case, kind))
    workshop.clock.advance_to_next()
    workshop.clock.advance_to_next()
    with pytest.raises(RunBlocked, match="Nobody knows"):
        handle.result(timeout=PATIENCE)
    assert len(office.calls) == 2
    client.runs.resolve(handle.id, "happened", answer="receipt 1")
    handle.result(timeout=PATIENCE)
    assert len(office.calls) == len(office.acted) + 1 == 2


@pytest.mark.parametrize("kind", ["request", "delivery"])
def test_what_certainly_did_not_happen_is_no_question(workshop: Workshop, kind: str):
    office = Office()
    office.losses = [Loss(acts=False, how="refusal")] * 3
    client = workshop.open(resources=[office])
    handle = client.start(filing(workshop, Case("none", {}, SOON), kind))
    for _ in range(3):
        workshop.clock.advance_to_next()
    handle.result(timeout=PATIENCE)
    assert len(office.calls) == 4
    assert len(set(office.calls)) == len(office.acted) == 1
