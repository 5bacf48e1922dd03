"""What the canary test runs: an application in which each canary goes through one path that could show it.

`python -m tests.guarantees.canary_app PLAN` plays one part of it in a process of its own. PLAN is a JSON file:
`folder`, `canaries` (by the name of their path), `part` (1 ends in a SIGKILL between two commits, 2 goes on, 3 runs an
engine for others until its input ends), and where to put what the outside world heard. Everything is logged, from DEBUG
up, to a file in the folder and to stderr.
"""

import base64
import json
import logging
import os
import signal
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pydantic
from sqlalchemy import text

from dotdo import (
    AsyncContext,
    Catalogue,
    Context,
    Do,
    DotdoError,
    Effect,
    EffectCall,
    EnvironmentSecrets,
    Fail,
    Failure,
    FileSecrets,
    Retry,
    RetryLater,
    Secret,
    action,
    publish,
    service,
    sleep,
    wait_for_event,
)
from dotdo.engine.sql import SqlWork

PATIENCE = 60.0
ONCE = Retry(attempts=1)
TWICE = Retry(attempts=2, delay=0.01, jitter=False)

catalogue = Catalogue()
plan: dict[str, Any] = {}
released = threading.Event()


def canary(path: str) -> str:
    """The secret that goes this way."""
    return plan["canaries"][path]


def secret(path: str) -> Secret[str]:
    return Secret(canary(path))


def heard(what: str, text: str) -> None:
    """The outside world was told a secret: proof that the path was gone."""
    with open(plan["heard"], "a", encoding="utf-8") as file:
        file.write(json.dumps([what, text]) + "\n")


# -- inputs ----------------------------------------------------------------------------------------------------------


class Nested(msgspec.Struct):
    name: str
    keys: list[Secret[str]]
    by_name: dict[str, Secret[str]]


@dataclass
class Login:
    user: str
    password: Secret[str] | None = None


class Model(pydantic.BaseModel):
    token: Secret[str]

    @pydantic.field_validator("token")
    @classmethod
    def judged(cls, value: Secret[str]) -> Secret[str]:
        if value.reveal() == canary("own validator"):
            raise ValueError(f"{value.reveal()} is not good enough")
        return value


@action("take", catalogue=catalogue)
def take(
    ctx: Context,
    path: str,
    top: Secret[str] | None = None,
    nested: Nested | None = None,
    login: Login | None = None,
    model: Model | None = None,
) -> str:
    given: list[Secret[str] | None] = [top, login and login.password, model and model.token]
    if nested:
        given += [*nested.keys, *nested.by_name.values()]
    for one in given:
        if one is not None:
            heard(path, one.reveal())
            ctx.log.info("taken %s %r %s", one, one, [one])
    return path


# -- errors ----------------------------------------------------------------------------------------------------------


def cause(text: str) -> Exception:
    error = ValueError("with a cause")
    error.__cause__ = KeyError(text)
    error.__context__ = OSError(text)
    error.add_note(text)
    return error


ERRORS: dict[str, Callable[[str], BaseException]] = {
    "error message": lambda text: ValueError(f"wrong: {text}."),
    "error cause": cause,
    "error arguments": lambda text: KeyError(text, {text: [text]}),
    "error group": lambda text: ExceptionGroup(text, [OSError(5, text)]),
    "error class": lambda text: type(f"Odd{text}", (Exception,), {})("odd"),
    "error in base64": lambda text: ValueError("Basic " + base64.b64encode(f"user:{text}".encode()).decode()),
    "error in a url": lambda text: ValueError("https://x/?key=" + urllib.parse.quote(text, safe="")),
    "error in hex": lambda text: ValueError(text.encode().hex()),
    "error as bytes": lambda text: ValueError(text.encode()),
    "error cut": lambda text: ValueError("x" * 3_985 + text + "y" * 5_000),
    "fail": lambda text: Fail(f"no: {text}"),
    "retry later": lambda text: RetryLater(f"not now: {text}", after=0.01),
    "exit": lambda text: SystemExit(text),
}


@action("told", catalogue=catalogue)
def told(ctx: Context, failure: Failure) -> str:
    ctx.log.error("told of %s", failure)
    return str(failure)


