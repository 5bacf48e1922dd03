"""Says what is wrong in the end, from the store's rows, the application's database and the ledger alone.

I4, I5, I10, I11 and I12 are those of tests/guarantees/invariants.py, I9 that of replays.py. The store may be a file, or
a database that stands for it on a server; see tests/stores.py.
"""

import hashlib
import hmac
from collections import Counter, defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import apsw
import msgspec

from dotdo import Catalogue
from tests.guarantees.invariants import check_store
from tests.guarantees.replays import check_replays
from tests.simulation.cases import Order
from tests.simulation.hostile import hostile
from tests.simulation.ranks import check_priorities
from tests.simulation.undone import check_undone
from tests.simulation.world import World, catalogue
from tests.stores import rows_of

ENDED = ("completed", "failed", "cancelled")
# What is large stands in parts of its own, and nothing of it is looked at here.
JOURNAL = "select * from journal where data <> '@' || data_digest order by run, seq"
# Of processes, by one run that nobody has mended. When the store has failed, a death may not have been counted: nobody
# knows who had the run then.
MOST_DEATHS = 3
# Claims of a run of which nothing came, in a row: each death of a process may cost one, and each failure of the store.
MOST_CLAIMS = 15
# How late a deadline may be noticed, in ms: a process was dead meanwhile, or the store slow. And a clock may jump.
LATE, JUMP = 1_800_000, 3_600_000
OF_DELIVERIES = ("committed", "delivering", "delivery_failed", "delivered", "effects_dropped", "resolved")


@dataclass
class Told:
    """What callers asked for, and were told: the orders and the ids that they were given for them, by key; what was
    refused, by the senders of events; how often the store has failed, and a clock jumped ahead. orders: None, where
    others come as well."""

    orders: dict[str, Order] | None
    answered: dict[str, str] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    failures: int = 0
    jumps: int = 0


def audit(
    store: Path, app: Path, world: World, told: Told, key: bytes, *, over: bool, catalogue: Catalogue = catalogue
) -> list[str]:
    """What does not hold, in words. key: of the anchors. over: nothing moves any more. catalogue: what there was."""
    wrong = list(world.wrong)
    for check in (lambda: check_store(store), (lambda: check_replays(store, catalogue)) if over else lambda: None):
        try:
            check()
        except (AssertionError, LookupError) as error:  # LookupError: rows that refer to what is not there
            wrong.append(f"{type(error).__name__}: {error}")
    runs = {row["id"]: row for row in rows_of(store, "select * from runs")}
    entries = rows_of(store, JOURNAL)
    wrong += [f"I1: {of} was answered with {id}, which is gone" for of, id in told.answered.items() if id not in runs]
    by_key = Counter((run["name"], run["key"]) for run in runs.values() if run["key"])
    wrong += [f"I2: {count} runs for {key}" for key, count in by_key.items() if count > 1]
    wrong += _refused(runs, entries, told)
    wrong += _anchors(runs, key)
    wrong += _entries(entries)
    wrong += _attempts(entries, catalogue)
    wrong += _times(entries, told)
    wrong += _claims(entries, told)
    wrong += _effects(entries, world)
    wrong += check_priorities(runs.values(), told.orders or {})
    undone, stock = check_undone(entries, catalogue)
    wrong += undone
    wrong += _hostile(runs, entries, told, world)
    if over:
        # Rates are remembered as long as they count.
        wrong += [f"slots are left: {row}" for row in rows_of(store, "select * from slots where until is null")]
        wrong += [
            f"I4: {run['id']} ({run['name']}) is {run['status']} for good: {run['waiting_for']}"
            for run in runs.values()
            if run["status"] not in (*ENDED, "blocked")
        ]
        wrong += _sql(entries, app, stock)
    return wrong


def _entries(entries: list[dict[str, Any]]) -> list[str]:
    """Times, events and answers, entry by entry."""
    wrong: list[str] = []
    events: Counter[tuple[str, str]] = Counter()
    answers: dict[tuple[str, int, str], str] = {}
    on_failure: Counter[tuple[str, int, str]] = Counter()
    for entry in entries:
        data, where = msgspec.json.decode(entry["data"]), f"{entry['run']}: {entry['step']}"
        match entry["kind"]:
            case "fired" if entry["at"] < data["due"]:
                wrong.append(f"a timer of {where} fired {data['due'] - entry['at']} ms early")
            case "event":
                if data.get("sender"):
                    events[entry["run"], data["sender"]] += 1
            case "committed" | "completed":
                for effect in data.get("effects", ()):
                    attempt = str(effect["input"]["what"]).rpartition(" at ")[2]
                    if attempt.isdigit() and int(attempt) != entry["attempt"]:
                        wrong.append(f"I6: {where} sends what attempt {attempt} had staged, which did not commit")
                if entry["step"].startswith("on_failure:"):
                    on_failure[entry["run"], entry["generation"], entry["step"]] += 1
            case "answered":
                answers.setdefault((entry["run"], entry["generation"], f"{entry['step']} {data['request']}"), "")
            case _:
                pass
    wrong += [
        f"event {sender} was taken {count} times by {run}" for (run, sender), count in events.items() if count > 1
    ]
    wrong += [f"{step} of {run} committed {count} times" for (run, _, step), count in on_failure.items() if count > 1]
    return wrong


