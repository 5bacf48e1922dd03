"""`dotdo run --preview`: the page, JSON, exit codes, and that it needs no store."""

from tests.cli.commands import Shell


def test_page_shows_steps_and_effects(shop: Shell):
    done = shop.run("run", "order", "item=tea", "--preview")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines.pop(3).startswith('   +0 ms  tell  -> "preview_')  # the key that the handler returns
    assert lines == [
        "Preview: service order@1 would complete. Nothing was changed, nothing was sent.",
        "",
        '   +0 ms  reserve  -> "reserved tea"',
        '                  send  post.letter@1  {"to": "tea"}',
        "   +0 ms  charge  -> 1",
        "",
        'Result  "tea"',
    ]
    assert not (shop.folder / ".dotdo").exists()


def test_run_that_would_fail_exits_with_1_and_shows_what_is_undone(shop: Shell):
    done = shop.run("run", "order", "item=tea", "cents=-5", "--preview")
    assert done.returncode == 1
    assert "service order@1 would fail" in done.stdout
    assert "charge  failed: ValueError: cents must be positive" in done.stdout
    assert "undo:reserve\n" in done.stdout
    assert "would be tried again (up to 3 attempts)" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_preview_that_cannot_go_on_exits_with_1_and_says_why(shop: Shell):
    done = shop.run("run", "approval", "what=tea", "--preview")
    assert done.returncode == 1
    assert "could not be previewed to its end" in done.stdout
    assert "waits for the event 'approved'" in done.stdout


def test_json_is_the_whole_preview(shop: Shell):
    found = shop.json("run", "order", "item=tea", "--preview")
    assert (found["status"], found["result"], found["kind"], found["version"]) == ("completed", "tea", "service", 1)
    assert [step["name"] for step in found["steps"]] == ["reserve", "tell", "charge"]
    assert [effect["input"] for effect in found["effects"]] == [{"to": "tea"}]
    assert (found["statements"], found["notes"], found["error"]) == ([], [], None)


def test_wait_is_the_cap_of_the_preview(shop: Shell):
    done = shop.run("run", "slow", "seconds=60", "--preview", "--wait", "0.2")
    assert (done.returncode, done.stderr) == (1, "")
    assert "it may take 0.2 s in all" in done.stdout


def test_wrong_input_is_refused_as_for_a_run(shop: Shell):
    done = shop.run("run", "charge", "cents=many", "--preview")
    assert (done.returncode, done.stdout) == (2, "")
    assert "$.cents" in done.stderr


def test_page_fits_a_terminal_and_has_colours(shop: Shell):
    shown = shop.on_terminal("run", "order", "item=tea", "--preview", columns=60)
    assert "\x1b[" in shown
    assert "would complete" in shown
