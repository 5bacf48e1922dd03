"""A run that is started within a caller's transaction is there if and only if that commits, whoever dies in between.

With the drivers that callers have, on a real server; callers that are killed are processes of their own.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
from psycopg.rows import dict_row
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from dotdo import (
    AsyncDo,
    Catalogue,
    DefinitionError,
    Do,
    InvalidInput,
    KeyConflict,
    Secret,
    UnknownName,
    action,
    service,
)
from dotdo.audit import Audit
from dotdo.embedding import open_reader
from tests.guarantees.lab import in_loop
from tests.guarantees.ledger import ROOT

KEY = "00112233445566778899aabbccddeeff"
PATIENCE = 60.0


@pytest.fixture
def url(postgres_store: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store, and a table of the application in the same database."""
    monkeypatch.setenv("DOTDO_AUDIT_KEY", KEY)
    with psycopg.connect(postgres_store) as connection:
        connection.execute("create table orders (name text primary key)")
    return postgres_store


def definitions() -> Catalogue:
    """What is started."""
    catalogue = Catalogue()

    @action("ship", catalogue=catalogue)
    def ship(name: str) -> str:
        return f"shipped {name}"

    @action("measure", catalogue=catalogue)
    def measure(data: str, token: Secret[str]) -> int:
        return len(data) + len(token.reveal())

    @action("enclose", catalogue=catalogue)
    def enclose(within: str) -> str:
        return within

    @service("order", catalogue=catalogue)
    async def order(name: str) -> str:
        return await ship(name)

    return catalogue


def runs(url: str) -> list[str]:
    """The runs that there are, by their keys."""
    with psycopg.connect(url) as connection:
        return [key for (key,) in connection.execute("select key from dotdo.runs order by key")]


@pytest.fixture
def client(url: str) -> Iterator[Do]:
    """A client with a node; afterwards every journal verifies."""
    with Do(url, catalogue=definitions()) as client:
        yield client
    with closing(open_reader(url)) as opened:
        assert list(Audit(opened, bytes.fromhex(KEY)).verify()) == []


# -- commit and rollback, with each driver -----------------------------------------------------------------------------


def in_psycopg(url: str, work: Callable[[Any, Any], Any], commit: bool) -> Any:
    with (
        psycopg.Connection[Any].connect(url, row_factory=dict_row) as connection,
        connection.transaction(force_rollback=not commit),
    ):
        return work(connection, connection.execute)


def in_sqlalchemy(url: str, work: Callable[[Any, Any], Any], commit: bool) -> Any:
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    try:
        with engine.connect() as connection:
            transaction = connection.begin()
            found = work(connection, lambda sql: connection.execute(text(sql)))
            (transaction.commit if commit else transaction.rollback)()
            return found
    finally:
        engine.dispose()


def in_session(url: str, work: Callable[[Any, Any], Any], commit: bool) -> Any:
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    try:
        with Session(engine) as session:
            found = work(session, lambda sql: session.execute(text(sql)))
            (session.commit if commit else session.rollback)()
            return found
    finally:
        engine.dispose()


@pytest.mark.parametrize("through", [in_psycopg, in_sqlalchemy, in_session])
def test_run_is_there_if_and_only_if_the_transaction_commits(url: str, client: Do, through: Any):
    def place(connection: Any, execute: Any) -> Any:
        execute("insert into orders values ('ada')")
        handle = client.service("order", key="ada", labels={"team": "rail"}, within=connection).start(name="ada")
        assert runs(url) == []
        with pytest.raises(UnknownName):
            handle.get()
        return handle

    through(url, place, False)
    assert runs(url) == []
    handle = through(url, place, True)
    assert handle.result(timeout=PATIENCE) == "shipped ada"
    assert client.runs.list(labels={"team": "rail"})[0].id == handle.id
    with psycopg.connect(url) as connection:
        assert connection.execute("select name from orders").fetchall() == [("ada",)]


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg", "sqlalchemy", "sqlalchemy+asyncpg", "session"])
def test_async_connections_commit_and_roll_back_alike(url: str, driver: str):
    @in_loop
    async def play():
        async with AsyncDo(url, catalogue=(catalogue := definitions())) as client:
            ship = catalogue.get("action", "ship", None)
            for commit in (False, True):

                async def place(connection: Any, commit: bool = commit) -> Any:
                    handle = await client.start(ship.with_(key=f"{commit}"), name="ada", within=connection)
                    if not commit:
                        raise InterruptedError
                    return handle

                handle = None
                with nullcontext() if commit else pytest.raises(InterruptedError):
                    handle = await in_driver(driver, url, place)
                assert runs(url) == (["True"] if commit else [])
                if handle is not None:
                    assert await handle.result(timeout=PATIENCE) == "shipped ada"

    play()


