"""A setting comes from the flag, else the environment, else dotdo.toml, else its default."""

import sqlite3
from contextlib import closing

import pytest

from tests.cli.commands import Shell


def test_flag_comes_before_environment_before_file_before_default(shop: Shell):
    command = ["run", "greet@1", "name=Ada"]

    def stores() -> set[str]:
        return {str(path.relative_to(shop.folder)) for path in shop.folder.rglob("*.db")}

    shop.ok(*command)
    assert stores() == {".dotdo/dotdo.db"}
    shop.write("dotdo.toml", 'store = "file.db"\n')
    shop.ok(*command)
    assert stores() == {".dotdo/dotdo.db", "file.db"}
    shop.ok(*command, DOTDO_STORE="environment.db")
    assert stores() == {".dotdo/dotdo.db", "file.db", "environment.db"}
    shop.ok(*command, "--store", "sqlite:///flag.db", DOTDO_STORE="environment.db")
    assert stores() == {".dotdo/dotdo.db", "file.db", "environment.db", "flag.db"}
    assert len(shop.json("runs", "ls")) == 1, "looking goes by the same settings"


def test_application_of_file_and_environment(shop: Shell):
    (shop.folder / "app.py").rename(shop.folder / "shop.py")
    shop.write("dotdo.toml", 'app = "shop.py"\n')
    assert shop.ok("run", "greet@1", "name=Ada") == '"Hello Ada"\n'
    other = shop.run("actions", "ls", DOTDO_APP="other.py")
    assert "other.py does not exist" in other.stderr


@pytest.mark.parametrize(
    "text, message",
    [
        ('stor = "x"', "dotdo.toml: there is no setting 'stor'. Did you mean store?"),
        ("colour = 1", "dotdo.toml: there is no setting 'colour'. Known are: app, store, sql."),
        ("store = 1", "dotdo.toml: store = 1; a text is needed."),
        ("[sql]\nusers = 1", "a text, or a table of texts is needed."),
        ("store = ", "dotdo.toml cannot be read: Invalid value"),
        ("store = here.db", 'Text stands in quotes: store = "dotdo.db".'),
    ],
)
def test_wrong_file_is_told(shop: Shell, text: str, message: str):
    shop.write("dotdo.toml", text)
    done = shop.run("runs", "ls")
    assert done.returncode == 2
    assert message in done.stderr


def test_sql_is_one_database_or_several_by_name(shop: Shell):
    with (shop.folder / "app.py").open("a") as source:
        source.write(
            "\nfrom sqlalchemy import text\n"
            '@action("note")\n'
            "def note(ctx: Context, database: str | None = None) -> None:\n"
            "    connection = ctx.database(database) if database else ctx.sql\n"
            '    connection.execute(text("insert into notes values (1)"))\n'
        )
    for name in ("one.db", "two.db"):
        with closing(sqlite3.connect(shop.folder / name)) as database:
            database.execute("create table notes (number integer)")

    def notes(name: str) -> int:
        with closing(sqlite3.connect(shop.folder / name)) as database:
            return database.execute("select count(*) from notes").fetchone()[0]

    shop.ok("run", "note", "--sql", "sqlite:///one.db")
    assert (notes("one.db"), notes("two.db")) == (1, 0)
    both = ["--sql", "first=sqlite:///one.db", "--sql", "second=sqlite:///two.db"]
    shop.ok("run", "note", "database=second", *both)
    assert (notes("one.db"), notes("two.db")) == (1, 1)
    shop.write("dotdo.toml", '[sql]\nfirst = "sqlite:///one.db"\nsecond = "sqlite:///two.db"\n')
    shop.ok("run", "note", "database=first")
    assert (notes("one.db"), notes("two.db")) == (2, 1)
    nameless = shop.run("run", "note", "--sql", "sqlite:///one.db", "--sql", "sqlite:///two.db")
    assert nameless.returncode == 2
    assert "Several databases need names" in nameless.stderr


def test_store_of_another_kind_is_refused(shop: Shell):
    for command in (["run", "greet@1", "name=Ada"], ["runs", "ls"]):
        done = shop.run(*command, "--store", "mysql://localhost/dotdo")
        assert done.returncode == 2
        assert "use sqlite:///path/to/dotdo.db, a path" in done.stderr
