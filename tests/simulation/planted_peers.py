"""Bugs of several nodes on one store that are planted by hand: the simulation must find every one of them."""

import asyncio
import weakref
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from dotdo.engine import claiming
from dotdo.engine.claiming import Claimer
from dotdo.engine.leasing import Lease
from dotdo.engine.peering import Peers
from dotdo.store.sharing import SharedStore
from dotdo.store.sql import SqlStore
from tests.simulation import nodes
from tests.simulation.peers import PeerDatabase, PeerStore
from tests.simulation.planted import nothing

Plant = Callable[[pytest.MonkeyPatch], None]
PLANTED: dict[str, Plant] = {}


def planted(plant: Plant) -> Plant:
    """Adds a bug to the list."""
    PLANTED[plant.__name__] = plant
    return plant


@planted
def comes_back_under_its_old_name(patch: pytest.MonkeyPatch) -> None:
    """A node that was expelled goes on as if nothing had been."""

    def rejoin(self: Any, before: str, node: str, host: str, pid: int, now: int) -> None:
        self._db.write("update nodes set expelled_at = null, lease_until = 1 << 60 where id = :node", {"node": before})
        found = self._db.write("select number, epoch from nodes where id = :node", {"node": before})
        if not found:
            return rejoin_as_it_is(self, before, node, host, pid, now)
        self._db.write("update nodes set id = :new where id = :node", {"new": node, "node": before})
        self._db.act_as(node, *found[0])
        return None

    rejoin_as_it_is = SharedStore.rejoin
    patch.setattr(SharedStore, "rejoin", rejoin)


@planted
def expels_nobody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SharedStore, "_expel", lambda self, node, number: None)


@planted
def rescues_at_its_start_only(patch: pytest.MonkeyPatch) -> None:
    """A node looks once for the runs of those that are gone, and never again."""
    started: weakref.WeakSet[Any] = weakref.WeakSet()
    rescue_as_it_is = PeerStore.rescue

    def rescue(self: Any, now: int, limit: int) -> int:
        if self in started:
            return 0
        started.add(self)
        return rescue_as_it_is(self, now, limit)

    patch.setattr(PeerStore, "rescue", rescue)


@planted
def expels_whoever_it_likes(patch: pytest.MonkeyPatch) -> None:
    """Runs of nodes that still have a lease are taken, and nobody shuts those nodes out."""

    def rescue(self: Any, now: int, limit: int) -> int:
        with self._db.transaction():
            self._db.write(
                "update runs set owner = null, due_at = :now, claim = claim - 1 where ended_at is null and owner in "
                "(select id from nodes where lease_until <= dotdo_now() + 55000)",
                {"now": now},
            )
        return 0

    patch.setattr(PeerStore, "rescue", rescue)
    patch.setattr(SqlStore, "_step", careless_step)


def careless_step(self: Any, steps: list[Any], name: str, items: list[Any], otherwise: str = "") -> None:
    """Appends entries under whatever claim."""
    if name == "append_entries":
        for item in items:
            found = self._db.writer.execute("select claim from runs where id = ?", (item[0],)).fetchall()
            entry = (*item[:-1], found[0][0] if found else item[-1])
            steps.append((self._sql[name], {"rows": msgspec.json.encode([entry]).decode()}, None, ""))
        return
    if items:
        given = msgspec.json.encode(items).decode()
        steps.append((self._sql[name], {"rows": given}, len(items) if otherwise else None, otherwise))


@planted
def needs_a_hint(patch: pytest.MonkeyPatch) -> None:
    """Looks for what is due, or was left, only when another node says so."""

    async def wait(self: Claimer) -> None:
        await self._hint.wait()
        self._hint.clear()

    patch.setattr(Claimer, "_wait", wait)
    patch.setattr(Peers, "_look_at_own", nothing)
    patch.setattr(Peers, "_look_at_nodes", nothing)


@planted
def forgets_claims_whose_answer_was_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lease, "take_up_strays", nothing)
    patch.setattr(SqlStore, "own_runs", lambda self, node: [])


@planted
def drops_the_fence(patch: pytest.MonkeyPatch) -> None:
    """A node that was expelled may still write, as long as no other has taken what it writes to."""
    patch.setattr(PeerDatabase, "enter", lambda self, number, epoch: None)


@planted
def believes_its_lease_for_ever(patch: pytest.MonkeyPatch) -> None:
    """A node that could not renew its lease, or stood still for as long, begins what it had in memory."""
    patch.setattr(Lease, "lasts", property(lambda self: True))
    patch.setattr(Lease, "_tell", lambda self, node, why: None)


@planted
def rings_without_a_lease(patch: pytest.MonkeyPatch) -> None:
    """Rings its alarm for what is due, also while it may claim nothing. Here hearts stop often."""

    async def wait(self: Claimer) -> None:
        engine = self._engine
        due = await engine.read(engine.store.next_due)
        if due is not None and not self._hint.is_set():
            engine.alarm.at(due, self.hint)
        try:
            async with asyncio.timeout(claiming.POLL_SECONDS):
                await self._hint.wait()
        except TimeoutError:
            return
        finally:
            self._hint.clear()

    patch.setattr(Claimer, "_wait", wait)
    patch.setattr(nodes, "HEART", {"heart.stops": 0.5})
