"""Slots of actions with limits: who asks, who has one, and who is next. Shared by all nodes, and durable.

Each step that asks has a ticket, whose number is its place. It takes the slots of its limits one after the other, those
of a key before those of the whole action, so it never keeps others waiting for what it cannot use. A slot of a rate
stays taken for the rate's time after the start. Whoever changes anything of a pool (an action) locks it first, and
leaves nobody waiting for a slot that is free; so whoever finds one free upon asking overtakes nobody.
"""

import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from dotdo.records import HIGHEST_PRIORITY, LOWEST_PRIORITY
from dotdo.store.fairness import Shares
from dotdo.store.protocol import Limit, Message, Place, Settled, SlotAsk

if TYPE_CHECKING:
    from dotdo.store.sql import Database

Touched = dict[str, tuple[Limit, str]]  # limits in which there may be room, with their pools
MANY = 200  # tickets that are looked at together
SLOT = "slot"  # the kind of the message to a run

_LEVELS = msgspec.json.encode([(each,) for each in range(LOWEST_PRIORITY, HIGHEST_PRIORITY + 1)]).decode()

_encode = msgspec.json.Encoder().encode
_limits = msgspec.json.Decoder(list[Limit])


class _Ticket(msgspec.Struct, frozen=True, array_like=True):
    """The next one for a limit."""

    id: int
    pool: str
    run: str
    step: str
    limits: str
    stage: int
    scope: str
    alive: bool
    claim: int


