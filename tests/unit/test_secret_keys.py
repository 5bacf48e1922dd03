"""The key file: made once by whoever comes first, whole or not at all, readable by its owner only."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dotdo import Do
from dotdo.errors import StoreUnusable
from dotdo.secret_keys import key_file, load_keyring, rotate


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("DOTDO_SECRET_KEYS", raising=False)
    return str(tmp_path / "dotdo.db")


def test_it_is_made_once_and_read_after_that(store: str):
    keyring = load_keyring(store)
    assert load_keyring(store) == keyring
    assert key_file(store).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in Path(store).parent.iterdir()] == ["dotdo.db.secret-keys"]


def test_of_many_at_once_one_makes_it_and_all_have_the_same(store: str):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: load_keyring(store), range(32)))
    assert all(keyring == found[0] for keyring in found)


def test_a_missing_one_can_be_left_missing(store: str):
    with pytest.raises(StoreUnusable, match="There is no key file"):
        load_keyring(store, make=False)
    assert not key_file(store).exists()


def test_the_environment_comes_first(store: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DOTDO_SECRET_KEYS", "mine:" + "ab" * 32)
    assert load_keyring(store).newest == "mine"
    assert not key_file(store).exists()


def test_a_store_in_memory_has_keys_of_its_own():
    assert load_keyring(None) != load_keyring(None)


def test_rotation_puts_a_new_key_first_and_keeps_all_others(store: str):
    first = load_keyring(store)
    second = rotate(store)
    third = rotate(store)
    assert list(third.keys)[1:] == list(second.keys)
    assert list(second.keys)[1:] == list(first.keys)
    assert third.comparing == first.comparing
    assert load_keyring(store) == third
    assert key_file(store).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"no keys\n", b"\xff\xfe", b"one:abc\n"])
def test_a_damaged_file_is_refused_and_left_as_it_is(store: str, content: bytes):
    key_file(store).write_bytes(content)
    for use in (load_keyring, rotate):
        with pytest.raises(StoreUnusable, match="secret-keys"):
            use(store)
    assert key_file(store).read_bytes() == content
    with pytest.raises(StoreUnusable, match="secret-keys"), Do(store):
        pass
    assert not Path(store).exists(), "told before the store is made"


def test_wrong_keys_in_the_environment_are_told_when_the_client_opens(store: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DOTDO_SECRET_KEYS", "hunter2")
    with pytest.raises(StoreUnusable, match="DOTDO_SECRET_KEYS: key 1 is not of the form") as caught, Do(store):
        pass
    assert "hunter2" not in str(caught.value)


def test_a_file_that_others_can_read_is_warned_of(store: str, caplog: pytest.LogCaptureFixture):
    load_keyring(store)
    assert caplog.text == ""
    key_file(store).chmod(0o640)
    load_keyring(store)
    assert "can be read by others than its owner" in caplog.text


def test_a_folder_that_takes_no_file_is_told(store: str):
    key_file(store).mkdir()
    with pytest.raises(StoreUnusable, match="cannot be read"):
        load_keyring(store)
    assert os.listdir(key_file(store)) == []