@action("break", retry=TWICE, on_failure=[told], catalogue=catalogue)
def breaking(ctx: Context, path: str, key: Secret[str]) -> None:
    heard(path, key.reveal())
    raise ERRORS[path](key.reveal())


@action("sql", retry=ONCE, catalogue=catalogue)
def in_sql(ctx: Context, key: Secret[str]) -> None:
    heard("error of sql", key.reveal())
    ctx.sql.execute(text("select :key from no_such_table"), {"key": key.reveal()})


@action("late", retry=ONCE, timeout=0.05, catalogue=catalogue)
def late(ctx: Context, key: Secret[str]) -> None:
    heard("error after the end", key.reveal())
    released.wait(PATIENCE)
    ctx.log.error("still here with %s", key.reveal())
    raise ValueError(key.reveal())


@action("log", catalogue=catalogue)
async def log(ctx: AsyncContext, key: Secret[str], caught: Secret[str]) -> None:
    heard("log", key.reveal())
    heard("logged error", caught.reveal())
    ctx.log.warning("the key is %s, %s", key.reveal(), {"key": key.reveal()})
    try:
        raise ValueError(caught.reveal()) from KeyError(caught.reveal())
    except ValueError:
        ctx.log.exception("caught")


# -- results ---------------------------------------------------------------------------------------------------------

RESULTS: dict[str, Callable[[Secret[str]], Any]] = {
    "result text": lambda key: {"url": f"https://ada:{key.reveal()}@x"},
    "result key": lambda key: {key.reveal(): 1},
    "result object": lambda key: [key],
    "result in a class": lambda key: Login("ada", key),
    "result in base64": lambda key: base64.b64encode(f"a{key.reveal()}".encode()).decode(),
}


@action("give", retry=ONCE, catalogue=catalogue)
def give(path: str, key: Secret[str]) -> Any:
    heard(path, key.reveal())
    return RESULTS[path](key)


# -- effects ---------------------------------------------------------------------------------------------------------


