"""The shop, opened for a test."""

from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.testing.shop import Outside, catalogue


@pytest.fixture
def outside() -> Outside:
    """Where effects go."""
    return Outside()


@pytest.fixture
def do_options(tmp_path: Path, outside: Outside) -> dict[str, Any]:
    """The shop's catalogue, its database and the world outside."""
    with closing(apsw.Connection(str(tmp_path / "app.db"))) as connection:
        connection.execute("create table reserved (item text not null)")
    return {"catalogue": catalogue, "sql": f"sqlite:///{tmp_path / 'app.db'}", "resources": [outside]}


@pytest.fixture
def reserved(tmp_path: Path) -> Any:
    """What is reserved in the database."""

    def rows() -> list[str]:
        with closing(apsw.Connection(str(tmp_path / "app.db"))) as connection:
            return [str(item) for (item,) in connection.execute("select item from reserved")]

    return rows
