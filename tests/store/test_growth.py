"""What a store is asked for each run, and by each look of the engine, does not depend on how much is in it.

Both databases say how they would go about a statement: it must search an index for each table that grows. PostgreSQL is
asked while its tables are empty, when it would rather read them whole, and keeps that plan while they fill.
"""

from collections.abc import Iterator
from typing import Any

import apsw
import pytest

from dotdo.store.connecting import Link
from dotdo.store.migrate import migrations
from dotdo.store.queries import load_queries, narrowed
from tests.store.postgres_stores import TEMPLATE, new_database, plan_of

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


def steps_of(connection: apsw.Connection, name: str) -> list[str]:
    statement = f"explain query plan {load_queries('sqlite')[name]}"
    return [str(row[3]) for row in connection.execute(statement, AnyParameter()).fetchall()]


@pytest.mark.parametrize("name", OF_EACH_RUN)
def test_a_statement_of_each_run_scans_no_table_that_grows(connection: apsw.Connection, name: str):
    plan = steps_of(connection, name)
    assert plan
    # These indexes have unfinished runs only, so going through them does not count.
    scans = [step for step in plan if step.startswith("SCAN") and not step.endswith(("runs_open", "runs_due"))]
    assert not [step for step in scans if step.split()[1] in GROWING]


# What a list of runs is narrowed down to by those of its conditions that few runs fulfil.
NARROW = [("status", "notable"), ("status", "notable", "name", "since"), ("status", "running"), ("trail",), ("parent",)]
LABELLED = [("labels", *given) for given in [(), *NARROW]]


@pytest.mark.parametrize("given", NARROW + LABELLED, ids=" and ".join)
def test_what_few_runs_are_is_listed_without_a_look_at_the_others(connection: apsw.Connection, given: tuple[str, ...]):
    statement = narrowed(load_queries("sqlite")["list_runs"], frozenset(given))
    plan = connection.execute(f"explain query plan {statement}", AnyParameter()).fetchall()
    steps = [str(row[3]) for row in plan]
    assert [step for step in steps if step.startswith("SEARCH")]
    assert not [step for step in steps if step.startswith("SCAN runs") and not step.endswith("runs_open")]
    if "labels" in given:
        assert [step for step in steps if step.startswith("SEARCH labels")]


@pytest.mark.parametrize("given", NARROW, ids=" and ".join)
def test_postgresql_lists_what_few_runs_are_by_an_index(link: Link, given: tuple[str, ...]):
    plan = plan_of(link.get(), narrowed(load_queries("postgres")["list_runs"], frozenset(given)))
    (index,) = [str(node["Index Name"]) for node in nodes_of(plan) if str(node.get("Index Name")).startswith("runs_")]
    assert index in ("runs_notable", "runs_open", "runs_due", "runs_trail", "runs_parent")


@pytest.mark.parametrize("name", ["get_run", "list_runs", "read_published"])
def test_progress_is_found_without_the_rest_of_the_journal(connection: apsw.Connection, name: str):
    assert any("USING INDEX journal_published" in step for step in steps_of(connection, name))


@pytest.fixture(scope="module")
def link(postgres_template: str) -> Iterator[Link]:
    """To a store in which nothing has been yet, as an engine connects to it."""
    url = new_database(postgres_template, template=TEMPLATE)
    link = Link(url, "a store in which nothing has been yet")
    yield link
    link.drop()


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", []):
        yield from nodes_of(below)


@pytest.mark.parametrize("name", OF_EACH_RUN)
def test_postgresql_scans_no_table_that_grows_even_while_it_is_small(link: Link, name: str):
    plan = plan_of(link.get(), load_queries("postgres")[name])
    scans = [node for node in nodes_of(plan) if node.get("Relation Name") in GROWING]
    scans = [node for node in scans if node["Node Type"].endswith("Scan")]
    bounded = ("Bitmap Heap Scan", "Tid Scan")  # what is found for them is
    assert not [
        node
        for node in scans
        if node["Node Type"] not in bounded
        and "Index Cond" not in node
        and node.get("Index Name") not in ("runs_open", "runs_due")
    ]