class Refusals:
    """Which effects were refused once already."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def first(self, what: str) -> bool:
        is_first = what not in self.seen
        self.seen.add(what)
        return is_first


def push(call: EffectCall, path: str, key: Secret[str], text: str = "") -> str:
    heard(path, key.reveal())
    if call.resource(Refusals).first(path):
        raise ConnectionError(f"refused {key.reveal()}")
    return key.reveal() if "answer" in path else "taken"


def take_back(call: EffectCall, answer: str, input: dict[str, Any]) -> None:
    heard("undo of a request", input["key"].reveal())
    if call.resource(Refusals).first("take back"):
        raise ConnectionError(f"cannot take back {input} {input['key'].reveal()}")


def find(call: EffectCall, input: dict[str, Any]) -> str | None:
    heard("lookup", input["key"].reveal())
    return "found"


def signed(call: EffectCall) -> str:
    heard("secret of an effect", call.secret("EFFECT_KEY").reveal())
    if call.resource(Refusals).first("signed"):
        raise ConnectionError(f"{call.secret('EFFECT_KEY').reveal()} was refused")
    return "taken"


def mail(call: EffectCall, text: str) -> None:
    heard("mail", text)


pushing = Effect("push", push, dedup="key", undo=take_back, retry=TWICE, catalogue=catalogue)
finding = Effect("find", push, dedup="find", lookup=find, retry=TWICE, catalogue=catalogue)
signing = Effect("sign", signed, dedup="key", retry=TWICE, catalogue=catalogue)
mailing = Effect("mail", mail, dedup="key", catalogue=catalogue)


@action("send", retry=TWICE, catalogue=catalogue)
async def send(ctx: AsyncContext, path: str, key: Secret[str]) -> None:
    if path in ("staged", "staged answer"):
        ctx.stage(pushing, path=path, key=key)
    elif path in ("requested", "requested answer"):
        await ctx.request(pushing, path=path, key=key)
    elif path == "lookup":
        ctx.stage(finding, path="looked up", key=key)
    elif path == "undo of a request":
        with suppress(ConnectionError):
            await ctx.request(pushing, path="to be undone", key=key)
        await ctx.request(pushing, path="to be undone", key=key)
        raise Fail("no")
    elif path == "plain effect":
        heard(path, key.reveal())
        ctx.stage(mailing, text=f"your key is {key.reveal()}")
    else:
        ctx.stage(signing)


@action("by-name", retry=TWICE, catalogue=catalogue)
def by_name(ctx: Context) -> None:
    for path, name in (("secret of the environment", "ENVIRONMENT_KEY"), ("secret of a file", "file-key")):
        heard(path, ctx.secret(name).reveal())
    if ctx.attempt == 1:
        raise ValueError(f"{ctx.secret('ENVIRONMENT_KEY').reveal()} {ctx.secret('file-key').reveal()}")


# -- undo, fallback, services ----------------------------------------------------------------------------------------


@action("other-door", catalogue=catalogue)
def other_door(key: Secret[str]) -> str:
    heard("fallback", key.reveal())
    return "in"


@action("door", retry=ONCE, fallback=other_door, catalogue=catalogue)
def door(key: Secret[str]) -> str:
    raise ValueError(key.reveal())


@action("reserve", catalogue=catalogue)
def reserve(ctx: Context, key: Secret[str]) -> str:
    return "reserved"


@reserve.undo
def release(ctx: Context, done: str, input: dict[str, Any]) -> None:
    heard("undo", input["key"].reveal())
    raise Fail(f"cannot undo {input} {input['key'].reveal()}")


@service("undone", on_failure=[told], catalogue=catalogue)
async def undone(key: Secret[str]) -> None:
    await reserve(key=key)
    raise Fail("no")


@service("child", catalogue=catalogue)
async def child(key: Secret[str]) -> str:
    await sleep(0.01)
    return await take(path="child", top=key)


@service("parent", catalogue=catalogue)
async def parent(key: Secret[str], wait: Secret[str]) -> str:
    await child(key=key)
    await wait_for_event("go")
    return await take(path="after the kill", top=wait)


@service("bug", catalogue=catalogue)
async def bug(path: str, key: Secret[str]) -> Any:
    heard(path, key.reveal())
    if path == "service bug":
        raise ValueError(key.reveal())
    if path == "service key":
        await take.with_(key=key.reveal())(path="never")
    if path == "service plain":
        await take(path=key.reveal())
    if path == "published":
        publish({"key": key.reveal()})
    return key.reveal()


# -- the application's database --------------------------------------------------------------------------------------


@action("write", catalogue=catalogue)
def write(ctx: Context, key: Secret[str]) -> str:
    heard("applied row", key.reveal())
    ctx.sql.execute(text("insert into notes values ('a note')"))
    ctx.stage(pushing, path="staged with sql", key=key)
    return "written"


# -- the play --------------------------------------------------------------------------------------------------------


def refused(work: Callable[[], Any]) -> None:
    """What is expected to be refused or to fail; the error is logged, as a careless user would."""
    try:
        work()
    except (DotdoError, TypeError, ValueError) as error:
        logging.getLogger("app").error("as expected: %s %r", error, error)
    else:
        raise AssertionError("it was not refused")


def play_inputs(client: Do) -> None:
    client.run(take, path="typed", top=secret("typed"))
    client.action("take").invoke(path="by name", top=canary("by name"))
    client.action("take", key="again").invoke(path="keyed", top=canary("keyed"))
    client.action("take", key="again").invoke(path="keyed", top=canary("keyed"))
    refused(lambda: client.action("take", key="again").invoke(path="keyed", top=canary("conflict")))
    nested = Nested("n", [secret("item"), secret("second item")], {"k": secret("value")})
    client.run(take, path="nested", nested=nested)
    client.run(take, path="dataclass", login=Login("ada", secret("dataclass")))
    client.run(take, path="model", model=Model(token=secret("model")))
    invalid = [
        {"path": 5, "top": canary("beside a problem")},
        {"path": "x", "topp": canary("unknown name")},
        {"path": "x", "login": {"user": "x", "password": [canary("wrong type")]}},
        {"path": "x", "model": {"token": canary("own validator")}},
        {"path": secret("plain place")},
    ]
    for params in invalid:
        refused(lambda params=params: client.action("take").invoke(**params))  # type: ignore[misc]
    label = canary("label")
    refused(lambda: client.action("take", labels={"a": label}).invoke(path="x", top=label))
    client.preview(take, path="preview", top=secret("preview"))


def play_failures(client: Do) -> None:
    for path in ERRORS:
        refused(lambda path=path: client.run(breaking, path=path, key=secret(path)))  # type: ignore[misc]
    refused(lambda: client.run(in_sql, key=secret("error of sql")))
    refused(lambda: client.run(late, key=secret("error after the end")))
    released.set()
    client.run(log, key=secret("log"), caught=secret("logged error"))
    for path in RESULTS:
        refused(lambda path=path: client.run(give, path=path, key=secret(path)))  # type: ignore[misc]


def play_effects(client: Do) -> None:
    for path in ("staged", "staged answer", "requested", "lookup", "secret of an effect"):
        client.run(send, path=path, key=secret(path))
    for path in ("requested answer", "undo of a request", "plain effect"):
        refused(lambda path=path: client.run(send, path=path, key=secret(path)))  # type: ignore[misc]
    client.run(by_name)


def play_services(client: Do) -> None:
    client.run(door, key=secret("fallback"))
    refused(lambda: client.run(undone, key=secret("undo")))
    for path in ("service bug", "service key", "service plain", "published", "service result"):
        refused(lambda path=path: client.run(bug, path=path, key=secret(path)))  # type: ignore[misc]
    handle = client.start(parent.with_(key="parent"), key=secret("child"), wait=secret("after the kill"))
    refused(lambda: handle.send_event("go", {"key": secret("event")}))
    refused(lambda: handle.send_event("go", {"key": canary("after the kill")}))
    until(lambda: "child" in {what for what, _ in told_outside()})


def told_outside() -> list[list[str]]:
    file = Path(plan["heard"])
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("it never came true")
        threading.Event().wait(0.01)


def die_after_the_commit() -> None:
    """The next commit of the application's database is the last thing that this process does."""
    commit = SqlWork.commit

    def commit_and_die(self: SqlWork, *args: Any) -> None:
        commit(self, *args)
        os.kill(os.getpid(), signal.SIGKILL)

    SqlWork.commit = commit_and_die  # type: ignore[method-assign]


