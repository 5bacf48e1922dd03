"""The systems that are compared: what each is set up with, what makes it durable, and how it is started and measured.

A measurement has a folder, the stand-in servers of the onboarding and, where there are any, the system's servers to
itself, all fresh. The shim is under the system's processes only, never under the stand-ins.
"""

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy

from benchmarks.peers import installing
from benchmarks.peers.installing import Unavailable
from benchmarks.processes import ROOT, environment, measure, scratch, sync_environment
from examples.onboarding.standins import StandIns
from examples.onboarding.users import create_tables, metadata
from tests.postgres import restartable_server

DELAY_US = 1_000
# Beside this one, PostgreSQL may need a place that others than root may enter, and that is no memory.
LASTING = Path("/var/tmp")  # noqa: S108 - a folder of our own is made in it
AUDIT_KEY = "00112233445566778899aabbccddeeff"
READY_SECONDS = 60.0


@dataclass(frozen=True)
class Effort:
    """seconds: of each part of a measurement. levels: runs in flight, of which the best one counts."""

    seconds: float
    levels: list[int]
    level_for_real: int


@dataclass
class Site:
    """Where one measurement happens. world: what finds the stand-ins. slow: each flush takes 1 ms longer."""

    folder: Path
    world: dict[str, str]
    effort: Effort
    slow: bool
    shim: dict[str, str] = field(default_factory=dict[str, str])

    def plan(self, *pids: int, trace: Path | None = None, counted: bool = True) -> dict[str, Any]:
        """What measuring.Plan is made of. trace: strace's file. counted: whether that or the shim sees every flush."""
        return {
            **asdict(self.effort),
            "pids": list(pids),
            "counter": self.shim.get("DOTDO_BENCH_SYNC_COUNT") if counted else None,
            "trace": None if trace is None else str(trace),
        }

    def measure(self, function: str, python: str = sys.executable, **arguments: Any) -> Any:
        """In a process of the system, which is client, too."""
        env = {**self.world, **self.shim, "DOTDO_AUDIT_KEY": AUDIT_KEY}
        return measure(f"benchmarks.peers.{function}", env=env, python=python, **arguments)

    def sqlite(self) -> str:
        """URL of the application's database, the same for all: in write-ahead mode, with the table of users."""
        create_tables(self.folder)
        with contextlib.closing(sqlite3.connect(self.folder / "app.db")) as connection:
            connection.execute("pragma journal_mode = wal")
        return f"sqlite:///{self.folder / 'app.db'}"

    @contextlib.contextmanager
    def postgres(self) -> Iterator[tuple[str, str, int]]:
        """A server: its URL, the same for SQLAlchemy, where the table of users is, and the id of its process."""
        with _in(self.shim), restartable_server(fsync="on", shared_buffers="256MB") as server:
            application = server.url.replace("postgresql:", "postgresql+psycopg:")
            engine = sqlalchemy.create_engine(application)
            metadata.create_all(engine)
            engine.dispose()
            yield server.url, application, server.pid

    @contextlib.contextmanager
    def process(self, name: str, command: list[str], extra: dict[str, str]) -> Iterator[int]:
        """A server of the system, which is killed with all its children in the end; gives its id."""
        log = (self.folder / f"{name}.log").open("wb")
        env = {**environment(), **self.world, **extra}
        process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        try:
            yield process.pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            log.close()


@dataclass(frozen=True)
class System:
    """One of the table's columns."""

    name: str
    label: str
    durability: str
    set_up: Callable[[], Any]
    run: Callable[[Site, Any], Any]


def measured(system: System, given: Any, effort: Effort, slow: bool) -> dict[str, Any]:
    """One measurement. given: what `set_up` returned. Raises Failed, or RuntimeError when not all has arrived."""
    with scratch() as folder, _shim(slow) as shim, StandIns(folder) as world:
        site = Site(folder, world.environment, effort, slow, shim)
        found = system.run(site, given)
        for server in ("email", "billing", "slack"):
            arrived, wanted = len(world.done(server)), found["real"]["total"]
            if arrived != wanted:
                raise RuntimeError(f"{wanted} onboardings brought {arrived} arrivals at the {server} stand-in.")
        return found


@contextlib.contextmanager
def _shim(slow: bool) -> Iterator[dict[str, str]]:
    """The environment of processes whose flushes are counted together. Raises Unavailable without a C compiler."""
    shim = sync_environment(DELAY_US if slow else 0)
    if shim is None:
        raise Unavailable("Flushes cannot be counted: the shim needs Linux and a C compiler (apt-get install gcc).")
    with tempfile.TemporaryDirectory(prefix="dotdo-bench-", dir=LASTING) as folder:
        os.chmod(folder, 0o755)  # noqa: S103 - PostgreSQL may run as another user
        library, count = Path(folder, "syncs.so"), Path(folder, "count")
        shutil.copy(shim["LD_PRELOAD"], library)
        count.write_bytes(bytes(8))
        count.chmod(0o666)
        yield {**shim, "LD_PRELOAD": str(library), "DOTDO_BENCH_SYNC_COUNT": str(count)}


@contextlib.contextmanager
def _in(variables: dict[str, str]) -> Iterator[None]:
    """With these in our own environment, for what is started meanwhile; temporary files are kept on a disk."""
    before, folder = dict(os.environ), tempfile.tempdir
    os.environ.update(variables)
    tempfile.tempdir = str(LASTING)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        tempfile.tempdir = folder


