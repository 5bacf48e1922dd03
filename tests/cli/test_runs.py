"""`dotdo runs`: lists, timelines, following, and steering."""

import json
import re
import shutil
import signal
from pathlib import Path

import pytest

from tests.cli.commands import PATIENCE, Shell, interrupt

# -- looking ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An application with one run of each kind of end."""
    shell = Shell(tmp_path_factory.mktemp("past"))
    shell.write_application()
    for command in (
        ["order", "item=tea", "--trail", "t1"],
        ["order", "item=milk", "cents=-5"],
        ["greet@1", "name=Ada", "--trail", "t1"],
        ["buggy"],
    ):
        shell.run("run", *command)
    holder = shell.start("run", "approval", "what=leave")
    shell.wait_for_run("waiting")
    interrupt(holder)
    return shell.folder


@pytest.fixture
def history(past: Path, shell: Shell) -> Shell:
    """A copy of it."""
    shutil.copytree(past, shell.folder, dirs_exist_ok=True)
    return shell


def test_ls_lists_the_newest_first_as_tab_separated_lines(history: Shell):
    lines = [line.split("\t") for line in history.ok("runs", "ls").splitlines()]
    assert [line[1] for line in lines] == ["approval", "buggy", "greet", "order", "order"]
    assert [line[2] for line in lines] == ["waiting", "blocked", "completed", "failed, undone", "completed"]
    assert lines[0][5] == "waits for the event 'approved'"
    assert lines[3][5] == "charge: ValueError: cents must be positive"
    assert all(re.fullmatch(r"run_[0-9a-f]{32}", line[0]) for line in lines)


def test_ls_filters(history: Shell):
    def names(*arguments: str) -> list[str]:
        return [run["name"] for run in history.json("runs", "ls", *arguments)]

    assert names("--status", "completed") == ["greet", "order"]
    assert names("--name", "order") == ["order", "order"]
    assert names("--trail", "t1") == ["greet", "order"]
    assert names("--limit", "2") == ["approval", "buggy"]
    nothing = history.run("runs", "ls", "--name", "nobody")
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert "There are no such runs." in nothing.stderr


def test_ls_is_a_table_on_a_terminal_and_fits_a_narrow_one(history: Shell):
    wide, narrow = history.on_terminal("runs", "ls", columns=140), history.on_terminal("runs", "ls", columns=80)
    assert "WHY" in wide
    assert "WHY" not in narrow
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in narrow.splitlines()]
    assert max(map(len, plain)) <= 80
    assert plain[0].split() == ["RUN", "NAME", "STATUS", "STARTED", "TOOK"]
    assert "failed, undone" in narrow


def test_what_to_do_next_stands_beside_its_command_or_below_it(history: Shell):
    """On a narrow terminal a wrapped explanation would stand between the commands of others."""
    hints = ["run an engine for it here", "give it up and undo what it did", "with inputs, results and tracebacks"]
    for columns, beside in ((120, True), (80, False)):
        plain = re.sub(r"\x1b\[[0-9;]*m", "", history.on_terminal("runs", "show", "latest", columns=columns))
        lines = [line.rstrip() for line in plain.partition("next  ")[2].splitlines()]
        for hint in hints:
            [line] = [line for line in lines if line.endswith(hint)]
            assert ("dotdo runs " in line) is beside
        assert max(map(len, plain.splitlines())) <= columns


def test_show_tells_steps_attempts_errors_effects_and_undo(history: Shell):
    [run] = history.json("runs", "ls", "--status", "failed")
    shown = history.ok("runs", "show", run["id"])
    expected = [
        r"^order@1  service  failed, undone$",
        r'^input +\{"cents": -5, "item": "milk"\}$',
        r'✓ reserve +\d+ ms  → "reserved milk"  ↩ undone$',
        r"✓ tell ",
        rf"effect +\+\d+ m?s  post.letter delivered at try 2  key {run['id']}\.[0-9a-f]+\.0$",
        r"try 1  \+\d+ m?s  ConnectionError: the box is full  \(again in \d+ ms\)$",
        r"✗ charge +\d+ ms  failed after 3 attempts$",
        r"attempt 1  \+\d+ m?s  ValueError: cents must be positive  \(again in \d+ ms\)$",
        r"attempt 3  \+\d+ m?s  ValueError: cents must be positive$",
        r"↩ undo reserve",
        r"■ failed$",
        r"^error +charge: ValueError: cents must be positive$",
        r"^not undone +tell: post.letter$",
        rf"^next +dotdo runs retry {run['id'][:20]} +open it again; what was undone is done again$",
    ]
    position = 0
    for pattern in expected:
        found = re.compile(pattern, re.MULTILINE).search(shown, position)
        assert found, f"{pattern!r} after {shown[:position]!r}\n---\n{shown[position:]}"
        position = found.end()
    assert "Traceback" not in shown
    assert "in charge" not in shown


