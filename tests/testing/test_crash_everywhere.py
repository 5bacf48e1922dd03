"""`crash_everywhere`: a test is killed at each commit and effect, ends alike, or is told where it does not."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dotdo import ActionFailed
from dotdo.testing import TestDo
from dotdo.testing.everywhere import Walk
from dotdo.testing.killing import Dead, Point, Points
from tests.testing.shop import Outside, approval, ask, charge, letter, order, pay, thank

ROOT = Path(__file__).resolve().parents[2]


# -- what is right passes, wherever it is killed ---------------------------------------------------------------------


@pytest.mark.crash_everywhere
def test_order_is_made_whole(do: TestDo, outside: Outside, reserved: Callable[[], Any]):
    assert do.run(order, name="ada") == "payment of 100"
    assert reserved() == ["book"]
    assert {"charge visa", "thanks to ada"} <= {*outside.happened}
    assert outside.happened.count("thanks to ada") == 1  # nobody knows our keys there, and it is not sent twice


@pytest.mark.crash_everywhere
def test_refused_order_is_undone(do: TestDo, reserved: Callable[[], Any]):
    run = do.start(order, name="ada", fine=False)
    with pytest.raises(ActionFailed, match="not fine"):
        run.result()
    assert sorted(do.undone(run)) == ["pay", "reserve"]
    assert reserved() == []


@pytest.mark.crash_everywhere
def test_operator_steers_a_tree_of_runs(do: TestDo, reserved: Callable[[], Any]):
    run = do.start(approval)
    do.settle()
    run.send_event("approved", "ben")
    do.advance("1 day")
    assert run.get().status != "completed"
    assert run.result() == "ben by payment of 100"
    do.runs.undo(run.id)
    do.settle()
    assert run.get().undo == "all"
    assert reserved() == []


@pytest.mark.crash_everywhere
def test_fakes_that_fail_at_first(do: TestDo):
    do.fake(charge, raises=ConnectionError, times=2, result={"id": "third time"})
    assert do.run(pay, card="visa") == "third time"


@pytest.mark.crash_everywhere
def test_cancelled_order_is_undone(do: TestDo, reserved: Callable[[], Any]):
    run = do.start(order, name="ada")
    do.advance("1 day")
    run.cancel()
    do.settle()
    assert (run.get().status, run.get().undo) == ("cancelled", "all")
    assert reserved() == []


@pytest.mark.crash_everywhere
def test_question_without_a_kill_is_left_to_the_test(do: TestDo):
    do.fake(letter, raises=TimeoutError)
    run = do.start(thank, name="ada")
    do.advance("5 minutes")
    assert run.get().status == "blocked"


@pytest.mark.crash_everywhere
def test_question_of_a_run_that_the_test_cancels_is_left_to_the_test(do: TestDo):
    do.fake(letter, raises=TimeoutError)
    run = do.start(ask, name="ada")
    do.advance("5 minutes")
    assert run.get().status == "blocked"
    run.cancel()
    do.settle()
    assert run.get().status == "cancelled"


# -- what is wrong is told -------------------------------------------------------------------------------------------

HEAD = """
import pytest
from dotdo import Catalogue, AsyncContext, action, effect, service
from dotdo.testing import TestDo

catalogue = Catalogue()
seen = []

@pytest.fixture
def do_options():
    return {"catalogue": catalogue}

@effect("letter", on_unknown="resend", catalogue=catalogue)
def letter(text: str) -> None:
    seen.append(text)

@action("write", catalogue=catalogue)
async def write(ctx: AsyncContext, text: str) -> int:
    seen.append(f"wrote {text}")
    ctx.stage(letter, text=text)
    return seen.count(f"wrote {text}")

@service("both", catalogue=catalogue)
async def both() -> list:
    return [await write(text="a"), await write(text="b")]
