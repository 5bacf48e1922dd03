"""Runs the stand-in servers until interrupted: `python -m examples.onboarding.standins --ledger FILE`."""

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from examples.onboarding.standins.apis import serve_apis
from examples.onboarding.standins.mail import serve_mail
from examples.onboarding.standins.world import World

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"


def main() -> None:
    """Parses the command line and serves."""
    parser = argparse.ArgumentParser(prog="standins", description="The outside systems of the onboarding.")
    parser.add_argument("--ledger", type=Path, required=True, help="JSON lines of what arrives are appended here")
    parser.add_argument("--until-stdin-ends", action="store_true", help="end with the process that started this one")
    options = parser.parse_args()
    asyncio.run(serve(options.ledger, options.until_stdin_ends))


async def serve(ledger: Path, until_stdin_ends: bool) -> None:
    """Serves until SIGINT or SIGTERM, or until standard input ends; first prints a JSON line with what finds it."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    if until_stdin_ends:
        loop.add_reader(sys.stdin, lambda: None if os.read(sys.stdin.fileno(), 1024) else over.set())
    world = World(ledger)
    mail, mail_port = await serve_mail(world)
    apis = serve_apis(world)
    ports = {"email": mail_port, **{name: api.server_address[1] for name, api in apis.items()}}
    environment = {
        "DOTDO_EMAIL_URL": f"smtp://127.0.0.1:{mail_port}",
        "DOTDO_EMAIL_SENDER": "Onboarding <welcome@shop.example>",
        "DOTDO_EMAIL_TEMPLATES": str(TEMPLATES),
        "ADMIN_EMAIL": "admin@shop.example",
        **{f"{name.upper()}_URL": f"http://127.0.0.1:{ports[name]}" for name in apis},
        **{f"{name.upper()}_TOKEN": f"{name}-token-for-show" for name in apis},
    }
    print(json.dumps({"ports": ports, "environment": environment}), flush=True)
    await over.wait()
    mail.close()
    for api in apis.values():
        api.shutdown()
        api.server_close()
    world.close()


if __name__ == "__main__":
    main()
