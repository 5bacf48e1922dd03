"""Sets up what the peers need, under benchmarks/results/peers: each in an environment of its own, with locked versions.

What cannot be had on this machine raises Unavailable with a reason; the comparison then shows that in the peer's place.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.processes import RESULTS, ROOT

PEERS = RESULTS / "peers"
LOCKS = ROOT / "requirements" / "peers"
RESTATE_LOCK = ROOT / "benchmarks" / "peers" / "npm"


class Unavailable(Exception):
    """This peer cannot be installed here; the text says why, and what would help."""


def python_of(peer: str) -> str:
    """A Python with exactly the packages of requirements/peers/<peer>.txt."""
    return str(_environment(peer, LOCKS / f"{peer}.txt") / "python")


def restate_server() -> str:
    """The program of the locked npm package."""
    machine = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine())
    if sys.platform != "linux" or machine is None:
        raise Unavailable(f"Restate's server has no program for {platform.platform()}.")
    folder = PEERS / "restate-server"
    lock = RESTATE_LOCK / "package-lock.json"
    if _is_old(folder, lock):
        print("installing the server of Restate", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(RESTATE_LOCK, folder)
        # Without scripts: the only one reports the installation to somebody.
        _run([*_npm(), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], folder)
        _mark(folder, lock)
    return str(folder / f"node_modules/@restatedev/restate-server-linux-{machine}/bin/restate-server")


def redis_server() -> str:
    """An installed redis-server, or Debian's."""
    if found := shutil.which("redis-server"):
        return found
    # The server is also in this package, under another name; the package redis-server would start one.
    program, link = Path("/usr/bin/redis-check-rdb"), PEERS / "redis" / "redis-server"
    if not program.exists():
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise Unavailable("There is no redis-server here. Install it (on Debian: apt-get install redis-server).")
        print("installing Redis", file=sys.stderr)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "redis-tools"]
        try:
            _run(install, ROOT, environment)
        except Unavailable:
            _run(["apt-get", "update", "-qq"], ROOT, environment)
            _run(install, ROOT, environment)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(program)
    return str(link)


def _npm() -> list[str]:
    if found := shutil.which("npm"):
        return [found]
    return [str(_environment("node", ROOT / "requirements" / "node.txt") / "npm")]


def _environment(name: str, lock: Path) -> Path:
    """The folder of programs of a virtual environment with those packages; made when it is missing or old."""
    folder = PEERS / name
    if _is_old(folder, lock):
        print(f"installing the packages of {lock.relative_to(ROOT)}", file=sys.stderr)
        _run([sys.executable, "-m", "venv", "--clear", str(folder)], ROOT)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "install", "--root-user-action=ignore", "--require-hashes", "-r", str(lock)], ROOT)
        _mark(folder, lock)
    return folder / "bin"


def _is_old(folder: Path, lock: Path) -> bool:
    """Whether the folder was made by another lock file, or is not finished."""
    mark = folder / ".installed"
    return not mark.exists() or mark.read_text() != _digest(lock)


def _mark(folder: Path, lock: Path) -> None:
    (folder / ".installed").write_text(_digest(lock))


def _digest(lock: Path) -> str:
    return hashlib.sha256(lock.read_bytes()).hexdigest()


def _run(command: Sequence[str], folder: Path, environment: dict[str, str] | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Unavailable(f"{Path(command[0]).name} cannot be run: {error}") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise Unavailable(f"{' '.join(command[:4])} ... ended with {done.returncode}: {' '.join(said)[:400]}")
