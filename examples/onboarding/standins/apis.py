"""Three HTTP APIs with the wire shapes of Stripe (billing), HubSpot (crm) and Slack: paths, bodies, errors, keys.

Each is small but honest in what matters here: Stripe's gives the first answer again for a repeated Idempotency-Key,
HubSpot's refuses a second contact with the same address, Slack's answers 200 also when it refuses.
"""

import itertools
import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qsl, unquote

import msgspec

from examples.onboarding.standins.world import SILENT, Arrival, Fault, World

LONGEST_SILENCE = 60.0


class Refused(Exception):
    """The answer is an error, with this status, body and headers."""

    def __init__(self, status: int, body: dict[str, Any], **headers: str) -> None:
        super().__init__(status)
        self.status, self.body, self.headers = status, body, headers


class Api(BaseHTTPRequestHandler):
    """One request to an API. Subclasses say what it does (`perform`) and how its refusals look."""

    name: ClassVar[str]
    world: ClassVar[World]
    refusals: ClassVar[dict[str, Refused]]
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer leaves in one piece

    def perform(self, request: str, payload: dict[str, Any]) -> tuple[int, dict[str, Any], bool]:
        """Does what is asked: status, body, and whether that happened now. Raises Refused."""
        raise NotImplementedError

    def handle_request(self) -> None:
        """Reads a request, fails as told or performs it, records it, answers."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        is_form = self.headers.get_content_type() == "application/x-www-form-urlencoded"
        payload: dict[str, Any] = dict(parse_qsl(body.decode())) if is_form else json.loads(body or b"{}")
        if self.path == "/_control":
            return self._obey(payload)
        request = f"{self.command} {unquote(self.path)}"
        how, happened = self.world.fault(self.name, request, payload), False
        headers: dict[str, str] = {}
        with self.world.lock:
            try:
                if how in self.refusals:
                    raise self.refusals[how]
                if not self.headers.get("Authorization", "").startswith("Bearer "):
                    raise Refused(401, {"message": "An API key is needed: Authorization: Bearer ..."})
                status, answer = 0, {}
                if how != "drop":
                    status, answer, happened = self.perform(request, payload)
                    headers = {} if happened else {"Idempotent-Replayed": "true"}
            except Refused as refused:
                status, answer, headers = refused.status, refused.body, refused.headers
            key, shown = self.headers.get("Idempotency-Key"), None if how in SILENT else status
            self.world.record(Arrival(self.name, request, key, payload, shown, happened, answer))
        if how in SILENT:
            return self._hang_up(LONGEST_SILENCE if how == "timeout" else None)
        return self._answer(status, answer, headers)

    do_GET = do_POST = do_PATCH = do_DELETE = handle_request

    def _obey(self, order: dict[str, Any]) -> None:
        try:
            self.world.order(msgspec.convert(order, Fault))
        except msgspec.ValidationError as error:
            return self._answer(400, {"ok": False, "error": str(error)}, {})
        return self._answer(200, {"ok": True}, {})

    def _hang_up(self, after: float | None) -> None:
        self.close_connection = True
        if after is not None:
            self.connection.settimeout(after)
            try:
                self.connection.recv(1)  # returns when the client has given up
            except OSError:
                pass

    def _answer(self, status: int, body: dict[str, Any], headers: dict[str, str]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """The ledger is the log."""


class Billing(Api):
    """Stripe's customers."""

    name = "billing"
    customers: ClassVar[dict[str, dict[str, Any]]] = {}
    answers: ClassVar[dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {}
    numbers = itertools.count(1)
    refusals: ClassVar = {
        "4xx": Refused(
            402, {"error": {"type": "card_error", "code": "card_declined", "message": "Your card was declined."}}
        ),
        "429": Refused(429, {"error": {"type": "rate_limit_error"}}, **{"Retry-After": "1"}),
        "5xx": Refused(500, {"error": {"type": "api_error", "message": "Something went wrong on our end."}}),
    }

    def perform(self, request: str, payload: dict[str, Any]) -> tuple[int, dict[str, Any], bool]:
        if request == "POST /v1/customers":
            return self._create(self.headers.get("Idempotency-Key"), payload)
        found = re.fullmatch(r"DELETE /v1/customers/(\w+)", request)
        if found and self.customers.pop(found[1], None):
            return 200, {"id": found[1], "object": "customer", "deleted": True}, True
        message = f"No such customer: '{found[1]}'" if found else f"Unrecognized request URL ({request})"
        raise Refused(404, {"error": {"type": "invalid_request_error", "code": "resource_missing", "message": message}})

    def _create(self, key: str | None, payload: dict[str, Any]) -> tuple[int, dict[str, Any], bool]:
        before = self.answers.get(key or "")
        if before is not None:
            if before[0] != payload:
                message = "Keys for idempotent requests can only be used with the same parameters."
                raise Refused(400, {"error": {"type": "idempotency_error", "message": message}})
            return 200, before[1], False
        customer = {"id": f"cus_{next(self.numbers):08}", "object": "customer", "created": int(time.time()), **payload}
        self.customers[customer["id"]] = customer
        if key:
            self.answers[key] = (payload, customer)
        return 200, customer, True


class Crm(Api):
    """HubSpot's contacts."""

    name = "crm"
    contacts: ClassVar[dict[str, dict[str, Any]]] = {}
    numbers = itertools.count(101)
    refusals: ClassVar = {
        "4xx": Refused(400, {"status": "error", "category": "VALIDATION_ERROR", "message": "A property is invalid"}),
        "429": Refused(429, {"status": "error", "errorType": "RATE_LIMIT"}, **{"Retry-After": "1"}),
        "5xx": Refused(502, {"status": "error", "message": "Bad gateway"}),
    }

    def perform(self, request: str, payload: dict[str, Any]) -> tuple[int, dict[str, Any], bool]:
        properties: dict[str, str] = payload.get("properties", {})
        if request == "POST /crm/v3/objects/contacts":
            email = properties.get("email", "")
            if email in self.contacts:
                message = f"Contact already exists. Existing ID: {self.contacts[email]['id']}"
                raise Refused(409, {"status": "error", "category": "CONFLICT", "message": message})
            self.contacts[email] = {"id": str(next(self.numbers)), "properties": properties, "archived": False}
            return 201, self.contacts[email], True
        found = re.fullmatch(r"PATCH /crm/v3/objects/contacts/([^?]+)\?idProperty=email", request)
        if found and found[1] in self.contacts:
            self.contacts[found[1]]["properties"].update(properties)
            return 200, self.contacts[found[1]], True
        raise Refused(404, {"status": "error", "category": "OBJECT_NOT_FOUND", "message": "resource not found"})


class Slack(Api):
    """Slack's chat.postMessage."""

    name = "slack"
    channels = ("#sales",)
    numbers = itertools.count(1)
    refusals: ClassVar = {
        "4xx": Refused(200, {"ok": False, "error": "channel_not_found"}),
        "429": Refused(429, {"ok": False, "error": "ratelimited"}, **{"Retry-After": "1"}),
        "5xx": Refused(503, {"ok": False, "error": "service_unavailable"}),
    }

    def perform(self, request: str, payload: dict[str, Any]) -> tuple[int, dict[str, Any], bool]:
        if request != "POST /api/chat.postMessage":
            raise Refused(200, {"ok": False, "error": "unknown_method"})
        if payload.get("channel") not in self.channels:
            raise Refused(200, {"ok": False, "error": "channel_not_found"})
        ts = f"{int(time.time())}.{next(self.numbers):06}"
        message = {"type": "message", "text": payload.get("text")}
        return 200, {"ok": True, "channel": payload["channel"], "ts": ts, "message": message}, True


class Server(ThreadingHTTPServer):
    """A thread for each connection; a client that was killed in the middle of a request is no error."""

    daemon_threads = True
    # http.server has room for 5: who comes beside them is not heard, and tries again only after 1, 3, 7 seconds.
    request_queue_size = 1024

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Reports what went wrong, unless it is that the client is gone."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def serve_apis(world: World) -> dict[str, Server]:
    """Starts the three APIs on free ports of this machine, in threads."""
    Api.world = world
    servers = {api.name: Server(("127.0.0.1", 0), api) for api in (Billing, Crm, Slack)}
    for server in servers.values():
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return servers