def _dotdo_sqlite(site: Site, _: None) -> Any:
    given = {"folder": str(site.folder), "url": None, "application": site.sqlite()}
    return site.measure("in_dotdo:measured", plan=site.plan(), **given)


def _dotdo_postgres(site: Site, _: None) -> Any:
    with site.postgres() as (url, application, server):
        given = {"folder": str(site.folder), "url": url, "application": application}
        return site.measure("in_dotdo:measured", plan=site.plan(server), **given)


def _dbos_sqlite(site: Site, python: str) -> Any:
    given = {"folder": str(site.folder), "url": None, "application": site.sqlite()}
    return site.measure("in_dbos:measured", python, plan=site.plan(), **given)


def _dbos_postgres(site: Site, python: str) -> Any:
    with site.postgres() as (url, application, server):
        given = {"folder": str(site.folder), "url": url, "application": application}
        return site.measure("in_dbos:measured", python, plan=site.plan(server), **given)


def _set_up_restate() -> tuple[str, str]:
    return installing.restate_server(), installing.python_of("restate")


def _restate(site: Site, given: tuple[str, str]) -> Any:
    program, python = given
    ports = {name: _free_port() for name in ("ingress", "admin", "worker", "fabric")}
    serve = [program, "--base-dir", str(site.folder / "data"), "--node-name", "n1", "--bind-ip", "127.0.0.1"]
    serve += ["--bind-port", str(ports.pop("fabric")), "--listen-mode", "tcp"]
    settings = {
        "RESTATE_INGRESS__BIND_PORT": str(ports["ingress"]),
        "RESTATE_ADMIN__BIND_PORT": str(ports["admin"]),
        "RESTATE_BIFROST__LOCAL__ROCKSDB_DISABLE_WAL_FSYNC": "false",
        "RESTATE_LOG_SERVER__ROCKSDB_DISABLE_WAL_FSYNC": "false",
        "RESTATE_LOG_FILTER": "error",
        "RESTATE_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
    }
    trace = site.folder / "trace" if site.slow else None
    if trace is not None:
        # The server is linked statically, so the shim does not reach it.
        serve = [*_strace(trace), *serve]
    handlers = [str(Path(python).with_name("granian")), "--interface", "asgi", "--http", "2", "--no-access-log"]
    handlers += ["--log-level", "error", "--host", "127.0.0.1", "--port", str(ports["worker"])]
    handlers += ["benchmarks.peers.restate_handlers:app"]
    application = {"BENCHMARK_APPLICATION": site.sqlite()}
    with (
        site.process("server", serve, settings) as server,
        site.process("handlers", handlers, {**application, **site.shim}) as worker,
    ):
        plan = site.plan(server, worker, trace=trace, counted=trace is not None)
        return site.measure("in_restate:measured", python, plan=plan, ports=ports)


def _strace(trace: Path) -> list[str]:
    if shutil.which("strace") is None:
        raise Unavailable("Restate's flushes are slowed by strace, which is not here (apt-get install strace).")
    calls = "fsync,fdatasync"
    return [
        *["strace", "-f", "--seccomp-bpf", "-qq", "-o", str(trace), "-e", f"trace={calls}"],
        *["-e", f"inject={calls}:delay_enter={DELAY_US}"],
    ]


def _set_up_celery() -> tuple[str, str]:
    return installing.redis_server(), installing.python_of("celery")


def _celery(site: Site, given: tuple[str, str]) -> Any:
    program, python = given
    port = _free_port()
    serve = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(site.folder), "--save", ""]
    serve += ["--appendonly", "yes", "--appendfsync", "always"]
    where = {"BENCHMARK_REDIS": f"redis://127.0.0.1:{port}", "BENCHMARK_APPLICATION": site.sqlite()}
    work = [str(Path(python).with_name("celery")), "-A", "benchmarks.peers.celery_tasks", "worker", "-c", "2"]
    work += ["-l", "ERROR", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    with site.process("redis", serve, site.shim) as server:
        _wait_for(port)
        with site.process("workers", work, {**where, **site.shim, "C_FORCE_ROOT": "1"}) as workers:
            site.world.update(where)
            return site.measure("in_celery:measured", python, plan=site.plan(server, workers))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(port: int) -> None:
    end = time.monotonic() + READY_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


SYSTEMS = [
    System("dotdo-sqlite", "dotdo, SQLite", "write-ahead log, synchronous=FULL", lambda: None, _dotdo_sqlite),
    System("dotdo-postgres", "dotdo, PostgreSQL", "fsync, synchronous_commit", lambda: None, _dotdo_postgres),
    System(
        "dbos-sqlite",
        "DBOS, SQLite",
        "write-ahead log, synchronous=FULL",
        lambda: installing.python_of("dbos"),
        _dbos_sqlite,
    ),
    System(
        "dbos-postgres",
        "DBOS, PostgreSQL",
        "fsync, synchronous_commit",
        lambda: installing.python_of("dbos"),
        _dbos_postgres,
    ),
    System("restate", "Restate", "its log flushed before an answer, in groups", _set_up_restate, _restate),
    System("celery", "Celery, Redis", "appendfsync always, acks_late", _set_up_celery, _celery),
]