def test_show_verbose_has_tracebacks_and_inputs(history: Shell):
    [run] = history.json("runs", "ls", "--status", "failed")
    shown = history.ok("runs", "show", run["id"], "-v")
    assert 'raise ValueError("cents must be positive")' in shown
    assert "app.py" in shown
    assert 'input     {"cents": -5}' in shown


def test_show_says_what_an_unfinished_run_waits_for_and_what_to_do(history: Shell):
    shown = history.ok("runs", "show", "latest")
    assert re.search(r"^waits for +the event 'approved'$", shown, re.MULTILINE)
    assert "no process runs an engine on this store now" in shown
    assert re.search(r"^next +dotdo runs send-event run_\w+ approved VALUE +what it waits for$", shown, re.MULTILINE)
    assert re.search(r"dotdo runs watch run_\w+ --resume", shown)
    [run] = history.json("runs", "ls", "--status", "blocked")
    assert re.search(
        r"^error +KeyError: The service raised KeyError", history.ok("runs", "show", run["id"]), re.MULTILINE
    )


def test_show_says_when_a_timer_is_due(shop: Shell):
    with (shop.folder / "app.py").open("a") as source:
        source.write('\n@service("nap")\nasync def nap() -> None:\n    await asyncio.sleep(3 * 86400 + 1800)\n')
    holder = shop.start("run", "nap")
    shop.wait_for_run("waiting")
    interrupt(holder)
    assert re.search(r"^waits for +a timer .*\(in 3 d\)$", shop.ok("runs", "show", "latest"), re.MULTILINE)


FANS_OUT = """
@service("fans-out")
async def fans_out() -> None:
    await asyncio.gather(*(reserve(item=item) for item in ("tea", "milk", "a very long name of something in the shop")))
    await charge(cents=1)
"""


def test_steps_of_one_name_are_told_from_each_other_by_their_inputs(shop: Shell):
    with (shop.folder / "app.py").open("a") as source:
        source.write(FANS_OUT)
    shop.ok("run", "fans-out")
    shown = shop.ok("runs", "show", "latest")
    assert re.search(r'✓ reserve item="tea" +\d+ ms  → "reserved tea"$', shown, re.MULTILINE)
    assert re.search(r'✓ reserve item="milk" +\d+ ms  → "reserved milk"$', shown, re.MULTILINE)
    assert re.search(r'✓ reserve item="a very long \w+… +\d+ ms  → ', shown, re.MULTILINE)
    assert re.search(r"✓ charge {20,}\d+ ms", shown, re.MULTILINE)


FANS_OUT_OVER_OBJECTS = """
@action("greet-guest")
async def greet_guest(guest: dict, table: dict, day: str) -> str:
    return f"hello {guest['id']}"


@service("fans-out-over-objects")
async def fans_out_over_objects() -> None:
    for id, name in ((7, "Ada Lovelace"), (8, "Grace Hopper")):
        await greet_guest(guest={"name": name, "id": id}, table={"room": {"id": -id}}, day="today")
"""


def test_steps_that_are_given_objects_are_told_from_each_other_by_their_parts(shop: Shell):
    """The shortest come first, by their own names; where two have the same name, the whole of it says which."""
    with (shop.folder / "app.py").open("a") as source:
        source.write(FANS_OUT_OVER_OBJECTS)
    shop.ok("run", "fans-out-over-objects")
    shown = shop.ok("runs", "show", "latest")
    assert re.search(r'✓ greet-guest guest.id=7, tabl… +\d+ ms  → "hello 7"$', shown, re.MULTILINE), shown
    assert re.search(r'✓ greet-guest guest.id=8, tabl… +\d+ ms  → "hello 8"$', shown, re.MULTILINE), shown


def test_show_json_has_the_run_and_its_journal(history: Shell):
    [run] = history.json("runs", "ls", "--status", "failed")
    told = history.json("runs", "show", run["id"])
    assert told["run"] == run
    assert [entry["seq"] for entry in told["journal"]] == list(range(1, len(told["journal"]) + 1))
    assert told["journal"][0]["data"]["input"] == {"item": "milk", "cents": -5}
    assert told["journal"][-1]["kind"] == "ended"