def open_client() -> Do:
    folder = Path(plan["folder"])
    return Do(
        f"sqlite:///{folder}/store/dotdo.db",
        sql=f"sqlite:///{folder}/app/app.db",
        catalogue=catalogue,
        resources=[Refusals()],
        secrets=[EnvironmentSecrets(), FileSecrets(plan["secrets"])],
        check_replay=True,
    )


def main() -> None:
    """Plays a part."""
    plan.update(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    folder = Path(plan["folder"])
    logging.basicConfig(
        level=logging.DEBUG, handlers=[logging.FileHandler(folder / "all.log"), logging.StreamHandler()]
    )
    logging.getLogger("asyncio").setLevel(logging.DEBUG)
    client = open_client()
    with client:
        if plan["part"] == 3:
            print("up", flush=True)
            sys.stdin.read()
            return
        if plan["part"] == 1:
            play_inputs(client)
            play_failures(client)
            play_effects(client)
            play_services(client)
            client.start(take.with_(key="delayed", delay=0.01), path="delayed", top=secret("delayed")).result()
            die_after_the_commit()
            client.run(write.with_(key="write"), key=secret("applied row"))
            raise AssertionError("the process outlived its commit")
        handle = client.start(write.with_(key="write"), key=secret("applied row"))
        assert handle.result(timeout=PATIENCE) == "written"
        again = client.start(parent.with_(key="parent"), key=secret("child"), wait=secret("after the kill"))
        again.send_event("go")
        assert again.result(timeout=PATIENCE) == "after the kill"
        for run in client.runs.list(limit=500):
            logging.getLogger("app").info("%s %s", run, len(client.runs.journal(run.id)))


if __name__ == "__main__":
    # Definitions are looked up by name in the module that is run; the application is this one, not a second import.
    sys.modules["tests.guarantees.canary_app"] = sys.modules["__main__"]
    main()
