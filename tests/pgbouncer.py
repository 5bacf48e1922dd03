"""A real PgBouncer in transaction mode, for programs that try what works behind one. Debian's package, installed if it
is not there and we are root; so what uses it is no part of `make test`.
"""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from tests.ports import free_port
from tests.postgres import START_SECONDS, UNPRIVILEGED_USER

PROGRAM = "/usr/sbin/pgbouncer"


@contextlib.contextmanager
def pgbouncer(url: str, **settings: str) -> Iterator[str]:
    """Runs one before the server of that URL, and yields the URL that leads through it. settings: further ones of its
    section `pgbouncer`."""
    program, server, port = _program(), urlsplit(url), free_port()
    with tempfile.TemporaryDirectory(prefix="dotdo-pgbouncer-") as folder:
        run_as: dict[str, str | int] = {}
        if os.geteuid() == 0:  # which it refuses to run as
            account = pwd.getpwnam(UNPRIVILEGED_USER)
            os.chown(folder, account.pw_uid, account.pw_gid)
            run_as = {"user": account.pw_uid, "group": account.pw_gid}
        given = {
            "listen_addr": "127.0.0.1",
            "listen_port": f"{port}",
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": "transaction",
            "default_pool_size": "8",
            "max_client_conn": "200",
            **settings,
        }
        file = Path(folder, "pgbouncer.ini")
        lines = [f"{name} = {value}" for name, value in given.items()]
        databases = f"* = host={server.hostname} port={server.port} user={server.username}"
        file.write_text("\n".join(["[databases]", databases, "[pgbouncer]", *lines, ""]), encoding="utf-8")
        file.chmod(0o644)
        log = Path(folder, "log")
        with open(log, "wb") as out:
            command = [program, str(file)]
            process = subprocess.Popen(command, stdout=out, stderr=out, cwd=folder, **run_as)  # type: ignore[call-overload]
        try:
            through = url.replace(f"{server.hostname}:{server.port}", f"127.0.0.1:{port}")
            _wait(process, through, log)
            yield through
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=START_SECONDS)


def _wait(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            psycopg.connect(url, connect_timeout=2).close()
            return
        except psycopg.OperationalError as error:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"PgBouncer did not start:\n{log.read_text()}") from error
            time.sleep(0.02)


def _program() -> str:
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        print("installing Debian's pgbouncer", flush=True)
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "pgbouncer"]
        for command in (["apt-get", "update", "-qq"], install):
            subprocess.run(command, check=True, env=quiet, stdout=subprocess.DEVNULL)
        found = PROGRAM
    if found is None:
        raise RuntimeError("pgbouncer is not installed: apt-get install pgbouncer")
    return found
