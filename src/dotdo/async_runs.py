"""`client.runs` and the handles of started runs: what an async client can ask of runs that are there."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, Protocol, TypeVar, get_args

from dotdo import codec
from dotdo.errors import ActionFailed, DefinitionError, InvalidOperation, RunBlocked, RunCancelled, StillRunning
from dotdo.journal import Entry
from dotdo.platform import Platform
from dotdo.policy import Retention, check_text, one_of, patience
from dotdo.questions import check_outcome, the_question
from dotdo.records import Outcome, Progress, Run, RunFilter, Status, Undo, check_labels, erased_text

R = TypeVar("R")

# From a plain result to the declared output; None where the two are the same.
Load = Callable[[Any], Any] | None
# In a class with a method `list` the name means that, also in the hints of the method itself since Python 3.14.
Entries = list[Entry]
RunList = list[Run]


class Client(Protocol):
    """What these need of the client that they belong to."""

    actor: str | None
    runs: "AsyncRuns"

    async def platform(self) -> Platform: ...


class AsyncHandle(Generic[R]):
    """A started run: its id, and what can be asked of it."""

    __slots__ = ("_client", "_load", "id")

    def __init__(self, client: "Client", id: str, load: Load) -> None:
        self._client, self.id, self._load = client, id, load

    async def result(self, *, timeout: float | None = None) -> R:
        """Waits for the end and returns the output.

        timeout: seconds. Raises ActionFailed, RunCancelled, RunBlocked, or StillRunning when the timeout passes.
        """
        return loaded(await self._client.runs.wait(self.id, timeout=timeout), self._load)

    async def get(self) -> Run:
        """The run as it stands; if its service has continued as new, the run that goes on for it."""
        platform = await self._client.platform()
        run = await platform.get(self.id)
        while run.continued_as is not None:  # again, if it continues between the two questions
            newest = await platform.newest(run.id)
            if newest == run.id:
                break
            run = await platform.get(newest)
        return run

    async def cancel(self, *, actor: str | None = None) -> None:
        """Asks for the run to be cancelled; what it did is undone."""
        await self._client.runs.cancel(self.id, actor=actor)

    async def send_event(self, name: str, value: Any = None, *, key: str | None = None) -> None:
        """Sends an event to the run. key: the sender's own; the same one twice is one event."""
        await self._client.runs.send_event(self.id, name, value, key=key)

    def progress(self) -> AsyncIterator[Any]:
        """Every value that the run's service has published and will publish, until the run has ended or is blocked."""
        return self._client.runs.progress(self.id)

    async def journal(self) -> list[Entry]:
        """Every entry of the run so far."""
        return await self._client.runs.journal(self.id)


class AsyncRuns:
    """`client.runs`: look at runs, and steer them."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    async def get(self, id: str) -> Run:
        """A run as it stands. Raises UnknownName."""
        return await (await self._client.platform()).get(run_id(id))

    async def list(
        self,
        *,
        status: Status | None = None,
        undo: Undo | None = None,
        name: str | None = None,
        trail: str | None = None,
        parent: str | None = None,
        labels: dict[str, str] | None = None,
        since: int | None = None,
        before: Run | None = None,
        limit: int = 50,
    ) -> RunList:
        """Runs, newest first.

        status, undo, name, trail: only those. parent: the id of a run; only its children. labels: those that have all
        of these. since: accepted at that time (ms since 1970) or later. before: the last run of the page before.
        limit: how many at most, 1 or more. Results above 256 KiB are left out. Raises DefinitionError for what cannot
        be, such as a status that there is not.
        """
        for given, parameter, known in ((status, "status", get_args(Status)), (undo, "undo", get_args(Undo))):
            if given is not None:
                one_of(given, parameter, known)
        _check_page(labels, since, before, limit)
        filter = RunFilter(
            status=status,
            undo=undo,
            name=name,
            trail=trail,
            parent=parent,
            labels=labels or {},
            since=since,
            before=(before.created_at, before.id) if before else None,
            limit=limit,
        )
        return await (await self._client.platform()).list_runs(filter)

    async def wait(self, id: str, *, timeout: float | None = None) -> Run:
        """Waits for the end and returns the run. Raises like `AsyncHandle.result`."""
        patience(timeout, "timeout")
        platform = await self._client.platform()
        return checked(await within(timeout, platform.result(run_id(id)), id))

    async def journal(self, id: str, *, after: int = 0) -> Entries:
        """The entries of a run after a number."""
        if type(after) is not int:
            raise DefinitionError(f"after={after!r:.80}: the number of an entry is needed.")
        return await (await self._client.platform()).journal(run_id(id), after)

    async def progress(self, id: str) -> AsyncIterator[Any]:
        """Every value that a run's service has published and will publish, until the run has ended or is blocked."""
        id, news = run_id(id), Progress([], 0, ended=False)
        while not news.ended or news.continued_as is not None:
            if news.ended and news.continued_as is not None:
                id, news = news.continued_as, Progress([], 0, ended=False)
            news = await (await self._client.platform()).progress(id, news.after)
            for value in news.values:
                yield value

    async def prune(
        self, *, older_than: float, name: str | None = None, status: str | None = None, actor: str | None = None
    ) -> int:
        """Deletes runs for good that ended more than `older_than` seconds ago, with their children; returns how many.

        name, status: only runs of that action or service, or that ended so. In small steps, beside all other work.
        """
        policy = Retention(older_than=older_than, name=name, status=status)
        return await (await self._client.platform()).prune(policy, actor or self._client.actor)

    async def erase(self, *ids: str, actor: str | None = None) -> int:
        """Erases the data of ended runs and of all their children for good: inputs, results, errors, events,
        effects' inputs and answers, progress, labels, keys and trails. Returns of how many runs.

        The runs stay, and say that they were erased (`run.erased_at`); their journals stay verifiable. The store's file
        is written anew once per call, during which nothing else is written, so give all ids at once. Raises
        UnknownName, InvalidOperation when a run of these trees has not ended.
        """
        return await (await self._client.platform()).erase([run_id(id) for id in ids], actor or self._client.actor)

    async def cancel(self, id: str, *, actor: str | None = None) -> None:
        """Asks for a run to be cancelled. Raises InvalidOperation when it has ended."""
        await (await self._client.platform()).cancel(run_id(id), actor or self._client.actor)

    async def retry(self, id: str, *, actor: str | None = None) -> None:
        """Opens a failed, cancelled or blocked run again; committed steps that stand keep their results."""
        await (await self._client.platform()).retry(run_id(id), actor or self._client.actor)

    async def undo(self, id: str, *, actor: str | None = None) -> None:
        """Takes back what an ended run did."""
        await (await self._client.platform()).undo(run_id(id), actor or self._client.actor)

    async def resolve(
        self,
        id: str,
        outcome: Outcome,
        *,
        answer: Any = None,
        step: str | None = None,
        key: str | None = None,
        actor: str | None = None,
    ) -> None:
        """Answers a question of a blocked run (`run.questions`): it `happened`, `did_not_happen`, or `try_again`.

        answer: what the effect that happened had answered. step, key: which question, when several are open: the
        step's id or its action's name, the question's key. With the last answer the run goes on, in a new generation.

        Raises InvalidOperation when no such question is open, InvalidValue when the answer does not fit the effect.
        """
        platform = await self._client.platform()
        question = the_question(await platform.get(run_id(id)), step, key)
        check_outcome(question, outcome)
        given = None if answer is None else codec.encode_result(answer, "The answer")
        await platform.resolve(id, question.key, outcome, given, actor or self._client.actor)

    async def send_event(
        self, id: str, name: str, value: Any = None, *, key: str | None = None, actor: str | None = None
    ) -> None:
        """Sends an event to a run. Raises InvalidOperation when it has ended."""
        check_text(name, "event")
        check_text(key, "key")
        data = codec.encode(value, f"The value of the event {name!r}")
        await (await self._client.platform()).send_event(run_id(id), name, data, key, actor or self._client.actor)


