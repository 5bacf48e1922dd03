"""PostgreSQL itself: statements are understood, roles without rights told, lossy settings refused, fences hold."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest

from dotdo.embedding import store_clock
from dotdo.errors import FenceLost, InvalidOperation, NodeExpelled, StoreUnavailable, StoreUnusable
from dotdo.store import migrate
from dotdo.store.connecting import Link, in_words, pipelined
from dotdo.store.migrate import migrations
from dotdo.store.postgres import PostgresDatabase
from dotdo.store.queries import load_queries
from dotdo.store.sharing import SharedStore
from tests.contract_sql.lossy import Wire
from tests.patience import PATIENCE
from tests.store.postgres_stores import new_database, open_postgres, plan_of
from tests.store.runs import NODE, Runs, message


@pytest.fixture
def store(postgres_store: str) -> Iterator[SharedStore]:
    """An empty store."""
    with closing(open_postgres(postgres_store)) as opened:
        yield opened


def execute(url: str, statement: str) -> list[tuple[object, ...]]:
    """Runs a statement as the superuser."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def test_server_understands_every_statement(postgres_store: str):
    statements = load_queries("postgres")
    with psycopg.connect(postgres_store, autocommit=True) as connection:
        for name, statement in statements.items():
            if not statement.startswith("lock"):
                assert plan_of(connection, statement)["Node Type"]
            assert statement.count("dotdo.") or "pg_" in statement, f"{name} does not say in which schema"
    assert len(statements) > 90


def test_driver_does_not_warn_of_a_pipeline_that_breaks(postgres_store: str, caplog: pytest.LogCaptureFixture):
    link = Link(postgres_store, "here")
    try:
        connection = link.get()
        with pytest.raises(psycopg.OperationalError):
            _ask_in_a_broken_pipeline(link, connection)
        assert link.get() is not connection
    finally:
        link.drop()
    assert [record.getMessage() for record in caplog.records if record.name == "psycopg"] == []


def _ask_in_a_broken_pipeline(link: Link, connection: psycopg.Connection[tuple[object, ...]]) -> None:
    with pipelined(connection):
        link.cut()
        connection.execute("select 1").fetchall()


def test_two_that_migrate_at_the_same_time_do_not_meet(postgres_template: str):
    url = new_database(postgres_template)
    first, second = (PostgresDatabase(url) for _ in range(2))
    with closing(first), closing(second):
        assert first.version() == second.version() == 0
        migrate.migrate(first)
        second.apply(migrations("postgres"))  # has looked before the first one was through
        assert second.version() == migrations("postgres")[-1][0]


def test_role_without_rights_to_create_runs_a_store_and_is_told_when_it_cannot(postgres_template: str):
    url = new_database(postgres_template)
    name = url.rpartition("/")[2]
    execute(url, f"create role app_{name} login")
    as_app = url.replace("postgres@", f"app_{name}@")
    with pytest.raises(StoreUnusable, match=r"may not do that.*dotdo db migrate"):
        open_postgres(as_app)
    open_postgres(url).close()
    execute(url, f"grant usage on schema dotdo to app_{name}")
    execute(url, f"grant select, insert, update, delete on all tables in schema dotdo to app_{name}")
    with closing(open_postgres(as_app)) as store:
        runs = Runs(store)
        runs.end(runs.accept("run_1"))
        runs.accept("run_2")
        store.post(message("run_2"))
        assert store.rescue(0, 10) == 0
        store.leave(NODE, 5)
        assert [claim.run for claim in store.claim_due("node_b", 9, 10)] == ["run_2"]
    execute(url, f"drop owned by app_{name}")
    execute(url, f"drop role app_{name}")


def test_what_would_lose_answered_runs_is_refused(postgres_template: str):
    url = new_database(postgres_template)
    name = url.rpartition("/")[2]
    execute(url, f"alter database {name} set synchronous_commit = off")
    with pytest.raises(StoreUnusable, match="synchronous_commit is off"):
        open_postgres(url)