def _attempts(entries: list[dict[str, Any]], catalogue: Catalogue) -> list[str]:
    """That no action fails more often, in one generation, than its retries allow, whoever had the run meanwhile."""
    failures: Counter[tuple[str, int, str, str, int]] = Counter()
    for entry in entries:
        if entry["kind"] == "attempt_failed":
            data = msgspec.json.decode(entry["data"])
            failures[entry["run"], entry["generation"], entry["step"], data["action"], data["version"]] += 1
    wrong: list[str] = []
    for (run, _, step, name, version), count in failures.items():
        found = catalogue.find("action", name, version)
        allowed = found.retry.attempts if found is not None else None
        if allowed is not None and count > allowed:
            wrong.append(f"{step} of {run} failed {count} times, though {allowed} attempts are allowed")
    return wrong


def _times(entries: list[dict[str, Any]], told: Told) -> list[str]:
    """That no timer fires before its time, and that deadlines are kept: by what was accepted and by the names of the
    timers, not by when the engine took them to be due."""
    wrong: list[str] = []
    for run, of_it in groupby(entries, key=lambda entry: entry["run"]):
        first, *others = of_it
        options = msgspec.json.decode(first["data"]).get("options") or {}
        begins = first["at"] + round((options.get("delay") or 0) * 1000)
        for entry in others:
            if entry["kind"] == "fired":
                delay = int(entry["step"].removeprefix("timer:").partition("#")[0])
                if entry["at"] < begins + delay:
                    early = begins + delay - entry["at"]
                    wrong.append(f"{entry['step']} of {run} fired at least {early} ms early")
        if options.get("deadline"):
            limit = begins + round(options["deadline"] * 1000) + LATE + JUMP * told.jumps
            end = next((one for one in others if one["kind"] in ("stopping", "ended", "blocked")), None)
            if end is not None and end["at"] > limit:
                wrong.append(f"the deadline of {run} was overlooked: {end['kind']} {end['at'] - limit} ms too late")
    return wrong


def _claims(entries: list[dict[str, Any]], told: Told) -> list[str]:
    """I4: who waits is left alone until something has come for him."""
    most: Counter[str] = Counter()
    for (run, kind), ones in groupby(entries, key=lambda entry: (entry["run"], entry["kind"])):
        if kind == "claimed":
            most[run] = max(most[run], sum(1 for _ in ones))
    allowed = MOST_CLAIMS + told.failures
    return [f"I4: {run} was claimed {count} times for nothing" for run, count in most.items() if count > allowed]


def _refused(runs: dict[str, Any], entries: list[dict[str, Any]], told: Told) -> list[str]:
    """I3."""
    wrong = [
        f"I3: nobody was given {run['id']} ({run['name']}, key {run['key']})"
        for run in runs.values()
        if told.orders is not None and run["parent"] is None and run["key"] not in told.orders
    ]
    for entry in entries if told.refused else ():
        sender = msgspec.json.decode(entry["data"]).get("sender") if entry["kind"] == "event" else None
        if sender in told.refused:
            wrong.append(f"I3: {entry['run']} has taken the event {sender}, which was refused")
    return wrong


def _anchors(runs: dict[str, Any], key: bytes) -> list[str]:
    """I11: whoever writes to the store can not make up the head of a journal."""
    return [
        f"I11: the anchor of {run['id']} does not verify"
        for run in runs.values()
        if hmac.new(key, f"{run['id']}|{run['seq']}|{run['digest']}".encode(), hashlib.sha256).hexdigest()
        != run["anchor"]
    ]


def _waited_when_read_again(entries: list[dict[str, Any]]) -> set[str]:
    """Runs with a claim under which they never began: after the store had failed them they were read again, and waited
    for their turn as suspects when the process died. Their rows say that they were in flight."""
    claims: dict[str, list[int]] = defaultdict(lambda: [1])
    for entry in entries:
        if entry["kind"] == "claimed":
            claims[entry["run"]].append(msgspec.json.decode(entry["data"])["claim"])
    return {run for run, found in claims.items() if any(later > claim + 1 for claim, later in pairwise(found))}


def _hostile(runs: dict[str, Any], entries: list[dict[str, Any]], told: Told, world: World) -> list[str]:
    """I13: what a run does to its process hurts no other run, and has an end. Nothing else kills processes then."""
    orders = told.orders or {}
    plans = {told.answered[key]: order.plan for key, order in orders.items() if key in told.answered}
    worst = {id: plan[0]["how"] for id, plan in plans.items() if id in runs and runs[id]["name"] == hostile.name}
    wrong = [
        f"I13: {id} returns a {how} value, or leaves, and is {runs[id]['status']}"
        for id, how in worst.items()
        if how != "dies" and runs[id]["status"] == "completed"
    ]
    most = MOST_DEATHS + told.failures
    wrong += [f"I13: {id} has killed {count} processes" for id, count in world.deaths.items() if count > most]
    doubtful = _waited_when_read_again(entries)
    for entry in entries if worst else ():
        is_other = entry["kind"] == "blocked" and entry["run"] not in {*worst, *doubtful}
        if is_other and msgspec.json.decode(entry["data"])["reason"] == "crashed":
            wrong.append(f"I13: {entry['run']} is blocked for the deaths of its process, which another run killed")
    return wrong


