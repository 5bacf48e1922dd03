"""Canary secrets go through every path, and none appears in the store, its log, the application's database, logs,
output or any command (I14).

The paths are played by canary_app.py in real processes; the first dies by SIGKILL between the commit of the
application's database and the journal's, so that the applied row is there when the files are searched.
"""

import base64
import html
import json
import os
import random
import signal
import string
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote, quote_plus

import apsw
import pytest

from dotdo import Catalogue, Do, KeyConflict, Secret
from dotdo.engine.following import Follower
from tests.guarantees.canary_app import catalogue, take
from tests.guarantees.ledger import ROOT

PATHS = [
    *("typed", "by name", "keyed", "conflict", "item", "second item", "value", "dataclass", "model", "preview"),
    *("beside a problem", "unknown name", "wrong type", "own validator", "plain place", "label", "delayed"),
    *("error message", "error cause", "error arguments", "error group", "error class", "error in base64"),
    *("error in a url", "error in hex", "error as bytes", "error cut", "fail", "retry later", "exit"),
    *("error of sql", "error after the end", "log", "logged error"),
    *("result text", "result key", "result object", "result in a class", "result in base64"),
    *(
        "staged",
        "requested",
        "staged answer",
        "requested answer",
        "lookup",
        "undo of a request",
        "plain effect",
        "secret of an effect",
    ),
    *("secret of the environment", "secret of a file", "fallback", "undo", "child", "after the kill", "event"),
    *("service bug", "service key", "service plain", "published", "service result", "applied row"),
]
# Refused before anything runs, so nobody hears them.
UNHEARD = {
    "conflict",
    "beside a problem",
    "unknown name",
    "wrong type",
    "own validator",
    "plain place",
    "label",
    "event",
}
# Heard by a receiver under another name.
HEARD_AS = {"item": "nested", "second item": "nested", "value": "nested"}
ALPHABET = string.ascii_letters + string.digits
SPECIAL = "\"'\\/&<>%+ é€\n\t=~"
PIECE = 12


def canaries(seed: int) -> dict[str, str]:
    """A random secret for each path; every third holds what must be escaped somewhere."""
    draw = random.Random(seed)
    made: dict[str, str] = {}
    for number, path in enumerate(PATHS):
        text = "".join(draw.choices(ALPHABET, k=draw.choice((16, 24, 32, 300 if path == "error of sql" else 40))))
        if number % 3 == 0 and not path.startswith("secret of"):
            text = text[:8] + "".join(draw.sample(SPECIAL, 5)) + text[8:]
        made[path] = text
    return made


def encodings(text: str) -> Iterator[bytes]:
    """How a text may stand in a file. Written without a look at how the engine hides it."""
    raw = text.encode()
    yield raw
    yield json.dumps(text)[1:-1].encode()
    yield json.dumps(text, ensure_ascii=False)[1:-1].encode()
    yield json.dumps(json.dumps(text))[3:-3].encode()
    yield repr(text)[1:-1].encode()
    yield repr(raw)[2:-1].encode()
    yield html.escape(text).encode()
    for quoted in (quote(text), quote(text, safe=""), quote_plus(text)):
        yield quoted.encode()
    yield raw.hex().encode()
    yield raw.hex().upper().encode()
    yield text.encode("utf-16-le")
    for before in range(3):
        whole = base64.b64encode(b"\0" * before + raw)
        core = whole[4:-4]
        yield core
        yield core.replace(b"+", b"-").replace(b"/", b"_")
    # Pieces of it, where something was cut.
    yield raw[:PIECE]
    yield raw[-PIECE:]


