"""`dotdo run`: parameters, waiting, exit codes, and draining at a signal."""

import json
import re
import signal

import pytest

from tests.cli.commands import PATIENCE, Shell, interrupt

# -- results and exit codes -------------------------------------------------------------------------------------------


def test_result_is_json_on_stdout_and_talk_on_stderr(shop: Shell):
    done = shop.run("run", "greet@1", "name=Ada", "times=2")
    assert (done.returncode, done.stdout) == (0, '"Hello Ada, Hello Ada"\n')
    assert "greet completed after" in done.stderr
    assert "dotdo runs show run_" in done.stderr


def test_json_prints_the_whole_run(shop: Shell):
    run = shop.json("run", "order", "item=tea", "--trail", "t1")
    assert (run["status"], run["result"], run["trail"]) == ("completed", "tea", "t1")


def test_priority_is_kept_and_shown(shop: Shell):
    run = shop.json("run", "order", "item=tea", "--priority", "-4")
    assert run["priority"] == -4
    assert re.search(r"^ *priority +-4$", shop.ok("runs", "show", run["id"]), re.MULTILINE)
    assert "priority" not in shop.ok("runs", "show", shop.json("run", "order", "item=tea")["id"])
    [_, listed] = shop.json("runs", "ls")
    assert listed["priority"] == -4
    wrong = shop.run("run", "order", "item=tea", "--priority", "11")
    assert wrong.returncode == 2
    assert "11 is not in the range -10<=x<=10" in wrong.stderr


def test_failed_run_exits_with_1_and_says_why_and_what_was_undone(shop: Shell):
    done = shop.run("run", "order", "item=tea", "cents=-5")
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: charge failed after 3 attempts: ValueError: cents must be positive" in done.stderr
    assert "what it had done is undone" in done.stderr
    run = shop.json("run", "order", "item=tea", "cents=-5")
    assert (run["status"], run["undo"], run["error"]["action"]) == ("failed", "all", "charge")


def test_blocked_run_exits_with_1(shop: Shell):
    done = shop.run("run", "buggy")
    assert done.returncode == 1
    assert "The service raised KeyError" in done.stderr
    assert "Traceback" not in done.stderr


def test_wait_that_is_over_exits_with_3_and_the_run_is_kept(shop: Shell):
    done = shop.run("run", "approval", "what=tea", "--wait", "0.8")
    assert (done.returncode, done.stdout) == (3, "")
    [run] = shop.json("runs", "ls")
    assert run["id"] in done.stderr
    assert run["status"] == "waiting"


def test_same_key_is_the_same_run(shop: Shell):
    first = shop.json("run", "order", "item=tea", "--key", "k")
    again = shop.json("run", "order", "item=tea", "--key", "k")
    assert again == first
    other = shop.run("run", "order", "item=milk", "--key", "k")
    assert other.returncode == 2
    assert "already used for order with another input" in other.stderr


def test_version_is_pinned_by_flag_or_name_and_is_the_newest_otherwise(shop: Shell):
    assert shop.ok("run", "greet", "--version", "1", "name=Ada") == '"Hello Ada"\n'
    assert shop.ok("run", "greet", 'names=["Ada", "Ben"]') == '"Hello Ada and Ben"\n'
    unknown = shop.run("run", "greet@3", "name=Ada")
    assert unknown.returncode == 2
    assert "known versions: 1, 2" in unknown.stderr
    two = shop.run("run", "greet@1", "--version", "2", "name=Ada")
    assert (two.returncode, "greet@1 and --version 2 are two versions; one is needed." in two.stderr) == (2, True)


# -- parameters -------------------------------------------------------------------------------------------------------


def test_parameters_are_read_by_their_type_hints(shop: Shell):
    words = ["text=5", "number=5", "ratio=2.5", "flag=true", 'tags=["a", "b"]', "day=2026-01-31", "size=2", "note=null"]
    result = json.loads(shop.ok("run", "echo", *words, "mixed=7", "userId=u 1"))
    assert result == {
        "text": "5",
        "number": 5,
        "ratio": 2.5,
        "flag": True,
        "tags": ["a", "b"],
        "day": "2026-01-31",
        "size": "2",
        "note": "null",
        "user_id": "u 1",
        "mixed": 7,
    }


def test_colon_equals_is_always_json(shop: Shell):
    result = json.loads(shop.ok("run", "echo", "note:=null", 'text:="a=b"', "mixed:=3"))
    assert (result["note"], result["text"], result["mixed"]) == (None, "a=b", 3)


def test_whole_input_from_stdin_or_file_and_single_parameters_over_it(shop: Shell):
    done = shop.run("run", "echo", "-", "number=2", input='{"text": "from stdin", "number": 1}')
    assert (json.loads(done.stdout)["text"], json.loads(done.stdout)["number"]) == ("from stdin", 2)
    shop.write("input.json", '{"text": "from a file"}')
    assert json.loads(shop.ok("run", "echo", "@input.json"))["text"] == "from a file"


