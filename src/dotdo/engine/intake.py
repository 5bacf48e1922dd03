"""What is asked for becomes a run: the input is checked, a key is looked up, and from its commit on the run is the
engine's.

Runs accepted in one turn of the loop are started together, in the next one.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

from dotdo.codec import is_heavy
from dotdo.engine.accepting import AcceptedRun, check_same_input, left_to_others, new_run, run_id
from dotdo.engine.elsewhere import defined_anywhere
from dotdo.engine.guarding import broke
from dotdo.engine.history import History
from dotdo.engine.journaling import RunJournal
from dotdo.engine.leasing import not_known
from dotdo.engine.running import LiveRun
from dotdo.errors import ClientClosed, StoreError, StoreUnavailable
from dotdo.journal import LARGE, input_digest
from dotdo.offer import Remote
from dotdo.records import Options, RunKind

if TYPE_CHECKING:
    from dotdo.engine.engine import Engine


class Intake:
    """Where runs come into an engine."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self.fresh: list[LiveRun] = []  # accepted, and not started yet

    async def accept(self, kind: RunKind, name: str, params: Any, options: Options, id: str | None = None) -> str:
        """Returns the run's id once it is durable. Raises InputError, StoreError."""
        id, journal, identity = await self._accept(kind, name, params, options, id)
        if journal is not None:
            await self._durable(journal, identity, options.key, name)
        return id

    async def accept_to_wait(self, kind: RunKind, name: str, params: Any, options: Options) -> str:
        """For who waits for its end: that comes after it is durable. Only a key may turn out to be taken meanwhile."""
        id, journal, identity = await self._accept(kind, name, params, options)
        if journal is not None and options.key is not None:
            await self._durable(journal, identity, options.key, name)
        return id

    async def _durable(self, journal: RunJournal, identity: bytes, key: str | None, name: str) -> None:
        """Returns when the run is durable; after a commit whose outcome was not known, only if it is there."""
        try:
            await journal.durable()
        except StoreError:
            try:
                known = await self._engine.read(lambda: self._engine.store.input_digest(journal.run))
            except StoreUnavailable as error:
                raise not_known(error) from None
            if known is None:
                raise
            # Another process may have used the key in the same moment, and for something else.
            check_same_input(known, input_digest(identity), key or "", name, journal.run)

    async def _accept(
        self, kind: RunKind, name: str, params: Any, options: Options, id: str | None = None
    ) -> tuple[str, RunJournal | None, bytes]:
        engine = self._engine
        if engine.closing:
            raise ClientClosed("The client is closed; open a new one.")
        if engine.draining:
            raise engine.outliving.draining or ClientClosed("The engine is being stopped.")
        if engine.lease is not None and not engine.lease.lasts:
            await engine.lease.returned()
        definition = defined_anywhere(engine, kind, name, options.version)
        id = id or run_id(name, options.key)
        at_rest = partial(engine.vault.accepted, definition.schema, params, id, options)
        input, identity = await engine.committer.apart(at_rest) if is_heavy(params) else at_rest()
        if engine.catalogue.changes != engine.pinned.changes:
            await engine.pinned.take()
        if options.key is not None:
            of_input = partial(input_digest, identity)
            digest = of_input() if len(identity) <= LARGE else await engine.committer.apart(of_input)
            known = await self._known(id, digest, options.key, name)
            if known:
                return id, known if isinstance(known, RunJournal) else None, identity
        if engine.closing:  # meanwhile: nothing would write it any more
            raise ClientClosed("The client is closed; open a new one.")
        if engine.lease is not None:
            engine.lease.check()
        accepted = new_run(engine, id, definition, kind, input, options, pins=engine.pinned.now.id, identity=identity)
        if options.delay or isinstance(definition, Remote):
            await self._accept_unowned(accepted, identity)
            return id, None, identity
        run = self._live_run(accepted)
        run.journal.accept(accepted)
        self._start_soon(run)
        return id, run.journal, identity

    async def _known(self, id: str, given: str, key: str, name: str) -> "RunJournal | bool":
        """Whether a keyed run exists. Raises KeyConflict when it was given another input."""
        engine = self._engine
        run = engine.live.get(id)
        if run is not None:
            digest: str | None = self._digest_of(run)
        else:
            digest = await engine.read(lambda: engine.store.input_digest(id))
            run = engine.live.get(id)
            if digest is None and run is not None:
                digest = self._digest_of(run)
        if digest is None:
            return False
        check_same_input(digest, given, key, name, id)
        return run.journal if run is not None else True

    def _digest_of(self, run: LiveRun) -> str:
        return input_digest(self._engine.vault.identity(run.definition.schema, bytes(run.accepted.input), run.id))

    async def _accept_unowned(self, accepted: AcceptedRun, identity: bytes) -> None:
        accepted.row = left_to_others(accepted.row)
        run = self._live_run(accepted)
        run.journal.accept(accepted)
        self._engine.parked(run)  # also if whoever asked does not wait for it
        await self._durable(run.journal, identity, accepted.row.key, accepted.row.name)
        self._engine.hint(run.id)

    def _live_run(self, accepted: AcceptedRun) -> LiveRun:
        engine = self._engine
        history = History()
        history.apply(accepted.entry, accepted.data)
        journal = engine.journal_of(accepted.id, 1, accepted.entry, 0)
        if engine.check_replay:
            journal.kept = []
        run = engine.live[accepted.id] = LiveRun(engine, history, journal, accepted.definition)
        return run

    def _start_soon(self, run: LiveRun) -> None:
        self.fresh.append(run)
        if len(self.fresh) == 1:
            self._engine.loop.call_soon(self._start_fresh)

    def _start_fresh(self) -> None:
        fresh, self.fresh = self.fresh, []
        for run in fresh:
            if not run.over:
                try:
                    run.start([], fresh=True)
                except BaseException as error:  # one run's trouble must not keep others from being started
                    broke(run, error)

    def start_child(self, accepted: AcceptedRun) -> None:
        """Starts a child run that its parent has had accepted."""
        run = self._live_run(accepted)
        if run.journal.kept is not None:
            run.journal.kept.append(accepted.whole_entry)  # written through the parent's journal, unseen by its own
        self._start_soon(run)

    def start_successor(self, accepted: AcceptedRun) -> None:
        """Starts a run that goes on for another, and has it take the messages that it was left."""
        self.start_child(accepted)
        self._engine.hint(accepted.id)
