"""A sync handler past its timeout: its statement is cancelled, its transaction rolled back, and the retry goes on.

The thread itself cannot be killed. In these tests it goes on until the test lets it end, which is after the retry.
"""

import threading
from typing import Any

import pytest
from sqlalchemy import text

from dotdo import AttemptOver, Context, Retry, RunCancelled, action
from tests.contract_sql.databases import Database
from tests.workshop import PATIENCE, Workshop, data, kinds

MOMENT = 0.3  # s of real time, because handlers are real work
SOON = Retry(attempts=100, delay=0, jitter=False)  # where that is too short for an attempt that does not hang
ENDLESS = {
    "sqlite": "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n",
    "postgresql": "select pg_sleep(3600)",
}


class Hanging:
    """A handler that hangs the first time that it comes so far, in a statement or in Python, and then tries to go on in
    its transaction."""

    def __init__(self, workshop: Workshop, *, in_statement: bool) -> None:
        self.ends: list[BaseException] = []
        self.may_end, self.has_ended, self.began = threading.Event(), threading.Event(), threading.Event()

        @action("hang", retry=SOON, timeout=MOMENT, catalogue=workshop.catalogue)
        def hang(ctx: Context) -> str:
            connection = ctx.sql
            connection.execute(text(f"insert into notes (text) values ('attempt {ctx.attempt}')"))
            ctx.heartbeat()  # one whose time was over before it came here does not hang
            if self.began.is_set():
                return f"attempt {ctx.attempt}"
            self.began.set()
            try:
                if in_statement:
                    self._note(lambda: connection.execute(text(ENDLESS[connection.dialect.name])))
                self.may_end.wait(PATIENCE)
                self._note(lambda: connection.execute(text("insert into notes (text) values ('too late')")))
                self._note(lambda: ctx.sql)
            finally:
                self.has_ended.set()
            return "too late"

        self.action = hang

    def _note(self, call: Any) -> None:
        try:
            call()
        except BaseException as error:
            self.ends.append(error)


@pytest.mark.parametrize("in_statement", [True, False], ids=["in a statement", "in Python"])
def test_retry_goes_on_while_the_thread_still_hangs(workshop: Workshop, database: Database, in_statement: bool):
    hanging = Hanging(workshop, in_statement=in_statement)
    client = workshop.open()
    handle = client.start(hanging.action)
    in_time = handle.result(timeout=PATIENCE)
    assert hanging.began.is_set()
    assert not hanging.has_ended.is_set()
    assert database.notes() == [in_time]

    hanging.may_end.set()
    assert hanging.has_ended.wait(PATIENCE)
    ends = [type(error) for error in hanging.ends]
    assert ends[-2:] == [AttemptOver, AttemptOver]
    assert len(ends) == 2 + in_statement, "the statement was cancelled"
    *failed, completed = kinds(handle, "hang")
    assert (set(failed), completed) == ({"attempt_failed"}, "completed")
    assert {one.error.type for one in data(handle, "attempt_failed")} == {"AttemptTimedOut"}
    client.close()
    assert database.notes() == [in_time]


def test_statement_of_a_cancelled_run_is_cancelled(workshop: Workshop, database: Database):
    hanging = Hanging(workshop, in_statement=True)
    handle = workshop.open().start(hanging.action.with_(timeout=PATIENCE))
    assert hanging.began.wait(PATIENCE)
    handle.cancel()
    with pytest.raises(RunCancelled):
        handle.result(timeout=PATIENCE)
    assert not hanging.has_ended.is_set()
    database.execute("insert into notes (text) values ('nobody holds a lock')")
    hanging.may_end.set()
    assert hanging.has_ended.wait(PATIENCE)
    assert database.notes() == ["nobody holds a lock"]
