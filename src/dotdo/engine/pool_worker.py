"""A process of the pool: runs handlers of `pool="process"`, one at a time, as its parent asks.

It imports the handler's module, as the parent has it, and nothing else that it is told. Jobs and answers are frames of
JSON on two pipes; nothing is pickled. It ends when its parent does, also in the middle of a handler.
"""

import importlib
import importlib.util
import logging
import os
import queue
import signal
import sys
import threading
from typing import Any, BinaryIO, NoReturn, cast

import msgspec

from dotdo.context import Context, current
from dotdo.effect import Effect, Staged
from dotdo.errors import DefinitionError

MAIN = (
    "__dotdo_main__"  # what the program's own file is imported as, so that its `if __name__ == "__main__"` is not met
)


class Place(msgspec.Struct, frozen=True):
    """Where a handler is to be found: its module, the module's file, and its name in it."""

    module: str
    file: str | None
    name: str


class Job(msgspec.Struct, frozen=True):
    """One attempt of an action. key: the step's idempotency key; epoch: that of its effects."""

    action: str
    version: int
    place: Place
    input: msgspec.Raw
    run_id: str
    step: str
    number: int
    epoch: int
    key: str
    actor: str | None = None
    trail: str | None = None
    traceparent: str | None = None


class StagedCall(msgspec.Struct, frozen=True):
    """An effect that the handler has staged."""

    effect: str
    version: int
    key: str
    input: msgspec.Raw


class Raised(msgspec.Struct, frozen=True):
    """What the handler raised. module, name: its class; after: of RetryLater."""

    module: str
    name: str
    message: str
    traceback: str = ""
    after: float | None = None


class Answer(msgspec.Struct, frozen=True):
    """How a job ended."""

    result: msgspec.Raw = msgspec.Raw(b"null")
    effects: list[StagedCall] = []
    raised: Raised | None = None


class ProcessAttempt:
    """What a context needs of its attempt, as far as it works here: identity, log, and staging."""

    def __init__(self, job: Job) -> None:
        self.run_id, self.step, self.number = job.run_id, job.step, job.number
        self.actor, self.trail, self.traceparent, self.idempotency_key = job.actor, job.trail, job.traceparent, job.key
        self.effects: list[StagedCall] = []
        self._epoch = job.epoch
        self._counts: dict[str, int] = {}

    @property
    def log(self) -> "logging.LoggerAdapter[logging.Logger]":
        """A logger that names run, step, attempt, actor and trace."""
        from dotdo.engine.attempting import log_fields

        return logging.LoggerAdapter(logging.getLogger("dotdo.action"), log_fields(self))

    def stage(self, effect: Effect[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Staged:
        """Keeps the effect; the parent commits it with the attempt."""
        from dotdo.engine.attempting import effect_key

        if not isinstance(effect, Effect):  # pyright: ignore[reportUnnecessaryIsInstance]  # users without type checkers
            raise DefinitionError(f"{effect!r} is not an effect: define it with @effect at module level.")
        if effect.schema.secrets is not None:
            _refuse("an effect with secret inputs")
        input = effect.schema.pack(args, kwargs)
        effect.schema.check(input)
        count = self._counts.get(effect.name, 0)
        self._counts[effect.name] = count + 1
        key = effect_key(self.run_id, self.step, effect.name, count, self._epoch)
        self.effects.append(StagedCall(effect.name, effect.version, key, msgspec.Raw(input)))
        return Staged(key, effect.name)

    def heartbeat(self) -> None:
        """Nothing to say: the process is killed when its attempt is over."""

    def __getattr__(self, name: str) -> NoReturn:
        _refuse(_WORDS.get(name, f"ctx.{name}"))


_WORDS = {
    "connection": "ctx.sql and ctx.database()",
    "session": "ctx.session",
    "request_and_wait": "ctx.request()",
    "resource": "ctx.resource()",
    "secret": "ctx.secret()",
}


def _refuse(what: str) -> NoReturn:
    raise DefinitionError(
        f'An action with pool="process" runs in a process of its own, where it cannot have {what}: there it computes, '
        "and may stage effects. Do the rest in another action, and call both from a service."
    )


def main() -> None:
    """Serves jobs until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all of a terminal's processes; the parent decides
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what handlers print must not get into the answers
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(incoming, jobs), daemon=True).start()
    while True:
        answer = msgspec.json.encode(_run(msgspec.json.decode(jobs.get(), type=Job)))
        outgoing.write(len(answer).to_bytes(8, "big") + answer)
        outgoing.flush()


def _listen(incoming: BinaryIO, jobs: "queue.SimpleQueue[bytes]") -> None:
    while True:
        head = incoming.read(8)
        if len(head) < 8:
            os._exit(0)  # the parent has ended, however; nobody waits for what is being computed
        jobs.put(incoming.read(int.from_bytes(head, "big")))


def _run(job: Job) -> Answer:
    try:
        action = find_action(job)
        attempt = ProcessAttempt(job)
        context = Context(cast("Any", attempt))
        token = current.set(context)
        try:
            arguments = action.schema.arguments(bytes(job.input))
            result = action.handler(*((context,) if action.takes_context else ()), **arguments)
            data, _ = action.schema.dump(result)
        finally:
            current.reset(token)
        return Answer(msgspec.Raw(data), attempt.effects)
    except BaseException as error:  # told to the parent, whatever it is
        return Answer(raised=_raised(error))


def _raised(error: BaseException) -> Raised:
    from dotdo.engine.failing import error_record

    kind, record = type(error), error_record(error)
    module = "__main__" if kind.__module__ == MAIN else kind.__module__
    after = getattr(error, "after", None)
    return Raised(
        module, kind.__qualname__, record.message, record.traceback, after if isinstance(after, float | int) else None
    )


def find_action(job: Job) -> Any:
    """The action of a job. Raises DefinitionError when it is not where the job says."""
    from dotdo.action import Action

    place = job.place
    found: Any = _module(place)
    for part in place.name.split("."):
        found = getattr(found, part, None)
    if isinstance(found, Action):
        # Under one name in a module may be several versions, of which the last is seen.
        exact = cast("Any", found).catalogue.find("action", job.action, job.version)
        if exact is not None:
            return exact
    raise DefinitionError(
        f'The action {job.action}@{job.version} of pool="process" was not found in {place.file or place.module} when a '
        "process of the pool imported it. Define it at the top level of its module, under the name of its function."
    )


def _module(place: Place) -> Any:
    name = MAIN if place.module == "__main__" else place.module
    if name in sys.modules:
        return sys.modules[name]
    try:
        if name != MAIN:
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise
    if place.file is None:
        raise DefinitionError(f'The module {place.module} cannot be imported by a process of pool="process".')
    spec = importlib.util.spec_from_file_location(name, place.file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
