"""Has one conversation with a real server as clients have it, and writes it down: what every SDK must understand.

What differs from one time to the next (times, digests, ids of requests) is replaced by made-up values.
`python -m tests.server.client_contract` writes contract/golden/client anew.
"""

import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2

from tests.server.running import PATIENCE, Running, running

GOLDEN = Path(__file__).parents[2] / "contract" / "golden" / "client"
MADE_UP: dict[str, Any] = {
    "created_at": 1767225600000,
    "ended_at": 1767225601000,
    "at": 1767225600000,
    "digest": "0" * 64,
    "seed": "0" * 16,
    "node": "node_1",
    "pins": "0" * 16,
    "started": 1767225600000,
    "next": "WzE3NjcyMjU2MDAwMDAsInJ1bl8xIl0",
    "request_id": "req_1",
}
_HINT = re.compile(r"do_\w{6,}\.\.\.")


def converse(server: Running) -> dict[str, Any]:
    """Every exchange by its name: request, status, response."""
    found: dict[str, Any] = {}
    with server.http() as http:
        _converse(server, http, found)
    return found


def _converse(server: Running, http: httpx2.Client, found: dict[str, Any]) -> None:
    def ask(
        name: str, method: str, path: str, body: Any = None, key: str = "", prefer: str = "", **options: Any
    ) -> Any:
        headers = {"Idempotency-Key": key, "Prefer": prefer}
        given = {header: text for header, text in headers.items() if text}
        response = http.request(method, path, json=body, headers={**given, **options})
        asked = {"method": method, "path": path, "headers": given, "body": body}
        found[name] = {"request": asked, "status": response.status_code, "response": made_up(response.json())}
        return response.json()

    greet, approval = "/v1/actions/greet-user/execute", "/v1/services/approval/execute"
    ada = {"params": {"name": "Ada"}, "trail": "t", "priority": 2, "labels": {"team": "a"}}
    done = ask("execute-completed", "POST", greet, ada, key="g:1")
    ask("execute-failed", "POST", "/v1/actions/refuse/execute", {"params": {"reason": "User not found."}}, key="r:1")
    ask("execute-invalid-input", "POST", greet, {"params": {"nam": 7}}, key="g:2")
    ask("execute-key-conflict", "POST", greet, {"params": {"name": "Eve"}}, key="g:1")
    ask("execute-unknown-name", "POST", "/v1/actions/greet-usr/execute", {"params": {}}, key="g:3")
    waiting = ask("execute-accepted", "POST", approval, {"params": {"name": "Ada"}}, "a:1", prefer="respond-async")
    run = f"/v1/runs/{waiting['id']}"
    end = time.monotonic() + PATIENCE
    while (http.get(run).json()["waiting_for"] or {}).get("kind") != "event":
        assert time.monotonic() < end
    ask("get-waiting", "GET", run)
    for name in ("execute-accepted", "get-waiting"):  # how far it is by then is a matter of luck
        found[name]["response"].update(status="running", progress=None)
    found["execute-accepted"]["response"]["waiting_for"] = None
    ask("execute-under-way", "POST", approval, {"params": {"name": "Ada"}}, key="a:1")
    ask("preview", "POST", "/v1/actions/greet-user/preview", {"params": {"name": "Ada"}})
    ask("get-action", "GET", "/v1/actions/greet-user")
    http.post(greet, json=ada, headers={"Idempotency-Key": "g:5"}).raise_for_status()
    ask("list-runs", "GET", "/v1/runs?name=greet-user&limit=1")
    ask("journal", "GET", f"/v1/runs/{done['id']}/journal?after=0")
    http.post(f"{run}/events", json={"name": "answer", "value": 1, "key": "k"}).raise_for_status()  # so that it ends
    http.headers["Authorization"] = f"Bearer {server.key('actions:execute:other')}"
    ask("denied", "POST", greet, ada, key="g:4")
    del http.headers["Authorization"]
    ask("no-key", "GET", "/v1/runs")


def made_up(value: Any) -> Any:
    """A value with all that differs from one time to the next replaced."""
    if isinstance(value, dict):
        return {
            key: MADE_UP[key] if key in MADE_UP and item is not None else made_up(item) for key, item in value.items()
        }
    if isinstance(value, list):
        return [made_up(item) for item in value]
    return _HINT.sub("do_aaaaaa...", value) if isinstance(value, str) else value


def written(exchange: Any) -> str:
    """An exchange as its file has it."""
    return json.dumps(exchange, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Writes all files anew."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for path in GOLDEN.glob("*.json"):
        path.unlink()
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "dotdo.db") as server:
        for name, exchange in converse(server).items():
            (GOLDEN / f"{name}.json").write_text(written(exchange), encoding="utf-8")


if __name__ == "__main__":
    main()
