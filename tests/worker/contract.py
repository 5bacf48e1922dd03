"""Has one conversation with a real server, in which everything of the worker protocol occurs, and writes it down.

What differs from one time to the next (ids, tokens, times) is replaced by made-up values, in order of appearance.
`python -m tests.worker.contract` writes contract/golden anew.
"""

import json
import re
import tempfile
import threading
from pathlib import Path
from typing import Any

import httpx2

from dotdo.engine.attempting import effect_key
from dotdo.tls import trusted
from tests.server.running import Running, running

GOLDEN = Path(__file__).parents[2] / "contract" / "golden"
TIME = 1767225600000
_IDS = re.compile(r"(wrk_[0-9a-f]{24}|tsk_[0-9a-f]{16}|req_[0-9a-f]{24}|\b[0-9a-f]{32}\b)")
_NAMES = {"wrk": "wrk_{}", "tsk": "tsk_{}", "req": "req_{}"}

CREATE_USER = {
    "name": "create-user",
    "version": 2,
    "doc": "Creates a user.",
    "input_schema": {
        "type": "object",
        "properties": {"email": {"type": "string"}, "user_name": {"type": "string", "default": "x"}},
        "required": ["email"],
        "additionalProperties": False,
    },
    "output_schema": {"type": "object"},
    "retry": {"attempts": 3, "delay": 0, "factor": 2, "max_delay": 60, "jitter": False, "max_elapsed": None},
    "timeout": 30,
    "undo": {"name": "create-user.undo", "version": 2},
    "fallback": None,
    "on_failure": [],
    "pivot": False,
    "concurrency": [{"limit": 2, "key": "email"}, {"limit": 50, "key": None}],
    "rate": [{"limit": "1000/minute", "key": None}],
}
LEDGER = {
    "name": "ledger.post",
    "version": 1,
    "doc": "Writes into the ledger.",
    "input_schema": {},
    "output_schema": {},
    "dedup": "find",
    "key_window": None,
    "on_unknown": "ask",
    "retry": {"attempts": 3, "delay": 0, "factor": 2, "max_delay": 60, "jitter": False, "max_elapsed": None},
    "timeout": 60,
    "undo": True,
    "lookup": True,
}