def run_id(given: str) -> str:
    """The id of a run, as it was given. Raises DefinitionError for what is none, such as a run or a handle."""
    if not isinstance(given, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # users without type checkers
        has_one = isinstance(getattr(given, "id", None), str)
        what = f"a {type(given).__name__}: give its `.id`" if has_one else f"{given!r:.80}"
        raise DefinitionError(f"The id of a run is needed, a text such as 'run_01a2...'; this is {what}.")
    return given


def _check_page(labels: Any, since: Any, before: Any, limit: Any) -> None:
    if type(limit) is not int or limit < 1:
        raise DefinitionError(f"limit={limit!r:.80}: a whole number from 1 is needed.")
    if since is not None and type(since) is not int:
        hint = ", such as int(since.timestamp() * 1000)" if hasattr(since, "timestamp") else ""
        raise DefinitionError(f"since={since!r:.80}: milliseconds since 1970 are needed{hint}.")
    if before is not None and not isinstance(before, Run):
        raise DefinitionError(f"before={before!r:.80}: the last run of the page before is needed, not its id.")
    check_labels(labels if labels is not None else {})


def checked(run: Run) -> Run:
    """The run, if it completed. Raises what its outcome means otherwise."""
    if run.status == "completed":
        return run
    error = run.error
    message = error.message if error else ""
    if run.status == "failed" and error is not None:
        raise ActionFailed(
            error.action or run.name,
            error.type,
            message,
            attempts=error.attempts,
            step=error.step,
            run_id=run.id,
            undo=run.undo,
        )
    outcome = RunBlocked if run.status == "blocked" else RunCancelled
    failure = outcome(f"The run {run.id} of {run.name} is {run.status}: {message}")
    failure.run_id = run.id
    raise failure


async def within(timeout: float | None, work: Any, id: str) -> Run:
    """Waits for a run no longer than that, in seconds. Raises StillRunning."""
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            return await work
    except TimeoutError:
        if not limit.expired():
            raise
        error = StillRunning(f"The run {id} had not ended after {timeout} s. It goes on; ask again by its id.")
        error.run_id = id
        raise error from None


def plain(run: Run) -> Any:
    """What a run has returned, as plain JSON values."""
    return run.result if run.result is not None else nothing(run)


def loaded(run: Run, load: Load) -> Any:
    """What a run has returned, as the declared output."""
    result = plain(run)
    return result if load is None else load(result)


def nothing(run: Run) -> None:
    """The result of a run that has none. Raises InvalidOperation when it had one, which was erased."""
    if run.erased_at is not None:
        raise InvalidOperation(
            f"The run {run.id} of {run.name} completed, and {erased_text(run.erased_at, run.erased_by)}; so there is "
            "no result to give. To do it again, use another key."
        )
