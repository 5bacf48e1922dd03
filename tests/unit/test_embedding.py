"""Opening an embedded platform: which file a store's name means, its audit key, and resources with a lifespan."""

import asyncio
import contextlib
import itertools
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from dotdo import AsyncContext, AsyncDo, Catalogue, Context, DefinitionError, Do, RunBlocked, action, service
from dotdo.embedding import audit_key, open_reader, spin_limit, store_path
from dotdo.errors import StoreUnusable

KEY = "00112233445566778899aabbccddeeff" * 2
house = Catalogue()


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch):
    for name in ("DOTDO_STORE", "DOTDO_AUDIT_KEY", "DOTDO_DEV"):
        monkeypatch.delenv(name, raising=False)


# -- the store's name -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "store, path",
    [
        ("sqlite:///dotdo.db", "dotdo.db"),
        ("sqlite:///data/dotdo.db", "data/dotdo.db"),
        ("sqlite:////var/lib/dotdo.db", "/var/lib/dotdo.db"),
        ("dotdo.db", "dotdo.db"),
        ("/var/lib/dotdo.db", "/var/lib/dotdo.db"),
        ("sqlite://", None),
        (":memory:", None),
        ("sqlite:///:memory:", None),
        (None, ".dotdo/dotdo.db"),
    ],
)
def test_store_is_named_by_url_or_path(store: str | None, path: str | None):
    assert store_path(store) == path