class Stage:
    """The folder in which it is played. `outside` is what is given to the processes, and is not searched."""

    def __init__(self, folder: Path) -> None:
        self.inside, self.outside = folder / "inside", folder / "outside"
        for name in ("inside/app", "inside/store", "outside/secrets"):
            (folder / name).mkdir(parents=True)
        self.canaries = canaries(random.SystemRandom().randrange(1 << 32))
        (self.outside / "secrets" / "file-key").write_text(self.canaries["secret of a file"] + "\n", encoding="utf-8")
        with closing(apsw.Connection(str(self.inside / "app" / "app.db"))) as connection:
            connection.execute("create table notes (text)")
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DOTDO_")}
        self.environment = {
            **kept,
            "ENVIRONMENT_KEY": self.canaries["secret of the environment"],
            "EFFECT_KEY": self.canaries["secret of an effect"],
            "PYTHONDEVMODE": "1",
        }
        self.outputs = 0

    def play(self, part: int) -> int:
        """Plays a part; returns the process's exit code."""
        return self._run(self._program(part))

    @contextmanager
    def engine(self) -> Iterator[None]:
        """A process that runs the engine."""
        with open(self.inside / "engine.txt", "wb") as errors:
            process = subprocess.Popen(
                self._program(3),
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            yield
            process.communicate()
        assert process.returncode == 0

    def _program(self, part: int) -> list[str]:
        plan = self.outside / f"plan-{part}.json"
        heard, secrets = self.outside / "heard.jsonl", self.outside / "secrets"
        told = {"part": part, "folder": str(self.inside), "heard": str(heard), "secrets": str(secrets)}
        plan.write_text(json.dumps({**told, "canaries": self.canaries}), encoding="utf-8")
        return [sys.executable, "-m", "tests.guarantees.canary_app", str(plan)]

    def command(self, *arguments: str, code: int = 0) -> str:
        """A command of dotdo; returns what it printed."""
        store = f"{self.inside}/store/dotdo.db"
        assert self._run([sys.executable, "-m", "dotdo", *arguments, "--store", store]) == code, arguments
        return (self.inside / f"output-{self.outputs}.txt").read_text(encoding="utf-8")

    def _run(self, command: list[str]) -> int:
        self.outputs += 1
        with open(self.inside / f"output-{self.outputs}.txt", "wb") as output:
            done = subprocess.run(
                command, cwd=ROOT, env=self.environment, stdout=output, stderr=subprocess.STDOUT, timeout=100
            )
        return done.returncode

    def heard(self) -> dict[str, set[str]]:
        """What the outside world was told, by path."""
        found: dict[str, set[str]] = {}
        for line in (self.outside / "heard.jsonl").read_text(encoding="utf-8").splitlines():
            what, text = json.loads(line)
            found.setdefault(what, set()).add(text)
        return found

    def sightings(self) -> list[str]:
        """Where a canary can be read, in words."""
        files = [path for path in self.inside.rglob("*") if path.is_file()]
        content = {path: path.read_bytes() for path in files}
        return [
            f"{path!r} in {file.relative_to(self.inside)}: ...{data[max(place - 60, 0) : place + 60]!r}..."
            for path, text in self.canaries.items()
            for form in {*encodings(text)}
            for file, data in content.items()
            if (place := data.find(form)) >= 0
        ]

    def applied(self) -> list[str]:
        """The completions that wait in the application's database."""
        with closing(apsw.Connection(str(self.inside / "app" / "app.db"))) as connection:
            return [row[0] for row in connection.execute("select completion from dotdo_applied")]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_no_canary_appears_in_any_form(stage: Stage):
    assert len(PATHS) >= 50
    assert stage.play(1) == -signal.SIGKILL
    (applied,) = stage.applied()
    assert applied.count("dotdo-secret:1:") == 2, "the input, and the staged effect's"
    assert stage.sightings() == []

    assert stage.play(2) == 0
    assert stage.applied() == []
    runs = json.loads(stage.command("runs", "ls", "--limit", "1000", "--json"))
    states = {run["status"] for run in runs}
    assert states == {"completed", "failed", "blocked"}
    stage.command("runs", "ls", "--limit", "1000")
    for run in {run["status"] + run["name"]: run for run in runs}.values():
        shown = stage.command("runs", "show", run["id"], "-v")
        assert "dotdo-secret:" not in shown
    stage.command("runs", "show", runs[0]["id"], "--json")
    stage.command("audit", "verify")
    assert stage.sightings() == []
    _check_that_every_path_was_gone(stage)


def _check_that_every_path_was_gone(stage: Stage) -> None:
    heard = stage.heard()
    silent = [
        path
        for path, text in stage.canaries.items()
        if path not in UNHEARD and text not in {told for texts in heard.values() for told in texts}
    ]
    assert silent == []
    assert "mail" not in heard
    log = (stage.inside / "all.log").read_text(encoding="utf-8")
    assert log.count("as expected: ") > 30
    assert log.count("***") > 50
    stored = b"".join(path.read_bytes() for path in (stage.inside / "store").iterdir())
    assert stored.count(b"dotdo-secret:1:") > 50


@pytest.mark.of_files("one engine for each file")
def test_a_process_beside_the_engine_hands_secrets_over_sealed(stage: Stage):
    store, given = f"sqlite:///{stage.inside}/store/dotdo.db", stage.canaries
    with stage.engine(), Do(store, catalogue=catalogue) as client:
        assert isinstance(client._portal.call(client._inner.platform), Follower)
        assert client.run(take, path="typed", top=Secret(given["typed"])) == "typed"
        assert client.run(take.with_(key="k"), path="keyed", top=Secret(given["keyed"])) == "keyed"
        assert client.run(take.with_(key="k"), path="keyed", top=Secret(given["keyed"])) == "keyed"
        with pytest.raises(KeyConflict):
            client.run(take.with_(key="k"), path="keyed", top=Secret(given["conflict"]))
        with Do(store, catalogue=Catalogue()) as stranger:  # does not know which of its inputs are secret
            assert stranger.action("take").invoke(path="by name", top=given["by name"]) == "by name"
    assert stage.sightings() == []
    assert stage.heard() == {path: {given[path]} for path in ("typed", "keyed", "by name")}


def test_the_search_finds_a_canary_in_each_form(stage: Stage):
    text = stage.canaries["error message"]
    for number, form in enumerate(encodings(text)):
        file = stage.inside / "store" / f"leak-{number}"
        file.write_bytes(b"before " + form + b" after")
        assert any(f"leak-{number}" in sighting for sighting in stage.sightings())
        file.unlink()
    assert stage.sightings() == []