def test_server_that_is_too_old_is_refused(postgres_store: str, monkeypatch: pytest.MonkeyPatch):
    """As if it needed a newer one than this."""
    monkeypatch.setattr("dotdo.store.connecting.OLDEST", 1_000_000)
    with pytest.raises(StoreUnusable, match=r"is PostgreSQL \d\d, and dotdo needs 100 or newer: upgrade it"):
        open_postgres(postgres_store)


def test_server_that_is_not_there_is_named_without_the_password(postgres_url: str):
    with pytest.raises(StoreUnusable, match=r"postgresql://ada@127\.0\.0\.1:1/shop cannot be opened") as refused:
        PostgresDatabase("postgresql://ada:secret@127.0.0.1:1/shop")
    assert "secret" not in refused.value.message


@pytest.mark.parametrize(
    "url, words",
    [
        ("postgresql://ada:secret@db/shop", "postgresql://ada@db/shop"),
        ("postgresql://ada:secret@one:1,two:2/shop", "postgresql://ada@one:1,two:2/shop"),
        ("host=one,two port=5433 dbname=shop password=secret", "postgresql://one:5433,two:5433/shop"),
        ("postgresql:///shop", "postgresql://localhost/shop"),
    ],
)
def test_messages_name_the_servers_of_a_url_and_no_password(url: str, words: str):
    assert in_words(url) == words


# -- the fence ---------------------------------------------------------------------------------------------------------


def test_node_that_was_expelled_writes_nothing(store: SharedStore, postgres_store: str):
    runs = Runs(store)
    run = runs.accept("run_1")
    execute(postgres_store, "update dotdo.nodes set lease_until = 0")
    with closing(open_postgres(postgres_store)) as other:
        assert other.rescue(7, 10) == 1
        with pytest.raises(NodeExpelled):
            store.write([run.write(run.entry())])
        with pytest.raises(NodeExpelled):
            store.claim_due(NODE, 9, 10)
        assert store.renew(NODE) is None
        assert runs.journal("run_1") == [(1, "accepted")]
        store.rejoin(NODE, "node_b", "host", 1, 9)
        assert [claim.run for claim in store.claim_due("node_b", 9, 10)] == ["run_1"]


def test_node_that_has_come_back_claims_nothing_under_its_former_name(store: SharedStore):
    """Asked for before, and done after that. Nobody would have it: no node of that name can die."""
    runs = Runs(store)
    for number in (1, 2):
        runs.accept(f"run_{number}", status="pending", due_at=1, owner=None)
    store.rejoin(NODE, "node_b", "host", 1, 9)
    assert store.claim_due(NODE, 9, 10) == []
    assert store.claim_one(NODE, "run_1") is None
    assert [claim.run for claim in store.claim_due("node_b", 9, 1)] == ["run_1"]
    assert store.claim_one("node_b", "run_2") is not None


def test_heartbeat_does_not_tell_the_names_of_definitions_before_these_are_there(store: SharedStore):
    Runs(store)
    store.offer(["action greet@1"], b"[]")
    assert store.renew(NODE) is not None
    assert [node.offers for node in store.list_nodes()] == [[]]
    store.publish(NODE)
    assert [node.offers for node in store.list_nodes()] == [["action greet@1"]]


def test_node_whose_lease_lasts_is_left_alone(store: SharedStore, postgres_store: str):
    Runs(store).accept("run_1")
    with closing(open_postgres(postgres_store)) as other:
        assert other.rescue(7, 10) == 0
        assert store.renew(NODE) is not None


