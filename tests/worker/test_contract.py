"""The worker protocol as it is written down in contract/: a real server says and takes exactly this."""

import json
from pathlib import Path

import msgspec
import pytest

from dotdo.worker_protocol import (
    Batch,
    Beat,
    Claim,
    Complete,
    Done,
    Heartbeat,
    OfWorker,
    Register,
    Registered,
    RequestCall,
    RequestState,
    Results,
)
from tests.server.running import running
from tests.worker.contract import GOLDEN, converse, written

RECORDS = {
    "register": (Register, Registered),
    "claim": (Claim, Batch),
    "complete": (Complete, Results),
    "request": (RequestCall, RequestState),
    "heartbeat": (Heartbeat, Beat),
    "drain": (OfWorker, Done),
    "leave": (OfWorker, Done),
}
FILES = sorted(GOLDEN.glob("*.json"), key=lambda path: path.stem)


def test_server_says_exactly_what_is_written_down(tmp_path: Path):
    with running(tmp_path / "dotdo.db") as server:
        said = {title: written(exchange) for title, exchange in converse(server).items()}
    assert sorted(said) == [path.stem for path in FILES]
    for path in FILES:
        assert said[path.stem] == path.read_text(), f"python -m tests.worker.contract writes {path.name} anew"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_our_worker_reads_and_writes_exactly_what_is_written_down(path: Path):
    exchange = json.loads(path.read_text())
    asks, answers = RECORDS[exchange["request"]["path"].rpartition("/")[2]]
    if exchange["status"] != 422:
        # What is left out has its default; what is there stays as it is.
        body = exchange["request"]["body"]
        assert _holds(json.loads(msgspec.json.encode(msgspec.json.decode(json.dumps(body), type=asks))), body)
    if exchange["status"] == 200:
        text = json.dumps(exchange["response"])
        assert json.loads(msgspec.json.encode(msgspec.json.decode(text, type=answers))) == exchange["response"]
    else:
        assert {"code", "detail", "retryable", "status"} <= exchange["response"].keys()


def test_every_kind_of_task_and_outcome_is_in_an_example():
    text = "".join(path.read_text() for path in FILES)
    for word in ("action", "effect", "lookup", "effect_undo", "settle"):
        assert f'"kind": "{word}"' in text
    for word in ("completed", "failed", "released"):
        assert f'"outcome": "{word}"' in text
    for word in ("accepted", "lease_lost", "refused", "pending", "answered", "failed"):
        assert f'"state": "{word}"' in text


def _holds(whole: object, part: object) -> bool:
    """Whether everything of a value is in another one, which may have more fields."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and _holds(whole[key], item) for key, item in part.items())
    if isinstance(part, list) and isinstance(whole, list):
        return len(part) == len(whole) and all(map(_holds, whole, part))
    return whole == part