def test_without_a_name_the_environment_says_which(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DOTDO_STORE", "sqlite:////srv/dotdo.db")
    assert store_path(None) == "/srv/dotdo.db"
    assert store_path("other.db") == "other.db"
    monkeypatch.setenv("DOTDO_STORE", "")
    assert store_path(None) == ".dotdo/dotdo.db"


@pytest.mark.parametrize(
    "store", ["postgresql://user@host/db", "sqlite://dotdo.db", "mysql:///x", "redis://", "file:x.db"]
)
def test_another_kind_of_store_is_refused_with_those_there_are(store: str):
    with pytest.raises(DefinitionError, match=r"use sqlite:///path/to/dotdo\.db, a path, or sqlite:// for a temporary"):
        store_path(store)


def test_a_folder_is_no_store(tmp_path: Path):
    for store in (str(tmp_path), f"sqlite:///{tmp_path}"):
        with pytest.raises(StoreUnusable, match="is a folder; name a file"), Do(store, catalogue=house):
            pass


def test_a_temporary_store_cannot_be_read_by_another():
    with pytest.raises(StoreUnusable, match="gone when its client closes"):
        open_reader("sqlite://")


# -- the audit key ----------------------------------------------------------------------------------------------------


def test_key_is_made_once_beside_the_store_for_its_owner_only(tmp_path: Path):
    store = str(tmp_path / "dotdo.db")
    key = audit_key(store)
    file = tmp_path / "dotdo.db.audit-key"
    assert len(key) == 32
    assert file.read_text() == key.hex() + "\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert audit_key(store) == key
    assert [found.name for found in tmp_path.iterdir()] == [file.name]


def test_a_crash_while_the_key_is_made_leaves_no_half_key(tmp_path: Path):
    """Killed between making the file and writing it: the next start makes the key as if nothing had been."""
    store = str(tmp_path / "dotdo.db")
    (tmp_path / "dotdo.db.audit-key.new").write_text("0011")
    key = audit_key(store)
    assert len(key) == 32
    assert audit_key(store) == key


def test_each_store_has_a_key_of_its_own(tmp_path: Path):
    assert audit_key(str(tmp_path / "a.db")) != audit_key(str(tmp_path / "b.db"))
    assert audit_key(None) != audit_key(None), "of a temporary store nothing is kept"


def test_environment_comes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DOTDO_AUDIT_KEY", KEY)
    assert audit_key(str(tmp_path / "dotdo.db")) == bytes.fromhex(KEY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given, message", [("zz" * 32, "is not hexadecimal"), ("00" * 15, "is too short")])
def test_a_bad_key_in_the_environment_is_refused(given: str, message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DOTDO_AUDIT_KEY", given)
    with pytest.raises(StoreUnusable, match=f"DOTDO_AUDIT_KEY {message}"):
        audit_key(None)


@pytest.mark.parametrize("text", ["", "zz", "0011", "ä"])
def test_a_damaged_key_file_is_refused_and_left_alone(tmp_path: Path, text: str):
    file = tmp_path / "dotdo.db.audit-key"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(StoreUnusable, match=r"dotdo\.db\.audit-key is no audit key: 64 hexadecimal digits are"):
        audit_key(str(tmp_path / "dotdo.db"))
    assert file.read_text(encoding="utf-8") == text


def test_who_only_verifies_makes_no_key(tmp_path: Path):
    with pytest.raises(StoreUnusable, match=r"There is no audit key .* Restore it, or give it as DOTDO_AUDIT_KEY"):
        audit_key(str(tmp_path / "dotdo.db"), make=False)
    assert list(tmp_path.iterdir()) == []


def test_a_lost_key_is_not_made_anew_beside_runs_that_it_anchored(tmp_path: Path):
    """A new key would make every run so far look tampered with, and nobody would know since when."""
    path, file = tmp_path / "dotdo.db", tmp_path / "dotdo.db.audit-key"
    with Do(str(path), catalogue=house) as client:
        pass
    file.unlink()
    with Do(str(path), catalogue=house) as client:  # nothing is anchored yet
        client.start(echo.with_(key="one"), number=1).result()
    kept = file.read_text()
    file.unlink()
    with pytest.raises(StoreUnusable, match=r"There is no audit key .*\. Restore it, or .* lost for good"):
        Do(str(path), catalogue=house).__enter__()
    assert not file.exists()
    file.write_text(kept)
    with Do(str(path), catalogue=house) as client:
        assert [run.result for run in client.runs.list()] == [1]


def test_an_opening_that_fails_leaves_the_store_free(tmp_path: Path):
    path = tmp_path / "dotdo.db"
    (tmp_path / "dotdo.db.audit-key").write_text("damaged")
    with pytest.raises(StoreUnusable, match="audit key"), Do(str(path), catalogue=house):
        pass
    (tmp_path / "dotdo.db.audit-key").unlink()
    with Do(str(path), catalogue=house) as client:
        assert client.runs.list() == []


# -- resources --------------------------------------------------------------------------------------------------------


class Log(list[str]):
    """What has happened to the resources, in order."""


class Pool:
    def __init__(self, log: Log) -> None:
        self.log = log

    async def __aenter__(self) -> "Pool":
        self.log.append("pool opened")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.log.append("pool closed")


class Cache:
    def __init__(self, log: Log) -> None:
        self.log = log

    def __enter__(self) -> dict[str, int]:
        self.log.append("cache opened")
        return {"cached": 1}

    def __exit__(self, *_: object) -> None:
        self.log.append("cache closed")


class Settings:
    """A resource that needs no opening."""


@action("use", catalogue=house)
async def use(ctx: AsyncContext) -> list[Any]:
    assert "closed" not in " ".join(ctx.resource(Log))
    return [ctx.resource(dict), type(ctx.resource(Pool)).__name__, type(ctx.resource(Settings)).__name__]


@action("use-sync", catalogue=house)
def use_sync(ctx: Context) -> str:
    return type(ctx.resource(Pool)).__name__


def test_resources_are_opened_once_in_order_and_closed_the_other_way_round(tmp_path: Path):
    log = Log()
    given = [log, Pool(log), Cache(log), Settings]
    with Do(str(tmp_path / "dotdo.db"), catalogue=house, resources=given) as client:
        for _ in range(2):
            assert client.run(use) == [{"cached": 1}, "Pool", "Settings"]
        assert client.run(use_sync) == "Pool"
        assert log == ["pool opened", "cache opened"]
    assert log == ["pool opened", "cache opened", "cache closed", "pool closed"]


def test_resources_may_be_given_as_functions_that_make_them():
    log = Log()

    @contextlib.asynccontextmanager
    async def open_pool() -> AsyncIterator[Pool]:
        async with Pool(log) as pool:
            yield pool

    @contextlib.contextmanager
    def open_cache() -> Iterator[dict[str, int]]:
        with Cache(log) as cache:
            yield cache

    async def main() -> list[Any]:
        given = [log, open_pool, open_cache, lambda: Settings()]
        async with AsyncDo("sqlite://", catalogue=house, resources=given) as client:
            return await client.run(use)

    assert asyncio.run(main()) == [{"cached": 1}, "Pool", "Settings"]
    assert log[-2:] == ["cache closed", "pool closed"]


def test_resource_that_does_not_open_closes_those_before_it_and_frees_the_store(tmp_path: Path):
    log = Log()

    def broken() -> None:
        raise ConnectionError("no such host")

    path = str(tmp_path / "dotdo.db")
    with pytest.raises(ConnectionError, match="no such host"), Do(path, catalogue=house, resources=[Pool(log), broken]):
        pass
    assert log == ["pool opened", "pool closed"]
    with Do(path, catalogue=house) as client:
        assert client.runs.list() == []


calls = itertools.count(1)


@action("echo", catalogue=house)
async def echo(number: int) -> int:
    return number


@service("forgetful", catalogue=house)
async def forgetful() -> int:
    return await echo(next(calls))


def test_a_setting_that_says_neither_yes_nor_no_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DOTDO_DEV", "maybe")
    with pytest.raises(DefinitionError, match="DOTDO_DEV='maybe': one of 1, true, yes, on or 0, false, no, off"):
        Do("sqlite://", catalogue=house).__enter__()


@pytest.mark.parametrize(
    "value, is_on", [("1", True), ("True", True), ("0", False), ("", False), ("false", False), ("No", False)]
)
def test_development_mode_replays_each_finished_run(value: str, is_on: bool, monkeypatch: pytest.MonkeyPatch):
    """A service with a memory of its own would go wrong after a restart; in development it shows at once."""
    monkeypatch.setenv("DOTDO_DEV", value)
    with Do("sqlite://", catalogue=house) as client:
        if is_on:
            with pytest.raises(RunBlocked, match="echo"):
                client.run(forgetful)
        else:
            assert client.run(forgetful) > 0


@pytest.mark.parametrize("value, seconds", [("", 5.0), ("0", 0.0), ("2.5", 2.5)])
def test_limit_for_services_that_spin_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, value: str, seconds: float
):
    monkeypatch.setenv("DOTDO_SPIN_LIMIT", value)
    assert spin_limit() == seconds


@pytest.mark.parametrize("value", ["-1", "soon", "nan", "1e30"])
def test_limit_that_is_no_number_of_seconds_is_refused(monkeypatch: pytest.MonkeyPatch, value: str):
    monkeypatch.setenv("DOTDO_SPIN_LIMIT", value)
    with pytest.raises(DefinitionError, match="a number of seconds is needed, or 0"):
        spin_limit()


def test_store_on_postgres_names_all_packages_that_it_needs(monkeypatch: pytest.MonkeyPatch):
    """Not only SQLAlchemy's, as for `sql=`, which nobody has given."""
    monkeypatch.setattr("dotdo.embedding.find_spec", lambda name: None)
    with pytest.raises(DefinitionError, match=r"psycopg and sqlalchemy not found.*dotdo\[postgres,sql\]"):
        Do("postgresql://nowhere.example/shop").__enter__()