def test_node_that_is_frozen_in_a_transaction_is_cut_off_and_expelled(store: SharedStore, postgres_store: str):
    Runs(store).accept("run_1")
    with closing(open_postgres(postgres_store)) as other:
        transaction = store._db.transaction()
        transaction.__enter__()
        execute(postgres_store, "update dotdo.nodes set lease_until = 0")
        assert other.rescue(7, 10) == 0  # it waited a while, then ended that transaction
        with pytest.raises(StoreUnavailable):
            transaction.__exit__(None, None, None)
        assert other.rescue(7, 10) == 1
        with pytest.raises(NodeExpelled):
            store.claim_due(NODE, 9, 10)


def test_connection_of_a_node_that_was_replaced_can_do_no_more(store: SharedStore, postgres_store: str):
    runs = Runs(store)
    run = runs.accept("run_1")
    stale = store._db._writer._connection
    assert stale is not None
    with psycopg.connect(postgres_store, autocommit=True) as late:
        store._db._writer._connection = None  # as if it were lost; it lives on here
        store.write([run.write(run.entry())])
        enter = "select dotdo.enter((select number from dotdo.nodes), 0)"
        with pytest.raises(psycopg.Error, match="expelled"):
            late.execute(enter.encode())
    stale.close()


def test_connection_that_is_stuck_in_a_pipeline_is_lost(store: SharedStore):
    """As when the server ends it in the middle of one: it looks open, and can do nothing more."""
    used: list[psycopg.Connection[tuple[object, ...]]] = []

    def work(connection: psycopg.Connection[tuple[object, ...]]) -> int:
        used.append(connection)
        if len(used) == 1:
            connection.pgconn.enter_pipeline_mode()
            connection.pgconn.send_query_params(b"select 1", None)
            connection.pgconn.exit_pipeline_mode()
        return len(used)

    store._db.patience = PATIENCE
    with pytest.raises(psycopg.OperationalError, match="cannot exit pipeline mode while busy"):
        work(psycopg.connect(store._db.address()[0]))
    used.pop().close()
    assert store._db._writer.patiently(work, "do that") == 2
    first, second = used
    assert first.closed
    assert not second.closed


def test_batch_with_an_old_claim_is_refused_as_a_whole_and_the_next_one_goes_through(store: SharedStore):
    runs = Runs(store)
    for number in range(12):  # past the number of times after which the driver prepares statements
        run, other = runs.accept(f"run_{number}"), runs.accept(f"other_{number}")
        newer = runs.claim(run.id)
        with pytest.raises(FenceLost, match="newer claim"):
            store.write([other.write(other.entry()), run.write(run.entry())])
        store.write([newer.write(newer.entry())])
        assert len(runs.journal(other.id)) == 1
        assert len(runs.journal(run.id)) == 2


# -- what is written from two sides ------------------------------------------------------------------------------------


@pytest.mark.parametrize("woken_before", [False, True])
def test_message_that_is_left_while_its_run_is_being_parked_makes_it_due(
    store: SharedStore, postgres_store: str, woken_before: bool
):
    """Who parks waits for who posts, and looks into the inbox only then."""
    runs = Runs(store)
    run = runs.accept("run_1", due_at=1 if woken_before else None)
    with closing(open_postgres(postgres_store)) as other:
        parking = threading.Thread(target=lambda: runs.park(run, due_at=None, now=5))
        with other._db.transaction():
            other._post(message("run_1", at=5))
            parking.start()
            waits = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
            while not execute(postgres_store, waits):
                assert parking.is_alive()
        parking.join()
        assert [claim.run for claim in store.claim_due(NODE, 5, 10)] == ["run_1"]


