"""`dotdo db`, and labels, as their user meets them."""

from tests.cli.commands import Shell


def test_labels_are_given_and_asked_for(shop: Shell):
    shop.ok("run", "greet@1", "name=Ada", "--label", "team=rail", "--label", "tier=gold")
    shop.ok("run", "greet@1", "name=Ben", "--label", "team=rail")
    found = shop.json("runs", "ls", "--label", "team=rail", "--label", "tier=gold")
    assert [run["labels"] for run in found] == [{"team": "rail", "tier": "gold"}]
    assert len(shop.json("runs", "ls", "--label", "team=rail")) == 2
    wrong = shop.run("runs", "ls", "--label", "rail")
    assert wrong.returncode == 2
    assert "--label rail: write it as name=value." in wrong.stderr


def test_check_says_what_is_there(shop: Shell):
    missing = shop.run("db", "check")
    assert missing.returncode == 1
    assert "There is no store" in missing.stderr
    shop.ok("run", "greet@1", "name=Ada")
    assert "runs    1 completed" in shop.ok("db", "check")
    found = shop.json("db", "check")
    assert (found["schema"], found["problems"]) == (found["newest"], [])
    same = shop.run("db", "migrate")
    assert "already" in same.stderr
    with open(shop.folder / ".dotdo/dotdo.db", "r+b") as file:
        file.seek(3 * 4096)
        file.write(b"\xff" * 4096)
    damaged = shop.run("db", "check")
    assert damaged.returncode == 1


def test_backup_beside_a_live_engine_and_restore(shop: Shell):
    shop.start("run", "approval", "what=leave")
    id = shop.wait_for_run("waiting")
    made = shop.run("db", "backup", "copy.db")
    assert made.returncode == 0, made.stderr
    assert "1 run, verified" in made.stderr
    assert "keep a copy" in made.stderr
    again = shop.run("db", "backup", "copy.db")
    assert (again.returncode, "exists already" in again.stderr) == (1, True)
    refused = shop.run("db", "restore", "copy.db")
    assert (refused.returncode, "An engine runs on the store" in refused.stderr) == (1, True)
    shop.close()
    done = shop.run("db", "restore", "copy.db")
    assert done.returncode == 0, done.stderr
    assert "1 unfinished run is blocked" in done.stderr
    [run] = shop.json("runs", "ls", "--status", "blocked")
    assert run["id"] == id
    assert "restored from a backup" in shop.ok("runs", "show", id)
    assert shop.json("audit", "verify")["sound"]


def test_erased_run_says_so_and_verifies(shop: Shell):
    shop.ok("run", "greet@1", "name=Canary")
    [run] = shop.json("runs", "ls")
    wrong = shop.run("runs", "erase", "nothing")
    assert (wrong.returncode, "There is no run 'nothing'" in wrong.stderr) == (2, True)
    done = shop.run("runs", "erase", "latest")
    assert (done.returncode, "The data of 1 run was erased." in done.stderr) == (0, True)
    shown = shop.ok("runs", "show", run["id"])
    assert "erased      its data was erased on " in shown
    assert "(erased)" in shown
    assert "Canary" not in shown
    assert "input" not in shown
    found = shop.json("runs", "show", run["id"])
    assert found["run"]["erased_at"] is not None
    assert [entry["data"] for entry in found["journal"][:-1]] == [None] * (len(found["journal"]) - 1)
    assert shop.json("runs", "ls")[0]["status"] == "completed"
    shop.ok("runs", "watch", run["id"], "--json")
    refused = shop.run("runs", "undo", run["id"])
    assert (refused.returncode, "there is nothing left to undo it from" in refused.stderr) == (2, True)
    assert shop.json("audit", "verify")["sound"]
    again = shop.run("runs", "erase", "latest")
    assert "It was erased before" in again.stderr


def test_prune_deletes_old_runs(shop: Shell):
    shop.ok("run", "greet@1", "name=Ada")
    wrong = shop.run("db", "prune", "--older-than", "soon")
    assert (wrong.returncode, "write it like 30d" in wrong.stderr) == (2, True)
    for time in ("1h", "90m", "1.5min"):
        kept = shop.run("db", "prune", "--older-than", time)
        assert "0 runs were deleted" in kept.stderr
    gone = shop.run("db", "prune", "--older-than", "0s", "--status", "completed")
    assert "1 run was deleted" in gone.stderr
    assert shop.json("runs", "ls") == []
    assert shop.json("audit", "verify")["sound"]