@pytest.mark.parametrize(
    "words, message",
    [
        (["name"], "'name' is no parameter: give NAME=VALUE"),
        (["=x"], "'=x' is no parameter"),
        (["name=a", "name=b"], "name is given twice"),
        (["name:=a"], "name:= is not JSON"),
        (["name:=Ada"], "Text is given as name=..., without the colon."),
        (["-"], "stdin is empty; JSON is needed."),
        (["@missing.json"], "missing.json cannot be read: No such file or directory."),
        (["@app.py"], "app.py is not JSON"),
        (["@list.json"], "list.json must hold a JSON object"),
    ],
)
def test_words_that_are_no_parameters_are_refused(shop: Shell, words: list[str], message: str):
    shop.write("list.json", "[1]")
    done = shop.run("run", "greet@1", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "`dotdo run --help` tells how it is used." in done.stderr
    assert not (shop.folder / ".dotdo").exists(), "nothing was made"


def test_every_problem_of_an_input_is_listed_and_nothing_is_made(shop: Shell):
    done = shop.run("run", "echo", "number=many", "flag=maybe", "colour=red", "--json")
    assert done.returncode == 2
    for path in ("$.number", "$.flag", "$.colour"):
        assert path in done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "invalid_input"
    assert {problem["path"] for problem in error["problems"]} == {"$.number", "$.flag", "$.colour"}
    assert "number:='...'" in done.stderr, "how it is given what is no text"
    assert not (shop.folder / ".dotdo").exists()


def test_unknown_name_tells_what_is_near(shop: Shell):
    done = shop.run("run", "ordr", "item=tea")
    assert done.returncode == 2
    assert "app.py defines no action or service 'ordr'. Did you mean order?" in done.stderr


# -- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_drains_and_the_run_goes_on_later(shop: Shell, number: int):
    process = shop.start("run", "slow", "seconds=1")
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"  # by the handler: its attempt is in flight
    code, output, errors = interrupt(process, number)
    assert (code, output) == (128 + number, "")
    assert "Stopping" in errors
    run = shop.json("runs", "show", "latest")["run"]
    assert run["status"] == "completed", "the attempt in flight was given the time to end"


def test_second_signal_stops_at_once_and_loses_nothing(shop: Shell):
    process = shop.start("run", "slow", "seconds=60")
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert "Stopping" in process.stderr.readline()
    assert interrupt(process, signal.SIGINT)[0] == 130
    [run] = shop.json("runs", "ls")
    assert (run["name"], run["ended_at"]) == ("slow", None)


# -- beside another engine --------------------------------------------------------------------------------------------


def test_commands_beside_a_live_engine_ask_it(shop: Shell):
    holder = shop.start("run", "approval", "what=tea")
    shop.wait_for_run("waiting")
    assert shop.ok("run", "greet@1", "name=Ada") == '"Hello Ada"\n'
    shop.ok("runs", "send-event", shop.json("runs", "ls", "--name", "approval")[0]["id"], "approved", "yes")
    assert holder.wait(PATIENCE) == 0
    assert holder.stdout is not None
    assert holder.stdout.read() == '"yes"\n'


def test_cancel_beside_a_live_engine_needs_no_application(shop: Shell):
    holder = shop.start("run", "approval", "what=tea")
    run = shop.wait_for_run("waiting")
    (shop.folder / "app.py").rename(shop.folder / "elsewhere.py")
    done = shop.run("runs", "cancel", run)
    assert (done.returncode, "approval was cancelled" in done.stderr) == (0, True), done.stderr
    assert holder.wait(PATIENCE) == 1, "its own run was cancelled"
    refused = shop.run("runs", "send-event", run, "approved")
    assert (refused.returncode, "has ended" in refused.stderr) == (2, True)


def test_event_for_a_run_without_an_engine_is_kept(shop: Shell):
    holder = shop.start("run", "approval", "what=tea")
    run = shop.wait_for_run("waiting")
    holder.kill()
    holder.wait()
    for words, message in (
        (['approved:={"by": "Ada"}'], """is a word of its own: approved ':={"by": "Ada"}'"""),
        (["approved=Ada"], "is a word of its own: approved Ada"),
        (["approved", "by:=1"], """such as ':={"by": ...}'"""),
    ):
        refused = shop.run("runs", "send-event", run, *words)
        assert (refused.returncode, message in refused.stderr) == (2, True), refused.stderr
    other = shop.run("runs", "send-event", run, "aproved", "Ada")
    assert "was sent the event 'aproved', and waits for the event 'approved'." in other.stderr
    sent = shop.run("runs", "send-event", run, "approved", ':="Ada"')
    assert (sent.returncode, "taken when one does" in sent.stderr) == (0, True), sent.stderr
    assert "waits for" not in sent.stderr
    assert json.loads(shop.ok("runs", "watch", run, "--resume")) == "Ada"
    wrong = shop.run("runs", "send-event", run, "approved", ":={")
    assert (wrong.returncode, "is not JSON" in wrong.stderr) == (2, True)


# -- on a terminal ----------------------------------------------------------------------------------------------------


def test_hostile_text_cannot_steer_the_terminal(shop: Shell):
    shop.write_application("app.py")
    with (shop.folder / "app.py").open("a") as source:
        source.write('\n@action("evil")\ndef evil() -> None:\n    raise Fail("\\x1b[2J[red]gone\\u202e")\n')
    shown = shop.on_terminal("run", "evil")
    assert "\\x1b[2J[red]gone\\x202e" in shown
    assert "\x1b[2J" not in shown
    assert "\x1b[2J" not in shop.on_terminal("runs", "show", "latest")