def test_message_that_comes_while_its_run_ends_is_refused(store: SharedStore, postgres_store: str):
    runs = Runs(store)
    run = runs.accept("run_1")
    with closing(open_postgres(postgres_store)) as other:
        refused: list[BaseException] = []

        def post() -> None:
            try:
                other.post(message("run_1"))
            except InvalidOperation as error:
                refused.append(error)

        posting = threading.Thread(target=post)
        with psycopg.connect(postgres_store) as holding:
            holding.execute("select 1 from dotdo.runs for update")
            ending = threading.Thread(target=lambda: runs.end(run))
            ending.start()
            waits = "select pid from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
            while not execute(postgres_store, waits):
                assert ending.is_alive()
            posting.start()
            while len(execute(postgres_store, waits)) < 2:
                assert posting.is_alive()
        ending.join()
        posting.join()
        assert len(refused) == 1
        assert execute(postgres_store, "select 1 from dotdo.inbox") == []


def test_two_nodes_never_claim_the_same_run(store: SharedStore, postgres_store: str):
    runs = Runs(store)
    for number in range(200):
        runs.park(runs.accept(f"run_{number}"), due_at=1)
    found: dict[str, list[str]] = {"node_b": [], "node_c": [], "node_d": []}

    def claim(node: str) -> None:
        with closing(open_postgres(postgres_store)) as opened:
            opened.join(node, "host", 1, 0)
            while claims := opened.claim_due(node, 5, 7):
                found[node] += [claim.run for claim in claims]

    claiming = [threading.Thread(target=claim, args=(node,)) for node in found]
    for thread in claiming:
        thread.start()
    for thread in claiming:
        thread.join()
    everything = [run for claimed in found.values() for run in claimed]
    assert len(everything) == len({*everything}) == 200


def test_claims_do_not_wait_for_those_of_others(store: SharedStore, postgres_store: str):
    runs = Runs(store)
    for number in range(10):
        runs.park(runs.accept(f"run_{number}"), due_at=number)
    with psycopg.connect(postgres_store) as other:
        other.execute("update dotdo.runs set owner = 'node_b', claim = claim + 1 where due_at < 4")
        assert {claim.run for claim in store.claim_due(NODE, 9, 100)} == {f"run_{number}" for number in range(4, 10)}


# -- poolers -----------------------------------------------------------------------------------------------------------


class Pooler(Wire):
    """Looks like a pooler: what it tells clients of their server process is made up."""

    def _return(self, client: socket.socket, server: socket.socket) -> None:
        greeting = b""
        while (at := greeting.find(b"K\0\0\0\x0c")) < 0:
            client.sendall(greeting)  # what comes before it, if it wants to be answered
            greeting = server.recv(65536)
            if not greeting:
                return
        client.sendall(greeting[: at + 5] + b"\0\0\0\1" + greeting[at + 9 :])
        super()._return(client, server)


def test_nothing_is_left_in_a_session_behind_a_pooler(postgres_store: str):
    pooler = Pooler(postgres_store)
    try:
        with closing(open_postgres(pooler.url)) as store:
            runs = Runs(store)
            for number in range(12):
                runs.end(runs.accept(f"run_{number}"))
                assert store.get_run(f"run_{number}") is not None
            assert store._db._writer.pooled
            for link in (store._db._writer, store._db._reader):
                [prepared] = link.get().execute("select count(*) from pg_prepared_statements").fetchall()
                [idle] = link.get().execute("show idle_in_transaction_session_timeout").fetchall()
                assert (prepared, idle) == ((0,), ("0",))
            with store._db.transaction():
                assert store._db.write("show idle_in_transaction_session_timeout") == [("5s",)]
    finally:
        pooler.close()
    with closing(open_postgres(postgres_store)) as store:
        assert not store._db._writer.pooled


# -- the clock ---------------------------------------------------------------------------------------------------------


def test_clock_of_a_node_is_that_of_the_server(store: SharedStore, monkeypatch: pytest.MonkeyPatch):
    real = time.time
    monkeypatch.setattr("dotdo.clock.time.time", lambda: real() + 7_200)  # this machine is two hours ahead
    clock = store_clock(store)
    assert abs(clock.now() - real() * 1000) < 2_000
    before = clock.now()
    clock.correct(before - 60_000, 0.0)
    assert clock.now() >= before, "it never goes back"