async def in_driver(driver: str, url: str, work: Callable[[Any], Any]) -> Any:
    """Does work in a transaction of an async driver, which an exception rolls back."""
    if driver == "psycopg":
        async with await psycopg.AsyncConnection.connect(url) as connection, connection.transaction():
            return await work(connection)
    if driver == "asyncpg":
        pool = await asyncpg.create_pool(url, min_size=1, max_size=1)
        try:
            async with pool.acquire() as connection, connection.transaction():
                return await work(connection)
        finally:
            await pool.close()
    name = "asyncpg" if driver.endswith("asyncpg") else "psycopg"
    engine = create_async_engine(url.replace("postgresql:", f"postgresql+{name}:"))
    try:
        if driver == "session":
            async with AsyncSession(engine) as session, session.begin():
                return await work(session)
        async with engine.begin() as connection:
            return await work(connection)
    finally:
        await engine.dispose()


def test_nodes_hear_of_the_commit_and_of_no_rollback(url: str, client: Do):
    """So a run begins at once; without that, it is found by looking, within a second."""
    with psycopg.connect(url, autocommit=True) as listening, psycopg.connect(url) as connection:
        listening.execute("listen dotdo")
        gone = client.service("order", within=connection).start(name="ada")
        connection.rollback()
        handle = client.service("order", within=connection).start(name="ada")
        connection.commit()
        with closing(listening.notifies(timeout=PATIENCE)) as notices:
            left = next(notice.payload for notice in notices if '"left":["run_' in notice.payload)
        assert handle.id in left
        assert gone.id not in left
    assert handle.result(timeout=PATIENCE) == "shipped ada"


def test_large_inputs_and_secrets_are_of_the_same_transaction(url: str, client: Do):
    given: dict[str, Any] = {"data": "x" * 700_000, "token": "canary"}
    with psycopg.connect(url) as connection:
        client.action("measure", within=connection).start(**given)
        connection.rollback()
        assert connection.execute(
            "select (select count(*) from dotdo.blobs), (select count(*) from dotdo.runs)"
        ).fetchone() == (0, 0)
        handle = client.action("measure", within=connection).start(**given)
        connection.commit()
        assert handle.result(timeout=PATIENCE) == 700_006
        for table in ("journal", "runs"):
            assert (
                connection.execute(f"select 1 from dotdo.{table} t where t::text like '%canary%'".encode()).fetchall()
                == []
            )


# -- keys --------------------------------------------------------------------------------------------------------------


def test_key_is_one_run_also_for_transactions_at_the_same_time(url: str, client: Do):
    with psycopg.connect(url) as one, psycopg.connect(url) as other:
        first = client.service("order", key="k", within=one).start(name="ada")
        found: list[Any] = []

        waits = threading.Thread(target=start_into, args=(client, other, "ada", found))
        waits.start()
        until_blocked(url)
        one.rollback()  # so it is the other's
        waits.join(PATIENCE)
        assert found == [first.id]
        waits = threading.Thread(target=start_into, args=(client, one, "ben", found))
        waits.start()
        until_blocked(url)
        other.commit()
        waits.join(PATIENCE)
        assert isinstance(found[1], KeyConflict)
        assert client.service("order", key="k", within=one).start(name="ada").id == first.id  # still of use
        one.commit()
    assert first.result(timeout=PATIENCE) == "shipped ada"
    assert runs(url) == ["k"]


def start_into(client: Do, connection: Any, name: str, found: list[Any]) -> None:
    """Starts an order, and keeps its id, or what is raised."""
    try:
        found.append(client.service("order", key="k", within=connection).start(name=name).id)
    except Exception as error:
        found.append(error)


def until_blocked(url: str) -> None:
    """Returns when somebody waits for another's transaction."""
    with psycopg.connect(url, autocommit=True) as connection:
        for _ in range(100_000):
            if connection.execute("select 1 from pg_locks where not granted and locktype = 'transactionid'").fetchall():
                return
    raise TimeoutError


