"""A workshop for actions: a client on a file of its own, a hand-moved clock, and a receiver that effects talk to.

Tests are plain functions: the engine runs on the client's own thread, and a test waits for results, for what the
receiver has heard, or for what the engine waits for (`clock.advance_to_next`). When a workshop closes, the invariants
of every run in its store are checked, and the engine must not have logged an error that the test did not expect.
"""

import asyncio
import json
import logging
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from dotdo import Catalogue, Do, Effect, EffectCall, Handle, Retry
from dotdo.engine.engine import Engine
from dotdo.journal import Entry, read
from dotdo.records import WaitingFor
from dotdo.testing import ManualClock
from tests import doors
from tests.guarantees.invariants import check_store
from tests.patience import PATIENCE
from tests.stores import url_of

SEED = 4  # jitter is drawn: with this seed none of the first draws is next to nothing, which would be no wait at all
PLAIN = Retry(attempts=3, delay=10, jitter=False)


class Heard(NamedTuple):
    """One call that reached the receiver: what was asked, under which key, which try it was."""

    what: str
    text: str
    key: str
    attempt: int


class Receiver:
    """An outside system. It notes every call before it fails as told, or answers."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self._failures: dict[str, list[Exception]] = {}
        self._changed = threading.Condition()

    def fail(self, what: str, *errors: Exception) -> None:
        """The next calls of that kind raise these, one each."""
        self._failures.setdefault(what, []).extend(errors)

    def take(self, what: str, text: str, call: EffectCall) -> str:
        """A call arrives. Raises what was told."""
        with self._changed:
            self.heard.append(Heard(what, text, call.key, call.attempt))
            self._changed.notify_all()
            failures = self._failures.get(what)
            if failures:
                raise failures.pop(0)
            return f"{what} {text}: {len(self.heard)}"

    def texts(self, *what: str) -> list[str]:
        """What was asked, in order; of some kinds if given."""
        return [one.text for one in self.heard if not what or one.what in what]

    def keys(self, what: str) -> list[str]:
        """The keys of one kind of call, in order."""
        return [one.key for one in self.heard if one.what == what]

    def wait_for(self, what: str, count: int = 1) -> None:
        """Returns when so many calls of a kind have arrived. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.keys(what)) >= count, PATIENCE):
                raise TimeoutError(f"{what}: {len(self.keys(what))} calls, not {count}.")


def send(call: EffectCall, text: str) -> str:
    """What handlers stage."""
    return call.resource(Receiver).take("send", text, call)


async def order(call: EffectCall, text: str) -> str:
    """What handlers request."""
    return call.resource(Receiver).take("order", text, call)


async def cancel_order(call: EffectCall, answer: str, input: dict[str, Any]) -> None:
    """Takes an order back."""
    call.resource(Receiver).take("cancel", f"{input['text']} ({answer})", call)


async def ask(call: EffectCall, text: str) -> str:
    """What handlers request and nothing takes back."""
    return call.resource(Receiver).take("ask", text, call)


async def hang(call: EffectCall, text: str) -> str:
    """What arrives and is never answered."""
    call.resource(Receiver).take("hang", text, call)
    return await asyncio.get_running_loop().create_future()


class Workshop:
    """Definitions, a clock, a receiver, and the clients opened on one store; options are for each of these.

    send, order, ask, hang: effects to stage and request; an order is undone by a `cancel`, a `hang` never answers and
    honours no key. open_clients: those that were opened, in order. expected: texts that logged errors may contain.
    """

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder, self.store, self._options = folder, folder / "store" / "dotdo.db", options
        self.catalogue, self.clock, self.receiver = Catalogue(), ManualClock(), Receiver()
        self.send = Effect("send", send, dedup="key", retry=PLAIN, catalogue=self.catalogue)
        self.order = Effect("order", order, dedup="key", undo=cancel_order, retry=PLAIN, catalogue=self.catalogue)
        self.ask = Effect("ask", ask, dedup="key", retry=PLAIN, catalogue=self.catalogue)
        self.hang = Effect("hang", hang, retry=PLAIN, catalogue=self.catalogue)
        self.expected: list[str] = []
        self.open_clients: list[Do] = []
        self._committed = threading.Event()
        self._errors = _Errors()
        logging.getLogger("dotdo").addHandler(self._errors)
        random.seed(SEED)

    def open(self, **options: Any) -> Do:
        """A client, through the chosen door (tests/doors.py), whose engine runs until it or the workshop is closed."""
        given = {"catalogue": self.catalogue, "clock": self.clock, "resources": [self.receiver], "check_replay": True}
        merged: dict[str, Any] = {**given, "grace": 5.0, **self._options, **options}
        client = Do(url_of(self.store), **merged)
        self._watch(client.__enter__())
        self.open_clients.append(doors.enter(doors.chosen, client))
        return self.open_clients[-1]

    def on_error(self, callback: Callable[[], None]) -> None:
        """Calls back when the engine logs an error, before it goes on."""
        self._errors.callback = callback

    def until(self, condition: Callable[[], bool]) -> None:
        """Returns when the condition holds; it is looked at after each commit. Raises TimeoutError."""
        while True:
            self._committed.clear()
            if condition():
                return
            if not self._committed.wait(PATIENCE):
                raise TimeoutError("No commit has made that true.")

    def until_waiting(self, client: Do, handle: Handle[Any]) -> WaitingFor:
        """What a run waits for, once it has left memory and its row says so."""
        self.until(lambda: client.runs.get(handle.id).status == "waiting")
        waiting_for = client.runs.get(handle.id).waiting_for
        assert waiting_for is not None
        return waiting_for

    def close(self) -> None:
        """Closes the clients, then looks for what went wrong unseen."""
        self.close_clients()
        logging.getLogger("dotdo").removeHandler(self._errors)
        if self.open_clients:
            check_store(self.store)
        unexpected = [text for text in self._errors.texts if not any(part in text for part in self.expected)]
        assert not unexpected, f"The engine logged errors: {unexpected}"

    def close_clients(self) -> None:
        """Closes the clients, as at the end of their process."""
        for client in self.open_clients:
            client.close()

    def _watch(self, client: Do) -> None:
        engine = client._portal.call(client._inner.platform)
        assert isinstance(engine, Engine)
        write = engine.store.write

        def watched(writes: Any) -> None:
            try:
                write(writes)
            finally:
                self._committed.set()

        engine.store.write = watched  # type: ignore[method-assign]


class _Errors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []
        self.callback: Callable[[], None] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
        if record.exc_info and record.exc_info[1] is not None:
            self.texts[-1] += f": {record.exc_info[1]!r}"
        if self.callback is not None:
            self.callback()


def kinds(handle: Handle[Any], step: str = "") -> list[str]:
    """The kinds of a run's entries in order; of the steps whose id begins with `step`, if given."""
    return [entry.kind for entry in handle.journal() if entry.step.startswith(step)]


def data(handle: Handle[Any], kind: str) -> list[Any]:
    """What the entries of a kind hold."""
    return [read(entry) for entry in handle.journal() if entry.kind == kind]


def result_of(entry: Entry) -> Any:
    """The result that a `completed` or `committed` entry holds."""
    return json.loads(bytes(read(entry).result))
