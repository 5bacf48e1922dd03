"""The PostgreSQL server of the tests is real, reachable on loopback only and gone afterwards."""

import psutil
import psycopg
import pytest

from tests.postgres import postgres_server


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
    assert version >= 180000


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


def _data_directory(url: str) -> str:
    with psycopg.connect(url) as connection:
        row = connection.execute("select current_setting('data_directory')").fetchone()
    assert row is not None
    return row[0]


def _processes(data: str) -> list[psutil.Process]:
    return [process for process in psutil.process_iter(["cmdline"]) if data in (process.info["cmdline"] or [])]