def test_serialization_failures_are_the_callers_to_repeat(url: str, client: Do):
    with psycopg.connect(url) as one:
        one.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        one.execute("select count(*) from orders")  # its moment
        earlier = client.service("order", key="k").start(name="ada")
        with pytest.raises(psycopg.errors.SerializationFailure):
            client.service("order", key="k", within=one).start(name="ada")
        one.rollback()
        assert client.service("order", key="k", within=one).start(name="ada").id == earlier.id
        one.commit()
    assert earlier.result(timeout=PATIENCE) == "shipped ada"


# -- what cannot be ----------------------------------------------------------------------------------------------------


def test_what_is_no_transaction_of_the_store_is_refused(url: str, client: Do, tmp_path: Path, postgres_url: str):
    def refused(connection: Any, match: str) -> None:
        with pytest.raises(DefinitionError, match=match):
            client.service("order", within=connection).start(name="ada")

    with psycopg.connect(url, autocommit=True) as connection:
        refused(connection, "is in autocommit")
        with connection.transaction():
            client.service("order", key="block", within=connection).start(name="ada")
    with psycopg.connect(postgres_url) as elsewhere:
        refused(elsewhere, "is to another database than the store")
    lite = create_engine("sqlite://")
    with lite.connect() as connection:
        refused(connection, "to the store's PostgreSQL database")
    lite.dispose()
    refused("postgresql://", "was given a builtins.str")
    refused(create_async_engine(url.replace(":", "+psycopg:", 1)).connect(), "this client is sync: use AsyncDo")
    with psycopg.connect(url) as connection:
        with pytest.raises(DefinitionError, match="within= is for start"):
            client.service("order", within=connection).invoke(name="ada")
        with pytest.raises(DefinitionError, match="within= is for start"):
            client.service("order", within=connection).preview(name="ada")
        with pytest.raises(InvalidInput):
            client.service("order", within=connection).start(nam="ada")
        file = Do(f"sqlite:///{tmp_path}/dotdo.db", catalogue=definitions())
        with file, pytest.raises(DefinitionError, match="within= needs a store on PostgreSQL"):
            file.service("order", within=connection).start(name="ada")
        remote = Do(url="http://127.0.0.1:1", api_key="do_x")
        with remote, pytest.raises(DefinitionError, match="a client that opens the store itself"):
            remote.service("order", within=connection).start(name="ada")
    assert client.start(client_definition("enclose"), within="me").result(timeout=PATIENCE) == "me"
    assert runs(url).count("block") == 1

    @in_loop
    async def play():
        async with AsyncDo(url, catalogue=definitions(), engine=False) as filing:
            with (
                psycopg.connect(url) as connection,
                pytest.raises(DefinitionError, match="this client is async: use Do"),
            ):
                await filing.service("order", within=connection).start(name="ada")
            idle = await asyncpg.connect(url)
            with pytest.raises(DefinitionError, match="is in no transaction"):
                await filing.service("order", within=idle).start(name="ada")
            await idle.close()

    play()


def client_definition(name: str) -> Any:
    """A definition of its own, as the client's has it."""
    return definitions().get("action", name, None)


# -- callers die -------------------------------------------------------------------------------------------------------

CALLER = """
import os, signal, sys
import psycopg
from dotdo import Do
from tests.guarantees.test_started_within_a_transaction import definitions

url, when = sys.argv[1:]
client = Do(url, catalogue=definitions(), engine=False)
with psycopg.connect(url) as connection:
    connection.execute("insert into orders values ('ada')")
    client.service("order", key="ada", within=connection).start(name="ada")
    if when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    connection.commit()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_caller_killed_around_its_commit_has_both_or_nothing(url: str, client: Do, when: str):
    killed = subprocess.run([sys.executable, "-c", CALLER, url, when], cwd=ROOT, env=dict(os.environ), check=False)
    assert killed.returncode == -signal.SIGKILL
    with psycopg.connect(url) as connection:  # waits for the dead one's transaction, if it has not ended yet
        connection.execute("lock table orders in exclusive mode")
        orders = connection.execute("select name from orders").fetchall()
    assert (orders, runs(url)) == (([("ada",)], ["ada"]) if when == "after" else ([], []))
    assert client.service("order", key="ada").start(name="ada").result(timeout=PATIENCE) == "shipped ada"
    assert runs(url) == ["ada"]