def _effects(entries: list[dict[str, Any]], world: World) -> list[str]:
    """I8, and that nothing happens twice that must not."""
    wrong: list[str] = []
    by_key: dict[str, list[Any]] = defaultdict(list)
    for arrival in world.arrivals:
        by_key[arrival.key].append(arrival)
    kept = _kept(entries)
    for key, arrivals in by_key.items():
        # What is staged here names the attempt: that is another one when the step was done again.
        if len({(one.system, one.what.rpartition(" at ")[0] if key in kept else one.what) for one in arrivals}) > 1:
            wrong.append(f"I8: one key for several effects: {arrivals}")
        happened = sum(one.happened for one in arrivals)
        if happened > 1 and arrivals[0].system in ("found", "asked"):
            wrong.append(f"{arrivals[0].system}: {arrivals[0].what} ({key}) was guessed: it happened {happened} times")
    wrong += _keys(entries)
    staged: dict[tuple[str, str, int], str] = {}  # the keys of a step, as its last commit says
    for entry in entries:
        if entry["kind"] == "committed":
            for index, effect in enumerate(msgspec.json.decode(entry["data"])["effects"]):
                staged[entry["run"], entry["step"], index] = effect["key"]
        elif entry["kind"] == "delivered":
            key = staged[entry["run"], entry["step"], msgspec.json.decode(entry["data"])["effect"]]
            if key not in by_key:
                wrong.append(f"{key} is journaled as delivered, and never arrived")
    return wrong


def _kept(entries: list[dict[str, Any]]) -> set[str]:
    """The keys of what was perhaps delivered before its step was done again: they are kept, so that the receiver can
    tell the n-th staging then from the n-th before (docs/decisions/retry-opens-a-generation.md)."""
    staged: dict[tuple[str, str], list[str]] = {}
    doubts: set[str] = set()
    kept: set[str] = set()
    for entry in entries:
        of = entry["run"], entry["step"]
        if entry["kind"] not in OF_DELIVERIES:
            continue
        data = msgspec.json.decode(entry["data"])
        match entry["kind"]:
            case "committed":
                staged[of] = [effect["key"] for effect in data["effects"]]
                kept.update(doubts.intersection(staged[of]))
            case "delivering":
                doubts.add(staged[of][data["effect"]])
            case "delivered":
                doubts.discard(staged[of][data["effect"]])
            case "delivery_failed":
                (doubts.add if data.get("unknown") else doubts.discard)(staged[of][data["effect"]])
            case "effects_dropped":
                for index in data["effects"]:
                    (doubts.add if index in data.get("unknown", ()) else doubts.discard)(staged[of][index])
            case _:
                if data["outcome"] != "try_again":
                    doubts.discard(data["key"])
    return kept


def _keys(entries: list[dict[str, Any]]) -> list[str]:
    """I8: the same request goes under one key until it is known how it went, and no other goes under that."""
    wrong: list[str] = []
    keys: dict[Any, str] = {}
    owners: dict[str, Any] = {}
    for entry in entries:
        if entry["kind"] == "requested":
            data = msgspec.json.decode(entry["data"])
            of = entry["run"], entry["step"], data["request"]
            if keys.setdefault((*of, data["epoch"]), data["key"]) != data["key"]:
                wrong.append(f"I8: {of} has two keys: {keys[*of, data['epoch']]} and {data['key']}")
            if owners.setdefault(data["key"], of) != of:
                wrong.append(f"I8: {of} and {owners[data['key']]} have one key: {data['key']}")
    return wrong


def _sql(entries: list[dict[str, Any]], app: Path, expected: set[str]) -> list[str]:
    """I7, and that what is undone is gone, and nothing else. expected: what is committed and not undone."""
    wrong: list[str] = []
    committed: Counter[str] = Counter()
    for entry in entries:
        if entry["kind"] in ("committed", "completed") and msgspec.json.decode(entry["data"]).get("sql"):
            committed[f"{entry['run']} {entry['step']}"] += 1
    with closing(apsw.Connection(str(app), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        applied = Counter(str(what) for (what,) in connection.execute("select what from transactions"))
        stock = Counter(str(what) for (what,) in connection.execute("select what from stock"))
    for step in committed.keys() | applied.keys():
        if committed[step] != applied[step]:
            wrong.append(f"I7: {step}: committed {committed[step]} times, applied {applied[step]} times")
    wrong += [f"I7: {what} is there {count} times" for what, count in stock.items() if count > 1]
    wrong += [f"I10: {what} is undone, or was never committed, and is there" for what in stock.keys() - expected]
    wrong += [f"I10: {what} is committed and not undone, and is not there" for what in expected - stock.keys()]
    return wrong