class Recorder:
    """Speaks with a server and writes down what is said, under the name of each exchange."""

    def __init__(self, server: Running) -> None:
        self.server, self.found = server, dict[str, Any]()
        self.http = server.http()
        self.batch: dict[str, int] = {}
        self._known: dict[str, str] = {}
        self._counts: dict[str, int] = {}

    def post(self, name: str, verb: str, headers: dict[str, str] | None = None, /, **body: Any) -> Any:
        """One exchange; without a name it is not written down."""
        url = self.server.url
        with httpx2.Client(base_url=url, headers=headers or self.http.headers, timeout=60, verify=trusted(url)) as http:
            response = http.post(f"/v1/worker/{verb}", json=body)
        asked = {"method": "POST", "path": f"/v1/worker/{verb}", "body": body}
        # Also of those that are not written down: else numbers would depend on which of two came first.
        said = self._made_up({"request": asked, "status": response.status_code, "response": response.json()})
        if name:
            assert name not in self.found
            self.found[name] = said
        return response.json()

    def claim(self, name: str, worker: str, wait: float = 10) -> Any:
        """The next batch."""
        batch = self.post(name, "claim", worker=worker, after=self.batch.get(worker, 0), wait=wait)
        self.batch[worker] = batch["batch"]
        return batch

    def complete(self, name: str, worker: str, task: Any, outcome: str = "completed", **more: Any) -> Any:
        """The end of one task."""
        told = {"task": task["id"], "token": task["token"], "outcome": outcome, **more}
        return self.post(name, "complete", worker=worker, tasks=[told])["results"][0]

    def start(self, name: str, key: str, **params: Any) -> str:
        """Starts a run of an action: its id."""
        headers = {"Idempotency-Key": key, "Prefer": "respond-async"}
        run = self.http.post(f"/v1/actions/{name}/execute", json={"params": params}, headers=headers)
        assert run.status_code == 202, run.text
        return run.json()["id"]

    def end(self, run: str) -> Any:
        """A run, once it has ended."""
        return self.http.get(f"/v1/runs/{run}", headers={"Prefer": "wait=20"}).json()

    def _made_up(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: TIME
                if key == "started"
                else "token_" + self._number("token", item)
                if key == "token"
                else self._made_up(item)
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [self._made_up(item) for item in value]
        return _IDS.sub(self._replaced, value) if isinstance(value, str) else value

    def _replaced(self, found: re.Match[str]) -> str:
        kind = found[0][:3]
        return found[0] if kind not in _NAMES else f"{kind}_{self._number(kind, found[0])}"

    def _number(self, kind: str, text: str) -> str:
        if text not in self._known:
            self._counts[kind] = self._counts.get(kind, 0) + 1
            self._known[text] = str(self._counts[kind])
        return self._known[text]


def register(say: Recorder, name: str = "") -> str:
    """A worker with an action, its undo and an effect."""
    undo = {"name": "create-user.undo", "version": 2}
    offered = {"actions": [CREATE_USER, undo], "effects": [LEDGER]}
    return say.post(
        name, "register", protocol=2, name="billing-1", sdk="golden/1", concurrency=2, databases=["main"], **offered
    )["worker"]


def converse(server: Running) -> dict[str, Any]:
    """Everything that is said, by name."""
    say = Recorder(server)
    with say.http:
        registering(say)
        worker = register(say, "register")
        an_action(say, worker)
        failures(say, worker)
        cancellation(say, worker)
        an_end(say, worker)
    return say.found


def registering(say: Recorder) -> None:
    say.post("register-unsupported-protocol", "register", protocol=99)
    wrong = {"name": "wrong", "input_schema": {"type": "nothing"}}
    say.post("register-invalid-definition", "register", protocol=1, actions=[wrong])
    say.post("register-unfitting-body", "register", protocol="one")
    say.post("register-missing-key", "register", {"X-Request-Id": "req_1"}, protocol=1)
    narrow = {"Authorization": f"Bearer {say.server.key('workers:serve:billing-*')}"}
    refused = say.post("", "register", narrow, protocol=1, actions=[{"name": "create-user"}])
    assert refused["code"] == "forbidden"


def an_action(say: Recorder, worker: str) -> None:
    say.claim("claim-empty", worker, wait=0)
    run = say.start("create-user", "signup:1", email="ada@example.com", userName="Ada")
    task = say.claim("claim-action", worker)["tasks"][0]
    assert say.post("claim-again", "claim", worker=worker, after=0, wait=0)["tasks"] == [task]
    say.post("heartbeat", "heartbeat", worker=worker, tasks=[task["id"]], after=1)
    call = {"worker": worker, "task": task["id"], "token": task["token"], "number": 1}
    call |= {"effect": "ledger.post", "version": 1, "input": {"cents": 100}}
    assert say.post("request-pending", "request", **call, wait=0)["state"] == "pending"
    effect = say.claim("claim-effect", worker)["tasks"][0]
    say.complete("complete-effect", worker, effect, answer={"id": "l_1"})
    answered = say.post("request-answered", "request", **call, wait=10)
    failing = {**call, "number": 2, "input": {"cents": -1}}
    say.post("", "request", **failing, wait=0)
    effect = say.claim("", worker)["tasks"][0]
    error = {"type": "Refused", "message": "No such account.", "kind": "fail"}
    say.complete("complete-effect-failed", worker, effect, "failed", error=error)
    say.post("request-failed", "request", **failing, wait=10)
    unknown = {**call, "number": 3, "effect": "nowhere"}
    say.post("request-unknown-effect", "request", **unknown, wait=10)
    completion = {
        "result": {"userId": 7},
        "effects": [staged(task, "ledger.post", 0, {"cents": 5})],
        "requests": [answered["request"]],
        "sql": ["main"],
    }
    assert say.complete("complete-action", worker, task, completion=completion)["state"] == "accepted"
    assert say.complete("", worker, task, completion=completion)["state"] == "accepted"  # told twice is once
    effect = say.claim("", worker)["tasks"][0]
    say.complete("", worker, effect, "failed", error={"type": "Error", "message": "The line was cut."})
    lookup = say.claim("claim-lookup", worker)["tasks"][0]
    say.complete("complete-lookup", worker, lookup, found=True, answer={"id": "l_2"})
    assert say.end(run)["result"] == {"userId": 7}


def staged(task: Any, effect: str, number: int, input: Any) -> Any:
    key = effect_key(task["run"], task["step"], effect, number, task["epoch"])
    return {"effect": effect, "version": 1, "key": key, "input": input}


def failures(say: Recorder, worker: str) -> None:
    run = say.start("create-user", "signup:2", email="eve@example.com")
    task = say.claim("", worker)["tasks"][0]
    say.complete("complete-released", worker, task, "released")
    task = say.claim("", worker)["tasks"][0]
    later = {"type": "RetryLater", "message": "Not now.", "kind": "retry_later", "after": 0}
    assert say.complete("complete-retry-later", worker, task, "failed", error=later)["state"] == "accepted"
    task = say.claim("", worker)["tasks"][0]
    call = {"worker": worker, "task": task["id"], "token": task["token"], "number": 1}
    call |= {"effect": "ledger.post", "version": 1, "input": {"cents": 100}}
    say.post("", "request", **call, wait=0)
    say.complete("", worker, say.claim("", worker)["tasks"][0], answer={"id": "l_3"})
    say.post("", "request", **call, wait=10)
    error = {"type": "Fail", "message": "User not found.", "traceback": "at line 1", "kind": "fail", "retry": False}
    ending = threading.Thread(target=lambda: say.complete("complete-failed", worker, task, "failed", error=error))
    ending.start()
    undo = say.claim("claim-effect-undo", worker)["tasks"][0]
    ending.join()
    say.complete("complete-effect-undo", worker, undo)
    ended = say.end(run)
    assert (ended["status"], ended["error"]["message"], ended["error"]["attempts"]) == ("failed", "User not found.", 2)
    run = say.start("create-user", "signup:4", email="eve@example.com")
    task = say.claim("", worker)["tasks"][0]
    wrong = {"result": 1, "effects": [{"effect": "ledger.post", "version": 1, "key": "mine", "input": {}}]}
    assert say.complete("complete-refused", worker, task, completion=wrong)["state"] == "refused"
    settle = say.claim("claim-settle", worker)["tasks"][0]
    say.complete("complete-settle", worker, settle, completion=None)
    assert "has the key" in say.end(run)["error"]["message"]


def cancellation(say: Recorder, worker: str) -> None:
    run = say.start("create-user", "signup:3", email="ada@example.com")
    task = say.claim("", worker)["tasks"][0]
    assert say.http.post(f"/v1/runs/{run}/cancel").status_code == 202
    told = say.claim("", worker)  # of the cancelled task, and of what its settlement needs
    while not told["cancelled"] or not told["tasks"]:
        more = say.claim("", worker)
        told = {name: [*told[name], *more[name]] for name in ("tasks", "cancelled")}
    assert told["cancelled"] == [task["id"]]
    say.post("heartbeat-cancelled", "heartbeat", worker=worker, tasks=[task["id"], "tsk_0000000000000000"], after=0)
    late = say.complete("complete-lease-lost", worker, task, completion={"result": 1})
    assert late["state"] == "lease_lost"
    say.complete("", worker, told["tasks"][0], completion=None)
    assert say.end(run)["status"] == "cancelled"
    call = {"worker": worker, "task": task["id"], "token": task["token"], "number": 1, "effect": "x", "version": 1}
    assert say.post("request-lease-lost", "request", **call)["code"] == "lease_lost"


def an_end(say: Recorder, worker: str) -> None:
    say.post("drain", "drain", worker=worker)
    say.post("leave", "leave", worker=worker)
    assert say.post("unknown-worker", "claim", worker=worker)["code"] == "unknown_worker"


def written(said: Any) -> str:
    """An exchange as its file."""
    return json.dumps(said, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    with running(Path(tempfile.mkdtemp()) / "dotdo.db") as found:
        for title, exchange in converse(found).items():
            (GOLDEN / f"{title}.json").write_text(written(exchange))