"""


def outcome(pytester: pytest.Pytester, body: str, *options: str) -> pytest.RunResult:
    """What pytest says of a test file, with no plugins but ours and those among the options."""
    pytester.makepyfile(HEAD + body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # most of its time would be theirs
        plugin = ("-p", "dotdo.testing.plugin", "-p", "no:cacheprovider")
        return pytester.runpytest_subprocess("-W", "error", "-q", *plugin, *options)


def test_first_divergence_is_shown(pytester: pytest.Pytester):
    """An action that counts in its process's memory, round its context, comes to another result after a kill."""
    found = outcome(
        pytester,
        """
@pytest.mark.crash_everywhere
def test_both(do):
    seen.clear()
    do.run(both)
""",
    )
    found.assert_outcomes(failed=1)
    text = found.stdout.str()
    assert "the test ended otherwise than undisturbed" in text
    assert re.search(r"When it was killed before commit \d \(.*completed|committed write.*\)", text)
    assert re.search(r"both run_\w+: result: \[2,1\] instead of \[1,1\]", text), text


def test_failure_after_a_kill_says_where_it_was_killed(pytester: pytest.Pytester):
    found = outcome(
        pytester,
        """
@pytest.mark.crash_everywhere
def test_both(do):
    seen.clear()
    do.run(both)
    assert seen == ["wrote a", "a", "wrote b", "b"]
""",
    )
    found.assert_outcomes(failed=1)
    text = found.stdout.str()
    assert "It passed undisturbed. It failed when it was killed before commit 2 (" in text
    assert "At index 1 diff: 'wrote a' != 'a'" in text


def test_failure_after_a_kill_says_which_effect_was_called_again(pytester: pytest.Pytester):
    """Whoever counts calls, instead of comparing sets, is told where one more comes from."""
    found = outcome(
        pytester,
        """
from dotdo import Context, effect

@effect("tell", dedup="key", catalogue=catalogue)
def tell(text: str) -> None: ...

@action("report", catalogue=catalogue)
def report(ctx: Context) -> None:
    ctx.stage(tell, text="done")

@pytest.mark.crash_everywhere
def test_report(do):
    do.run(report)
    assert len(do.sent(tell)) == 1
""",
    )
    found.assert_outcomes(failed=1)
    text = found.stdout.str()
    assert re.search(r"The effect tell of report\S* \(key run_\S+\) was called again under its key", text), text
    assert "compare sets: {one.key for one in do.sent(...)}" in text


def test_undisturbed_failure_is_reported_once(pytester: pytest.Pytester):
    found = outcome(
        pytester,
        """
@pytest.mark.crash_everywhere
def test_both(do):
    do.run(both)
    assert seen == []
""",
    )
    found.assert_outcomes(failed=1)
    assert "It passed undisturbed" not in found.stdout.str()


def test_undo_that_cannot_be_repeated_is_found(pytester: pytest.Pytester):
    """Killed between what it does and its commit, it does it again."""
    found = outcome(
        pytester,
        """
from dotdo import ActionFailed, Fail

@write.undo
async def unwrite(ctx: AsyncContext, count: int) -> None:
    if not seen:
        raise Fail("it is gone already")
    seen.clear()

@action("refuse", catalogue=catalogue)
async def refuse(ctx: AsyncContext) -> None:
    raise Fail("no")

@service("refused", catalogue=catalogue)
async def refused() -> None:
    await write(text="a")
    await refuse()

@pytest.mark.crash_everywhere
def test_refused(do):
    do.fake(write, result=1)
    seen[:] = ["a"]
    with pytest.raises(ActionFailed):
        do.run(refused)
""",
    )
    found.assert_outcomes(failed=1)
    text = found.stdout.str()
    assert re.search(r"It failed when it was killed before commit \d \(completed undo; undone; ended\)", text), text
    assert "could not be undone: Fail: it is gone already" in text


def test_every_place_is_come_to_though_each_trial_goes_another_way():
    """Writes share commits, and branches overtake each other, as threads have it."""
    ways = (("a", "b", "c", "d"), ("a", "c", "b", "d"), ("a", "b d", "c"))
    killed: set[tuple[str, str]] = set()
    trials = 0

    def trial(deadly: Point | None) -> Points:
        nonlocal trials
        points = Points()
        points.armed, points.deadly = True, deadly
        try:
            for place in ways[trials % len(ways)]:
                points.reach("commit", "before", place, place.split()[0])
                points.reach("commit", "after", place, place.split()[0])
        except Dead:
            pass
        trials += 1
        return points

    walk = Walk(trial(None).passed)
    for point in walk:
        points = trial(point)
        walk.learn(points.passed, fired=points.dead)
        if points.dead:
            killed.add((point.place, point.side))
    assert killed == {(place, side) for place in "abcd" for side in ("before", "after")}
    assert trials < 20


