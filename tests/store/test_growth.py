"""What a store is asked for each run, and by each look of the engine, does not depend on how much is in it.

SQLite says how it would go about a statement (EXPLAIN QUERY PLAN): it must search an index for each table that grows.
"""

import apsw
import pytest

from dotdo.store.migrate import migrations
from dotdo.store.queries import load_queries

GROWING = ("runs", "journal", "told", "links", "labels", "inbox", "blobs")
OF_EACH_RUN = [
    "accept_runs",
    "append_entries",
    "update_runs",
    "claim_due",
    "claim_one",
    "rescue",
    "next_due",
    "own_runs",
    "get_run",
    "run_state",
    "runs_over",
    "read_journal",
    "read_journals",
    "read_published",
    "read_inbox",
    "runs_with_messages",
    "find_runs",
]


class AnyParameter(dict[str, str]):
    """Whatever a statement wants to be given, as an empty array."""

    def __missing__(self, name: str) -> str:
        return "[]"


@pytest.fixture(scope="module")
def connection():
    found = apsw.Connection(":memory:")
    for _, script in migrations("sqlite"):
        found.execute(script).fetchall()
    yield found
    found.close()


def plan_of(connection: apsw.Connection, name: str) -> list[str]:
    statement = f"explain query plan {load_queries('sqlite')[name]}"
    return [str(row[3]) for row in connection.execute(statement, AnyParameter()).fetchall()]


@pytest.mark.parametrize("name", OF_EACH_RUN)
def test_a_statement_of_each_run_scans_no_table_that_grows(connection: apsw.Connection, name: str):
    plan = plan_of(connection, name)
    assert plan
    # These indexes have unfinished runs only, so going through them does not count.
    scans = [step for step in plan if step.startswith("SCAN") and not step.endswith(("runs_open", "runs_due"))]
    assert not [step for step in scans if step.split()[1] in GROWING]


@pytest.mark.parametrize("name", ["get_run", "list_runs", "list_labelled_runs", "read_published"])
def test_progress_is_found_without_the_rest_of_the_journal(connection: apsw.Connection, name: str):
    assert any("USING INDEX journal_published" in step for step in plan_of(connection, name))