def test_run_is_found_by_the_beginning_of_its_id(history: Shell):
    ids = [run["id"] for run in history.json("runs", "ls")]
    for written in (ids[2], ids[2][:24], ids[2][4:24]):
        assert history.json("runs", "show", written)["run"]["id"] == ids[2]
    several = history.run("runs", "show", "run_")
    assert several.returncode == 2
    assert all(id in several.stderr for id in ids)
    nothing = history.run("runs", "show", "run_ffff")
    assert nothing.returncode == 2
    assert "There is no run 'run_ffff'" in nothing.stderr


def test_looking_makes_nothing_where_there_is_no_store(shell: Shell):
    for command in (["runs", "ls"], ["runs", "show", "latest"], ["audit", "verify"], ["nodes"]):
        done = shell.run(*command)
        assert done.returncode == 1
        assert f"There is no store {shell.folder}/.dotdo/dotdo.db" in done.stderr
    assert list(shell.folder.iterdir()) == []


def test_output_that_nobody_reads_is_no_error(history: Shell):
    process = history.start("runs", "show", "latest", "--json")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    process.wait(timeout=PATIENCE)
    process.stderr.close()


# -- following --------------------------------------------------------------------------------------------------------


def test_watch_prints_entries_as_they_come_and_ends_with_the_run(shop: Shell):
    holder = shop.start("run", "approval", "what=tea")
    shop.wait_for_run("waiting")
    watcher = shop.start("runs", "watch", "latest")
    assert watcher.stdout is not None
    lines = [watcher.stdout.readline() for _ in range(2)]
    assert [line.split(maxsplit=1)[1].strip() for line in lines] == ["accepted", "reserve completed"]
    interrupt(holder)
    assert shop.run("runs", "cancel", "latest").returncode == 0
    output, errors = watcher.communicate(timeout=PATIENCE)
    assert watcher.returncode == 1
    assert "undo completed" in output
    assert "cancelled" in errors


def test_watch_of_an_ended_run_exits_by_its_outcome(history: Shell):
    [failed] = history.json("runs", "ls", "--status", "failed")
    assert history.run("runs", "watch", failed["id"]).returncode == 1
    [completed, _] = history.json("runs", "ls", "--status", "completed")
    done = history.run("runs", "watch", completed["id"], "--json")
    assert done.returncode == 0
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line.get("kind") for line in lines] == ["accepted", "completed", "ended", None]
    assert lines[-1]["run"]["id"] == completed["id"]


def test_watch_without_an_engine_says_that_nothing_moves(history: Shell):
    done = history.run("runs", "watch", "latest", "--wait", "0.1")
    assert done.returncode == 3
    assert "No process runs an engine on this store now" in done.stderr


def test_ls_says_who_has_a_run_and_that_nobody_has_it_any_more(shop: Shell):
    process = shop.start("run", "slow", "seconds=60")
    assert process.stdout is not None
    process.stdout.readline()
    beside = shop.run("runs", "ls").stdout
    assert re.search(r"running\t.*waits for node_\w+, which has it in memory", beside), beside
    process.kill()
    process.communicate(timeout=PATIENCE)
    assert "waits for an engine: no process runs one on this store now" in shop.run("runs", "ls").stdout
    assert json.loads(shop.run("runs", "show", "latest", "--json").stdout)["run"]["waiting_for"]["kind"] == "engine"


def test_watch_resume_brings_a_run_to_its_end(shop: Shell):
    process = shop.start("run", "slow", "seconds=60")
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.communicate(timeout=PATIENCE)
    text = (shop.folder / "app.py").read_text()
    (shop.folder / "app.py").write_text(text.replace("asyncio.sleep(seconds)", "asyncio.sleep(seconds / 1000)"))
    done = shop.run("runs", "watch", "latest", "--resume")
    assert (done.returncode, done.stdout) == (0, 'started\n"done"\n')


# -- steering ---------------------------------------------------------------------------------------------------------


def test_cancel_undoes_what_a_waiting_run_did(history: Shell):
    done = history.run("runs", "cancel", "latest")
    assert done.returncode == 0, done.stderr
    assert "approval was cancelled; what it had done is undone" in done.stderr
    run = history.json("runs", "show", "latest")["run"]
    assert (run["status"], run["undo"]) == ("cancelled", "all")
    again = history.run("runs", "cancel", "latest")
    assert again.returncode == 2
    assert "has ended (cancelled)" in again.stderr


def test_retry_goes_on_where_the_run_failed(history: Shell):
    [run] = history.json("runs", "ls", "--status", "failed")
    assert history.run("runs", "retry", run["id"]).returncode == 1, "the same input fails again"
    text = (history.folder / "app.py").read_text().replace("if cents < 0:", "if cents < -10:")
    (history.folder / "app.py").write_text(text)
    done = history.run("runs", "retry", run["id"])
    assert (done.returncode, done.stdout) == (0, '"milk"\n'), done.stderr
    shown = history.ok("runs", "show", run["id"])
    assert "reopened    2 times" in shown
    assert re.search(r"· opened again to retry by \w+, generation 2", shown)


