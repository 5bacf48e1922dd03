"""Records: what travels between layers, as JSON and back, also between versions of dotdo."""

from typing import Any, get_args

import msgspec
import pytest

from dotdo.records import (
    ENDED,
    Definition,
    ErrorRecord,
    Failure,
    Options,
    Run,
    RunFilter,
    Status,
    WaitingFor,
)

ERROR = ErrorRecord("ValueError", "no", "Traceback ...", action="charge", step="charge:1", attempts=3)
RUN = Run(
    id="run_1",
    kind="service",
    name="signup",
    version=2,
    status="failed",
    undo="partial",
    generation=1,
    result={"a": [1, None]},
    error=ERROR,
    not_undone=["mail:1: email.send"],
    waiting_for=WaitingFor("retry", "attempt 2 of charge", until=5, step="charge:1"),
    key="k",
    trail="t",
    actor="ada",
    labels={"team": "red"},
    priority=3,
    parent="run_0",
    root="run_0",
    created_at=1,
    ended_at=2,
)
FULL = [
    ERROR,
    RUN,
    WaitingFor("timer", "until tomorrow", until=9, step="sleep"),
    Options(
        key="k",
        version=3,
        trail="t",
        delay=1.5,
        deadline=60,
        priority=-1,
        labels={"a": "b"},
        actor="ada",
        timeout=2.0,
        retry={"attempts": 2},
    ),
    RunFilter(status="failed", undo="all", name="n", trail="t", parent="p", since=1, before=(5, "run_1"), limit=7),
    Failure("run_1", "signup", "charge:1", ERROR, 3),
    Definition(kind="action", name="a", version=1, doc="d", input_schema={"x": 1}, output_schema={}, policy={"p": 1}),
]


@pytest.mark.parametrize("record", FULL, ids=lambda record: type(record).__name__)
def test_records_come_back_from_json_as_they_were(record: msgspec.Struct):
    assert msgspec.json.decode(msgspec.json.encode(record), type=type(record)) == record


@pytest.mark.parametrize("record", FULL, ids=lambda record: type(record).__name__)
def test_records_of_a_newer_version_can_be_read(record: msgspec.Struct):
    newer = {**msgspec.to_builtins(record), "field_of_the_future": {"x": 1}}
    assert msgspec.json.decode(msgspec.json.encode(newer), type=type(record)) == record


@pytest.mark.parametrize("record", FULL, ids=lambda record: type(record).__name__)
def test_records_cannot_be_changed(record: Any):
    with pytest.raises(AttributeError, match="immutable"):
        setattr(record, record.__struct_fields__[0], "other")


def test_options_that_say_nothing_take_no_room():
    assert msgspec.json.encode(Options()) == b"{}"
    assert msgspec.json.encode(Options(version=1)) == b'{"version":1}'


def test_records_share_no_defaults():
    first, second = Options(), Options()
    first.labels["a"] = "b"
    assert second.labels == {}
    assert Options().labels == {}


@pytest.mark.parametrize("status", get_args(Status))
def test_a_run_has_ended_when_its_generation_can_change_no_more(status: Status):
    run = msgspec.structs.replace(RUN, status=status)
    assert run.ended is (status in ("completed", "failed", "cancelled"))


def test_every_ended_status_is_a_status():
    assert set(get_args(Status)) > ENDED
