"""`dotdo check`, as it is used before a deployment."""

from tests.cli.commands import Shell

BEFORE = """
from dotdo import action, service, wait_for_event

@action("reserve")
def reserve(item: str) -> str:
    return item

@service("order")
async def order(item: str) -> str:
    await reserve(item)
    await wait_for_event("paid")
    return item
"""


def test_check_tells_what_would_block_with_new_code(shell: Shell):
    shell.write("app.py", BEFORE)
    shell.write("new.py", BEFORE.replace("reserve(item)", "reserve(item + '!')"))
    shell.start("run", "order", "item=tea")
    id = shell.wait_for_run("waiting")
    good = shell.run("check", "app.py", "--against", ".dotdo/dotdo.db")
    assert (good.returncode, good.stdout) == (0, "")
    assert "1 unfinished run would go on with app.py, none would block." in good.stderr
    assert shell.run("check", "--app", "app.py").returncode == 0
    bad = shell.run("check", "new.py")
    assert bad.returncode == 1
    assert f"{id}  order@1  waiting, would block: replay mismatch" in bad.stdout
    assert 'with input {"item":"tea!"}' in bad.stdout
    as_json = shell.run("check", "new.py", "--json")
    assert as_json.returncode == 1
    assert f'"run":"{id}"' in as_json.stdout.replace('": "', '":"')
