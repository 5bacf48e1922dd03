"""A first application: an effect, an action that stages it, and a service that composes the action.

dotdo run hello name=Ada
dotdo run greet-everybody names:='["Ada", "Ben"]'
"""

import asyncio
from pathlib import Path
from string import Template

from dotdo import Context, EffectCall, action, effect, service

HERE = Path(__file__).parent
LETTER = Template((HERE / "templates" / "letter.txt").read_text(encoding="utf-8"))


@effect("letter.send", dedup="key")
def send_letter(call: EffectCall, text: str) -> None:
    """Puts a letter into the folder outbox. The key names the file, so that a second try is no second letter."""
    outbox = HERE / "outbox"
    outbox.mkdir(exist_ok=True)
    (outbox / f"{call.key}.txt").write_text(text, encoding="utf-8")


@action("hello")
def hello(ctx: Context, name: str) -> str:
    """Greets somebody, and sends a letter: staged, so it leaves once this has succeeded, and then for certain."""
    ctx.stage(send_letter, text=LETTER.substitute(name=name))
    return f"Hello, {name}!"


@service("greet-everybody")
async def greet_everybody(names: list[str], pause: float = 1.0) -> list[str]:
    """Greets one after the other; kill it in the middle, and it goes on where it was."""
    greetings: list[str] = []
    for name in names:
        greetings.append(await hello(name=name))
        await asyncio.sleep(pause)  # durable: costs nothing, survives restarts
    return greetings