@pytest.mark.parametrize(
    "body, told",
    [
        ("def test_it(): pass", "does not ask for the fixture `do`"),
        ("def test_it(do): pass", "starts no run that could be killed"),
    ],
)
def test_marker_that_would_prove_nothing_fails(pytester: pytest.Pytester, body: str, told: str):
    found = outcome(pytester, f"\n@pytest.mark.crash_everywhere\n{body}\n")
    found.assert_outcomes(failed=1)
    assert told in found.stdout.str()


def test_fixtures_are_made_anew_each_time(pytester: pytest.Pytester):
    found = outcome(
        pytester,
        """
made = []

@pytest.fixture
def fresh():
    made.append("made")
    yield []
    made.append("gone")

@action("plain", catalogue=catalogue)
async def plain(ctx: AsyncContext) -> None:
    ctx.stage(letter, text="x")

@pytest.mark.crash_everywhere
def test_plain(do, fresh):
    do.run(plain.with_(key="k"))
    fresh.append(1)
    assert fresh == [1]

def test_after():
    # Undisturbed; three commits and one effect, before and after.
    assert made.count("made") == made.count("gone") >= 9
""",
    )
    found.assert_outcomes(passed=2)


LETTERS = """
@service("letters", catalogue=catalogue)
async def letters(count: int) -> int:
    for number in range(count):
        await write(text=str(number))
    return count
"""


@pytest.mark.parametrize(
    "marker, options, kills",
    [("sample=5", (), "5"), ("sample=5", ("--crash-sample=all",), r"\d\d")],
)
def test_sample_of_the_points(pytester: pytest.Pytester, marker: str, options: tuple[str, ...], kills: str):
    body = f"""{LETTERS}
@write.undo
async def unwrite(ctx: AsyncContext, count: int) -> None: ...

@pytest.mark.crash_everywhere({marker})
def test_letters(do):
    do.fake(write, result=1)
    assert do.run(letters, count=4) == 4
"""
    found = outcome(pytester, body, "-rP", *options)
    found.assert_outcomes(passed=1)
    assert re.search(rf"It ended alike after each of {kills} kills", found.stdout.str()), found.stdout.str()


@pytest.mark.parametrize("given", ["sample=0", "smaple=3", "20"])
def test_sample_that_is_none_fails(pytester: pytest.Pytester, given: str):
    found = outcome(pytester, f"\n@pytest.mark.crash_everywhere({given})\ndef test_it(do): do.run(both)\n")
    found.assert_outcomes(failed=1)
    assert "say sample=, with a number from 1 on or 'all'" in found.stdout.str()


def test_what_the_module_shares_is_made_once(pytester: pytest.Pytester):
    """Also for the last test of a module, after which it goes; what goes wrong then is told."""
    found = outcome(
        pytester,
        """
made = []

@pytest.fixture(scope="module")
def shared():
    made.append("made")
    yield made
    assert made == ["made"]
    raise OSError("cannot be given back")

@pytest.mark.crash_everywhere(sample=3)
def test_both(do, shared):
    do.fake(write, result=1)
    do.run(both)
    assert shared == ["made"]
""",
    )
    found.assert_outcomes(passed=1, errors=1)
    assert "cannot be given back" in found.stdout.str()


def test_only_the_trial_that_failed_is_shown(pytester: pytest.Pytester):
    found = outcome(
        pytester,
        """
@pytest.mark.crash_everywhere
def test_both(do):
    print("a trial", "begins")
    seen.clear()
    do.run(both)
    assert seen == ["wrote a", "a", "wrote b", "b"]
""",
    )
    found.assert_outcomes(failed=1)
    assert found.stdout.str().count("a trial begins") == 1


def test_in_processes_of_xdist(pytester: pytest.Pytester):
    found = outcome(
        pytester,
        """
@action("plain", catalogue=catalogue)
async def plain(ctx: AsyncContext, number: int) -> int:
    ctx.stage(letter, text=str(number))
    return number

@pytest.mark.crash_everywhere
@pytest.mark.parametrize("number", range(4))
def test_plain(do, number):
    assert do.run(plain, number=number) == number
    assert [one.input["text"] for one in do.sent(letter)][-1] == str(number)
""",
        "-p",
        "xdist",
        "-n",
        "2",
    )
    found.assert_outcomes(passed=4)
