"""The tree of errors: as drawn, with stable codes, and whole after being copied or sent between processes."""

import copy
import inspect
import pickle
import re
import textwrap
from pathlib import Path

import pytest

from dotdo import errors
from dotdo.errors import ActionFailed, DotdoError, InvalidInput, Problem, RetryLater, StillRunning

CODES = {
    "DotdoError": "error",
    "DefinitionError": "invalid_definition",
    "DuplicateDefinition": "duplicate_definition",
    "CalledOutside": "called_outside",
    "UnknownSecret": "unknown_secret",
    "InputError": "refused",
    "InvalidInput": "invalid_input",
    "UnknownName": "unknown_name",
    "KeyConflict": "key_conflict",
    "InvalidValue": "invalid_value",
    "SecretExposed": "secret_exposed",
    "InvalidOperation": "invalid_operation",
    "OutcomeError": "outcome",
    "ActionFailed": "action_failed",
    "RunCancelled": "cancelled",
    "RunBlocked": "blocked",
    "StillRunning": "still_running",
    "HandlerError": "handler_error",
    "Fail": "fail",
    "RetryLater": "retry_later",
    "ProcessDied": "process_died",
    "AttemptTimedOut": "timed_out",
    "ReplayError": "replay_error",
    "ReplayMismatch": "replay_mismatch",
    "ServiceDidIO": "service_did_io",
    "ServiceSpins": "service_spins",
    "StoreError": "store_error",
    "StoreUnusable": "store_unusable",
    "StoreUnavailable": "store_unavailable",
    "SecretUnreadable": "secret_unreadable",
    "FenceLost": "fence_lost",
    "ClientClosed": "client_closed",
    "AccessError": "access_error",
    "AccessDenied": "access_denied",
    "Unreachable": "unreachable",
    "OutcomeUnknown": "outcome_unknown",
    "NodeDraining": "node_draining",
    "UnsupportedProtocol": "unsupported_protocol",
    "WorkerLost": "worker_lost",
    "UnknownWorker": "unknown_worker",
    "LeaseLost": "lease_lost",
    "NodeExpelled": "node_expelled",
}


def all_errors() -> dict[str, type[BaseException]]:
    return {
        name: found
        for name, found in vars(errors).items()
        if inspect.isclass(found) and issubclass(found, BaseException) and found.__module__ == errors.__name__
    }


def drawn_tree() -> dict[str, str]:
    """Each error of the drawing on top of errors.py, and the one that it hangs from."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"((?:[│├└─ ]{4})*)([A-Z]\w+)(?:\s{2,}|$)", line.removeprefix("    "))
        if found:
            depth = len(found[1]) // 4
            path[depth:] = [found[2]]
            parents[found[2]] = path[depth - 1] if depth else ""
    return parents


def example(kind: type[BaseException]) -> BaseException:
    if kind is ActionFailed:
        return ActionFailed("charge", "Fail", "No money.", attempts=3, step="charge:1", run_id="run_1", undo="all")
    if kind is InvalidInput:
        return InvalidInput("action charge@1", [Problem("$.cents", "is required")])
    if kind is RetryLater:
        return RetryLater("busy", after=12.5)
    return kind("what happened, and what to do")


def test_drawing_is_the_tree():
    real = {name: kind.__mro__[1].__name__ for name, kind in all_errors().items() if issubclass(kind, DotdoError)}
    real["DotdoError"] = ""
    assert drawn_tree() == real


def test_page_draws_the_same_tree():
    page = (Path(__file__).parents[2] / "docs" / "errors.md").read_text().partition("```text\n")[2].partition("```")[0]
    assert page.startswith("DotdoError\n")
    assert textwrap.indent(page, "    ") in (errors.__doc__ or "")


def test_codes_are_stable():
    assert {name: kind.code for name, kind in all_errors().items() if issubclass(kind, DotdoError)} == CODES
    assert len(set(CODES.values())) == len(CODES)


@pytest.mark.parametrize("name", sorted(all_errors()))
def test_errors_survive_copying_and_pickling(name: str):
    error = example(all_errors()[name])
    error.__dict__["run_id"] = "run_7"
    for twin in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):  # noqa: S301 - our own
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)


def test_what_user_code_must_not_swallow_is_no_exception():
    for kind in (errors.AttemptOver, errors.RunEvicted):
        assert issubclass(kind, BaseException)
        assert not issubclass(kind, Exception)


def test_action_failed_says_which_action_why_and_after_how_many_attempts():
    error = ActionFailed("charge", "Fail", "No money.", attempts=3, step="charge:1", run_id="run_1", undo="partial")
    assert str(error) == "charge failed after 3 attempts: No money."
    assert (error.action, error.error_type, error.error_message) == ("charge", "Fail", "No money.")
    assert (error.attempts, error.step, error.run_id, error.undo) == (3, "charge:1", "run_1", "partial")
    assert str(ActionFailed("charge", "KeyError", "")) == "charge failed: KeyError"


def test_invalid_input_lists_every_problem():
    problems = [Problem("$.to", "is required"), Problem("$.cents", "expected `int`, got `str`")]
    error = InvalidInput("action charge@2", problems)
    assert error.problems == tuple(problems)
    assert error.message == str(error)
    assert str(error).splitlines() == [
        "The input of action charge@2 is not valid:",
        "  $.to: is required",
        "  $.cents: expected `int`, got `str`",
    ]


def test_still_running_is_caught_as_a_timeout():
    with pytest.raises(TimeoutError, match="not yet"):
        raise StillRunning("not yet")
    assert StillRunning("x").run_id is None
