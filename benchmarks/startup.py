"""Cold start: from starting the interpreter to the first completed onboarding, on a store that does not exist yet.

The program is what a user would write; the time is taken by the process that started it, when the result arrives on
its standard output. With SQLAlchemy, the first step writes a row through `ctx.sql`. Compiled modules are there, as
after any first start. `import dotdo` is measured inside an interpreter that has just started.
"""

import subprocess
import sys
import time

from benchmarks.figures import Figure, at_most, median
from benchmarks.processes import ROOT, environment, scratch
from benchmarks.scale import Scale

PLAIN = """
import asyncio, sys
from dotdo import Do, action, service

@action("create-user")
async def create_user(email: str) -> dict[str, str]:
    return {"user_id": "user-1", "email": email}
"""
WITH_SQL = """
import asyncio, sys
from dotdo import Context, Do, action, service
from sqlalchemy import text

@action("create-user")
def create_user(ctx: Context, email: str) -> dict[str, str]:
    ctx.sql.execute(text("create table users (email text)"))
    ctx.sql.execute(text("insert into users values (:email)"), {"email": email})
    return {"user_id": "user-1", "email": email}
"""
REST = """
@action("follow-up")
async def follow_up(user_id: str, what: str) -> str:
    return what

@service("onboarding")
async def onboarding(email: str) -> list[str]:
    user = await create_user(email=email)
    return await asyncio.gather(*(follow_up(user_id=user["user_id"], what=what) for what in ("bill", "mail", "sell")))

with Do("sqlite:///" + sys.argv[1] + "/dotdo.db", **OPTIONS) as client:
    client.run(onboarding, email="ada@example.com")
    print("done", flush=True)
"""
PROGRAMS = {
    "plain": PLAIN + REST.replace("**OPTIONS", ""),
    "sql": WITH_SQL + REST.replace("**OPTIONS", 'sql="sqlite:///" + sys.argv[1] + "/app.db"'),
}
IMPORT = "import time; before = time.perf_counter(); import dotdo; print(time.perf_counter() - before)"


def first_run(program: str) -> float:
    """Seconds from the start of a process to its first result."""
    with scratch() as folder:
        before = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(folder)],
            env=environment(),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - before
        process.communicate()
        if line != "done\n" or process.returncode != 0:
            raise RuntimeError("The program of the cold start failed; what it says is above.")
    return seconds


def import_seconds() -> float:
    """Seconds that `import dotdo` takes."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], env=environment(), cwd=ROOT, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def figures(scale: Scale) -> list[Figure]:
    """Seconds and milliseconds; the first of each is left out, as it may compile modules."""
    times = scale.repetitions + 4
    plain, sql = ([first_run(program) for _ in range(times)][1:] for program in PROGRAMS.values())
    imports = [import_seconds() * 1000 for _ in range(times)][1:]
    return [
        median("cold start to the first completed run", plain, "s", at_most(0.30)),
        median("the same with SQLAlchemy and ctx.sql", sql, "s", at_most(0.50)),
        median("import dotdo", imports, "ms", at_most(100)),
    ]
