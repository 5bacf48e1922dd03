"""The journal's entries, and the hash chain that shows every change to them."""

import hashlib
import hmac
import json
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dotdo.journal import (
    GENESIS,
    KINDS,
    Accepted,
    Answered,
    Blocked,
    CancelRequested,
    ChildStarted,
    Claimed,
    Completion,
    Data,
    Delivered,
    Entry,
    EventReceived,
    Requested,
    Resolved,
    StagedEffect,
    anchor,
    chain,
    encode_data,
    link,
    read,
)
from dotdo.records import ErrorRecord, Options, Question

ERROR = ErrorRecord("ValueError", "no", "Traceback ...", action="a", step="a:1", attempts=2)
RAW = msgspec.Raw(b'{"b": 1.0,  "a":[1e2]}')  # as a worker in another language may have written it
EXAMPLES: dict[type[Data], Any] = {
    Accepted: Accepted("service", "s", 1, RAW, "seed", "node_1", Options(key="k"), "run_0", "s:1", "pins"),
    Claimed: Claimed("node_1", 3, crashed=True),
    Completion: Completion(
        "a", 1, RAW, RAW, 5, [StagedEffect("mail", 1, "key", RAW)], ["r#1"], True, ["default"], True
    ),
    Requested: Requested("r#1", "order", 1, "key", 0, RAW),
    Answered: Answered("r#1", RAW),
    Delivered: Delivered(0, 2, RAW),
    EventReceived: EventReceived("approved", RAW, "event:1", "ada"),
    ChildStarted: ChildStarted("run_1.1", "child", 1, RAW),
    Blocked: Blocked(
        "unknown outcome",
        ERROR,
        [Question(key="k", about="request", step="a:1", effect="mail", text="Did it?", at=7, input={"to": ["ada"]})],
    ),
    Resolved: Resolved("key", "request", "happened", RAW, "ada"),
    CancelRequested: CancelRequested("ada"),
}

# -- entries ----------------------------------------------------------------------------------------------------------


def some(field: Any) -> Any:
    """A value for a required field of an entry's data."""
    kind = field.type
    if kind is msgspec.Raw:
        return RAW
    if kind is ErrorRecord:
        return ERROR
    if kind in (str, int):
        return kind("7")
    return msgspec.convert([], kind)


def example_of(kind: type[Data]) -> Data:
    fields = [field for field in msgspec.structs.fields(kind) if field.required]
    return EXAMPLES.get(kind) or kind(**{field.name: some(field) for field in fields})


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_data_comes_back_from_its_entry(kind: str):
    given = example_of(KINDS[kind])
    found = read(link(GENESIS, "run_1", 1, kind, "a:1", 0, 1, 1_700_000_000_000, encode_data(given)))
    assert type(found) is KINDS[kind]
    assert encode_data(found) == encode_data(given)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_data_of_a_newer_version_can_be_read(kind: str):
    newer = {**msgspec.to_builtins(example_of(KINDS[kind]), enc_hook=lambda raw: json.loads(bytes(raw))), "new": 1}
    read(link(GENESIS, "run_1", 1, kind, "", 0, 0, 1, msgspec.json.encode(newer)))


def test_every_data_record_belongs_to_a_kind():
    assert set(Data.__subclasses__()) == set(KINDS.values()) | {StagedEffect}


def test_users_values_are_kept_byte_by_byte():
    entry = link(GENESIS, "run_1", 1, "completed", "a:1", 0, 1, 1, encode_data(EXAMPLES[Completion]))
    assert bytes(read(entry).result) == bytes(RAW)


def test_text_of_any_language_is_carried():
    data = encode_data(Blocked("bug", ErrorRecord("ValueError", "nämlich 東京 🙂")))
    entry = link(GENESIS, "run_1", 1, "blocked", "größe:1", 0, 0, 1, data)
    assert read(entry).error.message == "nämlich 東京 🙂"
    assert entry.data.encode() == data


# -- the chain --------------------------------------------------------------------------------------------------------


def test_format_of_the_chain_never_changes():
    """Journals are kept for years, and other languages verify them: this is the format, by hand."""
    first = link(GENESIS, "run_1", 1, "accepted", "", 0, 0, 1_700_000_000_000, b'{"a":1}')
    data = hashlib.sha256(b'{"a":1}').hexdigest()
    digest = hashlib.sha256(f"{'0' * 64}|run_1|1|accepted||0|0|1700000000000|{data}".encode()).hexdigest()
    assert (first.data_digest, first.digest) == (data, digest)
    assert digest == "cd9145d72ab0041c52d0f98d3b144119d762443d3e0075645783ad4eafa95e19"
    second = link(first.digest, "run_1", 2, "completed", "a:1", 3, 4, 5, b"{}")
    rest = f"run_1|2|completed|a:1|3|4|5|{hashlib.sha256(b'{}').hexdigest()}"
    assert second.digest == hashlib.sha256(f"{digest}|{rest}".encode()).hexdigest()
    assert (
        anchor(b"k" * 32, "run_1", 2, second.digest)
        == hmac.new(b"k" * 32, f"run_1|2|{second.digest}".encode(), "sha256").hexdigest()
    )