def test_undo_takes_a_completed_run_back(history: Shell):
    [run] = history.json("runs", "ls", "--name", "order", "--status", "completed")
    done = history.run("runs", "undo", run["id"])
    assert done.returncode == 0, done.stderr
    assert "Everything that it did is undone." in done.stderr
    again = history.run("runs", "undo", run["id"])
    assert again.returncode == 2
    assert "everything it did is undone already" in again.stderr
    assert history.run("audit", "verify").returncode == 0


REGISTERS = """
together = threading.Barrier(2)


@effect("post.registered", retry=1)
def registered(call: EffectCall, to: str) -> str:
    if to != "Ada":
        together.wait(20)  # both letters are under way before either is lost
    raise ConnectionError("the line went dead")


@action("register", retry=1)
def register(ctx: Context, to: str) -> str:
    return ctx.request(registered, to=to)


@service("registers")
async def registers(names: list[str]) -> list[str]:
    return list(await asyncio.gather(*(register(to=name) for name in names)))
"""


@pytest.fixture
def post_office(shop: Shell) -> Shell:
    """The application with a service whose letters are lost."""
    with (shop.folder / "app.py").open("a") as source:
        source.write(REGISTERS)
    return shop


def test_question_is_shown_and_resolved(post_office: Shell):
    shop = post_office
    assert shop.run("run", "registers", 'names:=["Ada"]').returncode == 1
    shown = shop.ok("runs", "show", "latest")
    assert re.search(r"^question +request post.registered$", shown, re.MULTILINE)
    assert "Nobody knows whether post.registered happened" in shown
    assert "The last try ended with ConnectionError: the line went dead." in " ".join(shown.split())
    assert re.search(r'^input +\{"to": "Ada"\}$', shown, re.MULTILINE)
    [run] = shop.json("runs", "ls")
    [question] = run["waiting_for"]["questions"]
    assert (question["about"], question["answers"][0]) == ("request", "happened")
    for option in ("--happened --answer JSON", "--did-not-happen", "--try-again"):
        assert f"dotdo runs resolve {run['id'][:20]} {option}" in shown

    assert "Say --happened" in shop.run("runs", "resolve", "latest").stderr
    assert "is no JSON" in shop.run("runs", "resolve", "latest", "--happened", "--answer", "{").stderr
    wrong = shop.run("runs", "resolve", "latest", "--happened", "--answer", "17")
    assert (wrong.returncode, "does not fit its return hint str" in wrong.stderr) == (2, True), wrong.stderr
    done = shop.run("runs", "resolve", "latest", "--happened", "--answer", '"R1"')
    assert (done.returncode, json.loads(done.stdout)) == (0, ["R1"]), done.stderr
    shown = shop.ok("runs", "show", "latest")
    assert re.search(r"· resolved by \w+: post.registered of register: it happened$", shown, re.MULTILINE)
    assert "reopened    once" in shown


def test_several_questions_are_resolved_one_by_one(post_office: Shell):
    shop = post_office
    shop.run("run", "registers", 'names:=["Ben", "Cleo"]')
    [run] = shop.json("runs", "ls")
    first, *others = run["waiting_for"]["questions"]
    if others:  # else the other letter was cut off as the first one was asked about: it is asked about next
        several = shop.run("runs", "resolve", "latest", "--happened", "--answer", '"R1"')
        assert several.returncode == 2
        assert first["key"] in several.stderr
    done = shop.run("runs", "resolve", "latest", "--key", first["key"], "--happened", "--answer", '"R1"')
    assert done.returncode == 1
    [left] = shop.json("runs", "show", "latest")["run"]["waiting_for"]["questions"]
    assert {first["input"]["to"], left["input"]["to"]} == {"Ben", "Cleo"}
    assert left["key"] != first["key"]
    done = shop.run("runs", "resolve", "latest", "--happened", "--answer", '"R2"')
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(done.stdout)) == ["R1", "R2"]


def test_signal_during_retry_drains(history: Shell):
    process = history.start("run", "slow", "seconds=60")
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.communicate(timeout=PATIENCE)
    resumed = history.start("runs", "watch", "latest", "--resume")
    assert resumed.stdout is not None
    assert resumed.stdout.readline() == "started\n"
    resumed.send_signal(signal.SIGTERM)
    assert resumed.stderr is not None
    assert "Stopping" in resumed.stderr.readline()
    assert interrupt(resumed)[0] == 130
