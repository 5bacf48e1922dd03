"""Shows the onboarding at work, with a real mail server, SQL database and HTTP APIs on this machine: `make demo`.

Six people sign up. It goes well, is retried, is undone, is killed and resumes, is sent twice, and is composed by a web
handler. Then what arrived is compared with what should have; the exit code is 1 if anything is off.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from dotdo import ActionFailed, AsyncDo
from examples.onboarding.account import Account, Person
from examples.onboarding.app import customer_onboarding, open_client
from examples.onboarding.signup import handle_signup
from examples.onboarding.standins import StandIns
from examples.onboarding.users import create_tables

ADA = Person("Ada", "all went well")
BEN = Person("Ben", "the mail server said 451 twice", mail_tries=3)
CLEO = Person("Cleo", "billing refused: undone", rows=0, customers=0, mails=0, mail_tries=0, slack=0)
DAN = Person("Dan", "the process was killed, and resumed")
EVA = Person("Eva", "signed up three times with one key")
FAY = Person("Fay", "by the sign-up handler", customers=0, slack=0, contacts=1)
PATIENCE = 20.0


class Demo:
    """The scenes, in order. Each says what it does, and notes what must be true afterwards."""

    def __init__(self, folder: Path, world: StandIns, console: Console) -> None:
        self.folder, self.world, self.console = folder, world, console
        self.account = Account()
        self.undone = ""  # the run to look at

    def title(self, text: str) -> None:
        """Begins a scene."""
        self.console.print(f"\n{text}", style="bold", markup=False, highlight=False)

    def say(self, text: str) -> None:
        """Tells what happens, in lines of words where somebody looks."""
        if self.console.is_terminal:
            self.console.print(Padding(Text(text), (0, 0, 0, 3)), highlight=False)
        else:
            self.show(text)

    def show(self, text: str) -> None:
        """Prints a line that must stay one, such as a command."""
        self.console.print(f"   {text}", markup=False, highlight=False, soft_wrap=True)

    async def play(self) -> None:
        """All scenes. The engine runs in this process, but for Dan's."""
        self.title("Six people sign up")
        self.say("Mail server, SQL database, billing, CRM and Slack are real servers on this machine; watch them fail.")
        async with open_client(self.folder) as client:
            await self.goes_well(client)
            await self.is_retried(client)
            await self.is_undone(client)
        self.is_killed()
        async with open_client(self.folder) as client:
            await self.is_sent_twice(client)
            await self.is_composed_by_a_handler(client)

    async def goes_well(self, client: AsyncDo) -> None:
        """A clean sign-up through the service."""
        self.title("1  Ada signs up")
        started = time.perf_counter()
        handle = await client.start(customer_onboarding, user_name=ADA.name, user_email=ADA.email)
        result = await handle.result()
        self.say(f"{handle.id} completed in {(time.perf_counter() - started) * 1000:.0f} ms: {result}")
        journal = await handle.journal()
        done = [str(entry.step).partition(":")[0] for entry in journal if entry.kind in ("completed", "committed")]
        self.say(f"Four steps are in its journal: {', '.join(done)}.")
        self.account.check(len(done) == 4, f"Ada's journal has four steps: {done}")

    async def is_retried(self, client: AsyncDo) -> None:
        """A provider fails twice: only the delivery is repeated."""
        self.title("2  Ben signs up while the mail server is busy")
        self.world.tell("email", fail=2, how="4xx")
        self.say("The mail server will answer 451 twice.")
        handle = await client.start(customer_onboarding, user_name=BEN.name, user_email=BEN.email)
        await handle.result()
        kinds = [entry.kind for entry in await handle.journal() if str(entry.step).startswith("send-welcome-email")]
        self.say(f"{handle.id} completed. Its e-mail step: {', '.join(kinds)}.")
        self.say("The handler ran once; what was repeated is the delivery, under one Message-ID.")
        ids = {arrival.key for arrival in self.world.ledger("email", BEN.email)}
        self.account.check(kinds.count("committed") == 1, f"Ben's e-mail step committed once: {kinds}")
        self.account.check(kinds.count("delivery_failed") == 2, f"Ben's e-mail was refused twice: {kinds}")
        self.account.check(len(ids) == 1, f"Ben's mail had one Message-ID: {ids}")

    async def is_undone(self, client: AsyncDo) -> None:
        """A step fails for good: what was done before is undone, the admin is told."""
        self.title("3  Cleo signs up, and billing refuses her")
        self.world.tell("billing", fail=1, how="4xx")
        handle = await client.start(customer_onboarding, user_name=CLEO.name, user_email=CLEO.email)
        self.undone = handle.id
        try:
            await handle.result()
        except ActionFailed as error:
            self.say(f"{handle.id} failed: {textwrap.shorten(error.message, 200)}")
            self.say(f"Undone: {error.undo}. Her row is gone again; e-mail and Slack were never asked.")
            self.account.check(error.action == "setup-billing-account", f"The error names the step: {error.action}")
            self.account.check(error.undo == "all", f"Cleo's run is undone: {error.undo}")
        else:
            self.account.check(False, "Cleo's onboarding fails, but it completed")
        alerts = self.world.done("email", os.environ["ADMIN_EMAIL"])
        self.account.check(len(alerts) == 1, f"The admin was told once: {len(alerts)} mails")
        for alert in alerts:
            self.say(f"The admin got a mail: {alert['subject']}.")

    def is_killed(self) -> None:
        """SIGKILL while billing has done its part and the answer is on its way."""
        self.title("4  Dan signs up, and the process is killed")
        self.world.tell("billing", fail=1, how="timeout")
        with self.process_for(DAN) as first:
            self.wait_for_arrival("billing", DAN.email)
            first.kill()
        self.say(f"Process {first.pid} got SIGKILL after billing had created the customer, before its answer arrived.")
        with self.process_for(DAN) as second:
            output, _ = second.communicate(timeout=PATIENCE)
        self.account.check(second.returncode == 0, f"Dan's second process ends well: exit code {second.returncode}")
        self.say(f"Process {second.pid} resumed it: {output.strip()}")
        arrivals = self.world.ledger("billing", DAN.email)
        self.say(f"Billing was asked {len(arrivals)} times under one key, and gave its first answer again.")
        self.account.check(len(arrivals) == 2, f"Billing was asked twice for Dan: {len(arrivals)}")
        self.account.check(len({one.key for one in arrivals}) == 1, "Both times under the same key")

    async def is_sent_twice(self, client: AsyncDo) -> None:
        """The same request, at once and again later: one run."""
        self.title("5  Eva's browser sends the sign-up three times")
        once = customer_onboarding.with_(key="signup:eva")
        call = {"user_name": EVA.name, "user_email": EVA.email}
        first, second = await asyncio.gather(client.start(once, **call), client.start(once, **call))
        results = [await first.result(), await second.result()]
        third = await client.start(once, **call)
        results.append(await third.result())
        ids = {first.id, second.id, third.id}
        self.say(f"Key signup:eva, run {first.id}: started once, answered three times, with the same result.")
        self.account.check(len(ids) == 1, f"Eva has one run: {ids}")
        self.account.check(all(result == results[0] for result in results), f"Eva's results are equal: {results}")

    async def is_composed_by_a_handler(self, client: AsyncDo) -> None:
        """The caller composes: actions invoked by name, tied together by a trail."""
        self.title("6  Fay signs up through the web application's own handler")
        self.world.tell("crm", fail=1, how="429")
        self.say(
            "It invokes actions by name: the user first, then e-mail and CRM in parallel. The CRM is busy at first."
        )
        status, body = await handle_signup(client, {"request_id": "fay-1", "name": FAY.name, "email": FAY.email})
        self.say(f"The handler answered {status}: {body}")
        runs = await client.runs.list(trail="signup:fay-1")
        self.say(f"Its trail signup:fay-1 holds {len(runs)} runs: {', '.join(sorted(run.name for run in runs))}.")
        self.account.check(status == 201, f"Fay's sign-up is answered with 201: {status}")
        self.account.check(len(runs) == 3, f"Fay's trail holds three runs: {len(runs)}")

    @contextmanager
    def process_for(self, person: Person) -> "Iterator[subprocess.Popen[str]]":
        """Another process that onboards a person, under the key of that person; it does not outlive the block."""
        command = [sys.executable, "-m", "examples.onboarding.onboard", self.folder, f"signup:{person.name}"]
        process = subprocess.Popen([*command, person.name, person.email], stdout=subprocess.PIPE, text=True)
        with process:
            try:
                yield process
            finally:
                process.kill()

    def wait_for_arrival(self, server: str, match: str) -> None:
        """Returns when a server has heard of somebody. Raises TimeoutError."""
        deadline = time.monotonic() + PATIENCE
        while not self.world.ledger(server, match):
            if time.monotonic() > deadline:
                raise TimeoutError(f"Nothing with {match} arrived at {server} within {PATIENCE:g} s.")
            time.sleep(0.01)

    def settle(self) -> int:
        """Prints the account, and where to look next; returns the exit code."""
        self.title("What arrived, by the servers' own ledger and the users' table")
        self.account.settle(self.console, [ADA, BEN, CLEO, DAN, EVA, FAY], self.world, self.folder)
        off = self.account.off
        for sentence in off:
            self.say(f"OFF: {sentence}")
        if not off:
            self.say(f"All {len(self.account.checks)} checks hold: nothing is missing, nothing is there twice.")
        self.title("Look around")
        command = Path(sys.executable).parent / "dotdo"
        self.show(f"cd {self.folder}  # the runs, the users' database, the servers' ledger")
        self.show(f"{command} runs ls")
        self.show(f"{command} runs show {self.undone}  # how Cleo's failed, and was undone")
        return 1 if off else 0


def main() -> int:
    """Plays all scenes in a new temporary folder, which is kept."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    folder = Path(tempfile.mkdtemp(prefix="dotdo-demo-"))
    create_tables(folder)
    with StandIns(folder) as world:
        os.environ.update(world.environment)
        demo = Demo(folder, world, console)
        asyncio.run(demo.play())
        return demo.settle()


if __name__ == "__main__":
    sys.exit(main())