ENTRIES = st.lists(
    st.tuples(
        st.sampled_from(sorted(KINDS)),
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8) | st.just("a|1|2"),
        st.integers(0, 3),
        st.integers(0, 3),
        st.integers(0, 2**42),
        st.dictionaries(st.sampled_from("abc"), st.integers() | st.text(max_size=3), max_size=2),
    ),
    min_size=1,
    max_size=8,
)
KEY = b"kept outside the store"


def journal_of(rows: list[Any], run: str = "run_1") -> list[Entry]:
    entries: list[Entry] = []
    for seq, (kind, step, generation, attempt, at, data) in enumerate(rows, 1):
        previous = entries[-1].digest if entries else GENESIS
        entries.append(link(previous, run, seq, kind, step, generation, attempt, at, msgspec.json.encode(data)))
    return entries


def is_sound(entries: list[Entry], head: str) -> bool:
    """What an auditor does who has the entries and the anchored head, and trusts no digest that is stored."""
    previous = GENESIS
    for entry in entries:
        header = f"{entry.run}|{entry.seq}|{entry.kind}|{entry.step}|{entry.generation}|{entry.attempt}|{entry.at}"
        previous = chain(previous, header, hashlib.sha256(entry.data.encode()).hexdigest())
        if previous != entry.digest:
            return False
    last = entries[-1] if entries else None
    return last is not None and anchor(KEY, last.run, last.seq, last.digest) == head


def head_of(entries: list[Entry]) -> str:
    return anchor(KEY, entries[-1].run, entries[-1].seq, entries[-1].digest)


@settings(deadline=None)
@given(ENTRIES)
def test_untouched_journal_verifies(rows: list[Any]):
    entries = journal_of(rows)
    assert is_sound(entries, head_of(entries))


CHANGES = {
    "run": "run_2",
    "seq": 99,
    "kind": "undone",
    "step": "another",
    "generation": 9,
    "attempt": 9,
    "at": 2**43,
    "data": '{"changed":true}',
}


@settings(deadline=None)
@given(ENTRIES, st.data(), st.sampled_from(sorted(CHANGES)))
def test_an_edited_entry_is_found(rows: list[Any], data: st.DataObject, field: str):
    entries = journal_of(rows)
    head = head_of(entries)
    place = data.draw(st.integers(0, len(entries) - 1))
    edited = msgspec.structs.replace(entries[place], **{field: CHANGES[field]})
    assume(edited != entries[place])
    assert not is_sound([*entries[:place], edited, *entries[place + 1 :]], head)


@settings(deadline=None)
@given(ENTRIES, st.data())
def test_a_missing_moved_or_repeated_entry_is_found(rows: list[Any], data: st.DataObject):
    entries = journal_of(rows)
    head = head_of(entries)
    place = data.draw(st.integers(0, len(entries) - 1))
    assert not is_sound(entries[:place] + entries[place + 1 :], head)
    assert not is_sound([*entries[: place + 1], *entries[place:]], head)
    other = data.draw(st.integers(0, len(entries) - 1))
    if other != place:
        moved = list(entries)
        moved[place], moved[other] = moved[other], moved[place]
        assert not is_sound(moved, head)


@settings(deadline=None)
@given(ENTRIES, st.data())
def test_a_rewritten_chain_does_not_fit_the_anchored_head(rows: list[Any], data: st.DataObject):
    """Who can write the store can compute a new chain, but without the key no new head."""
    entries = journal_of(rows)
    place = data.draw(st.integers(0, len(rows) - 1))
    kind, step, generation, attempt, at, _ = rows[place]
    forged = [*rows[:place], (kind, step, generation, attempt, at, {"forged": 1}), *rows[place + 1 :]]
    assert not is_sound(journal_of(forged), head_of(entries))
    assert not is_sound(journal_of(rows, run="run_2"), head_of(entries))


@settings(deadline=None)
@given(ENTRIES)
def test_erased_data_leaves_the_chain_whole(rows: list[Any]):
    """The chain covers digests of data, so data may be erased by law without breaking it."""
    previous = GENESIS
    for entry in journal_of(rows):
        erased = msgspec.structs.replace(entry, data="")
        header = f"{erased.run}|{erased.seq}|{erased.kind}|{erased.step}|{erased.generation}|{erased.attempt}"
        previous = chain(previous, f"{header}|{erased.at}", erased.data_digest)
        assert previous == erased.digest


@settings(deadline=None)
@given(ENTRIES, ENTRIES)
def test_two_different_entries_never_share_a_header(first: list[Any], second: list[Any]):
    """Steps may hold the separator; all the same a header can be read in one way only."""
    one, other = journal_of(first)[0], journal_of(second)[0]
    assert (one.digest == other.digest) == (one == other)


def test_heads_are_bound_to_run_length_digest_and_key():
    heads = {
        anchor(b"key one", "run_1", 1, "d1"),
        anchor(b"key two", "run_1", 1, "d1"),
        anchor(b"key one", "run_2", 1, "d1"),
        anchor(b"key one", "run_1", 2, "d1"),
        anchor(b"key one", "run_1", 1, "d2"),
    }
    assert len(heads) == 5