class Limiting:
    """The part of `SqlStore` for limits across nodes."""

    _db: "Database"
    _sql: dict[str, str]
    _slot_shares: Shares
    shared: bool

    def settle_slots(self, asks: Sequence[SlotAsk], gone: Sequence[tuple[str, str, str]], now: int) -> Settled:
        """Gives slots back, then hands out what is free."""
        with self._db.transaction():
            self._lock({ask.pool for ask in asks} | {pool for _, _, pool in gone})
            touched: Touched = {}
            if gone:
                found = self._do("find_tickets", gone)
                self._drop([(id, pool, limits) for id, pool, _, _, limits, _, _ in found], touched)
            self._ask(asks, touched, now)
            granted = self._advance(touched, now)
            wanted = [(ask.run, ask.step, ask.pool) for ask in asks]
            places = {(row[2], row[3], row[1]): Place(row[0], row[6]) for row in self._do("find_tickets", wanted)}
            asked = set(wanted)
            others = [one for one in granted if (one.run, one.step, one.pool) not in asked]
            return Settled([places[each] for each in wanted], self._wake(others, now), self._next(self._db.write))

    def sweep_slots(self, now: int, before: int) -> Settled:
        """Takes back the slots of runs that have come to rest, and of those whose node is gone, and hands out again
        what time has freed."""
        given = {"before": before, "limit": MANY}
        stale, due = self._db.read(self._sql["stale_tickets"], given), self._due(self._db.read, now)
        if not (stale or due or self._db.read(self._sql["any_past_slot"], {"now": now})):
            return Settled([], [], self._next(self._db.read))
        pools = {row[1] for row in stale} | {row[1] for row in due}
        with self._db.transaction():
            self._lock(pools)
            stale = [row for row in self._db.write(self._sql["stale_tickets"], given) if row[1] in pools]
            touched: Touched = {row[0]: (Limit(row[0], *row[2:]), row[1]) for row in self._due(self._db.write, now)}
            self._drop([row[:3] for row in stale if row[3]], touched)
            away = [row[:3] for row in stale if not row[3]]
            if away:
                self._touch(away, touched)
                self._do("free_slots", [(row[0],) for row in away])
                self._do("set_aside_tickets", [(row[0],) for row in away])
            self._db.write(self._sql["clear_slots"], {"now": now})
            granted = self._advance({scope: one for scope, one in touched.items() if one[1] in pools}, now)
            return Settled([], self._wake(granted, now), self._next(self._db.write))

    def count_limited(self) -> list[tuple[str, str, int]]:
        """How many steps of each action have their slots (""), or wait for a limit of a kind."""
        return [(pool, waits, count) for pool, waits, count in self._db.read(self._sql["count_tickets"])]

    def _next(self, ask: Any) -> int | None:
        """When the earliest limit moves by itself."""
        return ask(self._sql["next_slot"])[0][0]

    # -- inside a transaction -----------------------------------------------------------------------------------------

    def _lock(self, pools: Iterable[str]) -> None:
        if self.shared:
            # Two pools may share a lock; that only makes one wait for the other.
            numbers = sorted({zlib.crc32(pool.encode()) - (1 << 31) for pool in pools})
            self._do("lock_pools", [(number,) for number in numbers])

    def _do(self, name: str, rows: Sequence[Any], **more: Any) -> list[tuple[Any, ...]]:
        return self._db.write(self._sql[name], {"rows": _encode(rows).decode(), **more}) if rows else []

    def _due(self, ask: Any, now: int) -> list[tuple[Any, ...]]:
        return ask(self._sql["due_rates"], {"now": now, "limit": MANY})

    @staticmethod
    def _touch(tickets: Iterable[Sequence[Any]], touched: Touched) -> None:
        """There may be room in the limits of these tickets: number, pool, limits."""
        for _, pool, limits in tickets:
            touched.update((limit.scope, (limit, pool)) for limit in _limits.decode(limits))

    def _drop(self, tickets: Sequence[Sequence[Any]], touched: Touched) -> None:
        self._touch(tickets, touched)
        ids = [(row[0],) for row in tickets]
        self._do("free_slots", ids)
        self._do("delete_tickets", ids)

    def _ask(self, asks: Sequence[SlotAsk], touched: Touched, now: int) -> None:
        """Has each ask a ticket that waits, or has all."""
        found = self._do("find_tickets", [(ask.run, ask.step, ask.pool) for ask in asks])
        known = {(run, step, pool): (id, limits, stage) for id, pool, run, step, limits, stage, _ in found}
        new: list[Any] = []
        keep: list[Any] = []
        renew: list[Any] = []
        for ask in asks:
            limits, first = _encode(ask.limits).decode(), ask.limits[0]
            id, before, stage = known.get((ask.run, ask.step, ask.pool), (None, "", 0))
            if id is None:
                new.append((ask.pool, ask.run, ask.step, ask.claim, ask.priority, limits, first.scope, now))
            elif stage >= 0 and limits == before:
                keep.append((id, ask.claim))
            else:
                self._touch([(id, ask.pool, before)], touched)
                renew.append((id, ask.claim, limits, first.scope, now))
            touched[first.scope] = (first, ask.pool)
        self._do("add_tickets", new)
        self._do("keep_tickets", keep)
        self._do("free_slots", [(row[0],) for row in renew])
        self._do("renew_tickets", renew)

    def _advance(self, touched: Touched, now: int) -> list[_Ticket]:
        """Hands out every slot that is free in these limits; returns the tickets that have all of theirs now."""
        granted: list[_Ticket] = []
        timed: Touched = {}
        todo = touched
        while todo:
            timed.update((scope, one) for scope, one in todo.items() if one[0].lasts)
            counts = self._do("count_slots", [(scope,) for scope in todo], now=now)
            room = {scope: todo[scope][0].most - taken for scope, taken, _ in counts}
            room = {scope: free for scope, free in room.items() if free > 0}
            todo = self._round(room, todo, timed, granted, now) if room else {}
        self._time(timed, now)
        return granted

    def _round(self, room: dict[str, int], todo: Touched, timed: Touched, granted: list[_Ticket], now: int) -> Touched:
        """Gives each limit's free slots to the next ones; returns the limits in which there may be room after that."""
        again: Touched = {}
        most = min(MANY, max(room.values()))
        found = self._do("first_waiting", [(scope,) for scope in room], limit=most)
        patient = [(scope,) for scope in room if self._slot_shares.is_patient(scope)]
        if patient:
            before = self._do("longest_waiting", patient, levels=_LEVELS)
            first = {row[0] for row in before}
            found = before + [row for row in found if row[0] not in first]
        seen: dict[str, int] = defaultdict(int)
        gone: list[tuple[int, str, str]] = []
        moves: list[Any] = []
        slots: list[Any] = []
        for ticket in (_Ticket(*row) for row in found):
            seen[ticket.scope] += 1
            if not ticket.alive:
                gone.append((ticket.id, ticket.pool, ticket.limits))
                again[ticket.scope] = todo[ticket.scope]
            elif room[ticket.scope] > 0:
                room[ticket.scope] -= 1
                self._slot_shares.count(ticket.scope)
                limits, stage = _limits.decode(ticket.limits), ticket.stage + 1
                slots.append((ticket.scope, ticket.id, None))
                if stage < len(limits):
                    again[limits[stage].scope] = (limits[stage], ticket.pool)
                    moves.append((ticket.id, stage, limits[stage].scope, now))
                    continue
                moves.append((ticket.id, stage, None, now))
                granted.append(ticket)
                rates = [limit for limit in limits if limit.lasts]
                timed.update((limit.scope, (limit, ticket.pool)) for limit in rates)
                slots += [(limit.scope, ticket.id, now + limit.lasts) for limit in rates]
        again.update((scope, todo[scope]) for scope, count in seen.items() if count == most and room[scope] > 0)
        self._drop(gone, again)
        self._do("take_slots", list({row[:2]: row for row in slots}.values()))
        self._do("move_tickets", moves)
        return again

    def _time(self, timed: Touched, now: int) -> None:
        """Notes when to look again at rates for which somebody waits."""
        if not timed:
            return
        waited = {row[0] for row in self._do("waiting_scopes", [(scope,) for scope in timed])}
        first = {scope: at for scope, _, at in self._do("count_slots", [(scope,) for scope in waited], now=now)}
        rows = [
            (scope, pool, limit.most, limit.lasts, first[scope])
            for scope, (limit, pool) in timed.items()
            if first.get(scope) is not None
        ]
        self._do("delete_rates", [(scope,) for scope in timed if first.get(scope) is None])
        self._do("set_rates", rows)

    def _wake(self, granted: Sequence[_Ticket], now: int) -> list[str]:
        """Tells runs, under the claim that has asked, that one of their steps has its slots; one that has left memory
        is due."""
        if not granted:
            return []
        runs = sorted({ticket.run for ticket in granted})
        if self.shared:
            # What comes for a run while it is parked must be seen by one of the two, whoever is first.
            self._do("lock_runs", [(run,) for run in runs])
        self._do(
            "post_messages",
            [
                Message(one.run, SLOT, f"{one.id}", f"{one.claim}", f"{SLOT}/{one.id}/{one.claim}", None, now)
                for one in granted
            ],
        )
        self._do("wake_receivers", [(run,) for run in runs], now=now)
        return runs
