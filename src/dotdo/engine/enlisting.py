"""Starting a run within a transaction of the caller's own: what is to be executed there.

The run is nobody's and due, as if it had been filed by a client; whoever hears of the commit claims it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from dotdo import codec
from dotdo.engine.accepting import check_same_input, left_to_others, new_run, run_id
from dotdo.engine.spilling import Late
from dotdo.errors import DefinitionError
from dotdo.journal import input_digest
from dotdo.records import Options, RunKind
from dotdo.store.protocol import Filed

if TYPE_CHECKING:
    from dotdo.engine.engine import Engine
    from dotdo.engine.following import Follower
    from dotdo.store.protocol import Rows, Statement
    from dotdo.store.sharing_protocol import SharedStore


async def enlisting(
    platform: "Engine | Follower", kind: RunKind, name: str, params: Any, options: Options
) -> "Generator[Statement, Rows, str]":
    """What a caller executes in its transaction; it returns the run's id in the end. Raises InputError,
    DefinitionError, StoreError. It raises KeyConflict itself."""
    if not platform.store.shared:
        raise DefinitionError(
            "within= needs a store on PostgreSQL, in the database of the transaction; the store "
            f"{platform.store.where} is a file of its own. Start the run after your commit, under a key made from what "
            "you have written (key=f'order:{order.id}'): the same key again is the same run."
        )
    store = cast("SharedStore", platform.store)
    definition = platform.catalogue.get(kind, name, options.version)
    id = run_id(name, options.key)
    at_rest = partial(platform.vault.accepted, definition.schema, params, id, options)
    input, identity = await asyncio.to_thread(at_rest) if codec.is_heavy(params) else at_rest()
    accepted = new_run(
        platform, id, definition, kind, input, options, pins=await platform.newest_versions(), identity=identity
    )
    parts: list[tuple[str, int, bytes]] = []
    if not accepted.entry.digest:
        late = Late()
        late.accept(accepted)
        await late.bring(_Parts(parts))
        late.accepted(platform.anchor_key)
    place = await platform.read(store.identity)
    statements = store.enlist(Filed(left_to_others(accepted.row, "an engine"), accepted.entry), parts, place)

    def checked() -> "Generator[Statement, Rows, str]":
        known = yield from statements
        if known is not None:
            check_same_input(known, input_digest(identity), options.key or "", name, id)
        return id

    return checked()


class _Parts:
    """Keeps the parts of what is large, for the caller's transaction: they are there if and only if the run is."""

    def __init__(self, parts: list[tuple[str, int, bytes]]) -> None:
        self._parts = parts
        self.store: Any = self

    def write_blob(self, _run: str, digest: str, part: int, data: bytes) -> None:
        """One part."""
        self._parts.append((digest, part, data))

    def apart(self, function: Callable[[], Any]) -> Awaitable[Any]:
        """What is long is done on a thread."""
        return asyncio.to_thread(function)

    async def call(self, function: Callable[[], Any]) -> Any:
        """At once."""
        return function()
