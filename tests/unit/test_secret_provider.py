"""Where secrets come from: environment, files, mappings, anything with `get`. An unknown name tells no other one."""

import pytest

from dotdo import DefinitionError, EnvironmentSecrets, FileSecrets, SecretProvider, UnknownSecret
from dotdo.secret_provider import SecretSources


def found(given, name="KEY"):
    return SecretSources(given).get(name).reveal()


def test_the_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("KEY", "from the environment")
    assert found(None) == "from the environment"


def test_a_prefix_stands_before_each_name(monkeypatch):
    monkeypatch.setenv("SHOP_KEY", "prefixed")
    monkeypatch.setenv("KEY", "plain")
    assert found(EnvironmentSecrets(prefix="SHOP_")) == "prefixed"


@pytest.mark.parametrize("name", ["DOTDO_SECRET_KEYS", "DOTDO_AUDIT_KEY"])
@pytest.mark.parametrize("prefix", ["", "DOTDO_"])
def test_keys_of_dotdo_are_no_secrets_of_handlers(monkeypatch, name, prefix):
    monkeypatch.setenv(name, "key")
    with pytest.raises(UnknownSecret):
        found(EnvironmentSecrets(prefix), name.removeprefix(prefix))


def test_a_file_is_read_at_each_use_without_its_last_line_break(tmp_path):
    file = tmp_path / "KEY"
    for content, text in [
        ("one", "one"),
        ("two\n", "two"),
        ("three\r\n", "three"),
        ("a\nb\n\n", "a\nb\n"),
        ("é ", "é "),
    ]:
        file.write_bytes(content.encode())
        assert found(FileSecrets(tmp_path)) == text


def test_a_mounted_folder_of_links_works(tmp_path):
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data" / "db.password").write_text("linked\n")
    (tmp_path / "db.password").symlink_to("..data/db.password")
    assert found(FileSecrets(tmp_path), "db.password") == "linked"


@pytest.mark.parametrize(
    "name", ["../KEY", "/etc/passwd", "a/b", "..", ".hidden", "", "a\0b", "a..b", "a\n", "x" * 300]
)
def test_a_name_cannot_lead_out_of_the_folder(tmp_path, name):
    (tmp_path / "inside").mkdir()
    (tmp_path / "KEY").write_text("outside")
    with pytest.raises(UnknownSecret, match="cannot be the name"):
        found(FileSecrets(tmp_path / "inside"), name)


def test_a_file_that_cannot_be_read_is_told_without_its_content(tmp_path):
    (tmp_path / "KEY").write_bytes(b"hidden \xff\xfe")
    with pytest.raises(DefinitionError, match="not UTF-8") as caught:
        found(FileSecrets(tmp_path))
    assert "hidden" not in str(caught.value)
    (tmp_path / "FOLDER").mkdir()
    with pytest.raises(DefinitionError, match="cannot be read"):
        found(FileSecrets(tmp_path), "FOLDER")
    (tmp_path / "LARGE").write_bytes(b"x" * (1024 * 1024 + 1))
    with pytest.raises(DefinitionError, match="larger than 1 MiB"):
        found(FileSecrets(tmp_path), "LARGE")


def test_providers_are_asked_in_order(tmp_path):
    (tmp_path / "KEY").write_text("file")
    assert found([{"OTHER": "x"}, FileSecrets(tmp_path), {"KEY": "mapping"}]) == "file"


def test_anything_with_get_is_a_provider():
    class Ours:
        def get(self, name: str) -> str | None:
            return f"ours: {name}"

    assert isinstance(Ours(), SecretProvider)
    assert found(Ours()) == "ours: KEY"


def test_an_unknown_name_tells_where_it_was_looked_for_and_no_other_name(tmp_path, monkeypatch):
    class Ours:
        def get(self, name: str) -> str | None:
            return None

        def __repr__(self) -> str:
            return "hunter2"

    monkeypatch.setenv("KEY_OTHER", "hunter2")
    (tmp_path / "KEY_FILE").write_text("hunter2")
    with pytest.raises(UnknownSecret) as caught:
        found([EnvironmentSecrets(), FileSecrets(tmp_path), {"KEY_GIVEN": "hunter2"}, Ours()])
    message = str(caught.value)
    assert "no secret 'KEY'" in message
    assert str(tmp_path) in message
    assert "Ours" in message
    assert not any(text in message for text in ("KEY_", "hunter2"))
    assert isinstance(caught.value, DefinitionError)  # mend the configuration: trying again does not help


def test_what_is_no_provider_is_refused():
    with pytest.raises(DefinitionError, match="secrets= was given int"):
        SecretSources([5])  # type: ignore[list-item]
