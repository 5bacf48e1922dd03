"""The services that the reference tells of, and the world outside, which fails as the test says."""

from typing import Any

from dotdo import (
    AsyncContext,
    Catalogue,
    EffectCall,
    Fail,
    Failure,
    Retry,
    RetryLater,
    action,
    effect,
    service,
    sleep,
    wait_for_event,
)
from tests.model.reference import BETWEEN_CALLS, BETWEEN_LETTERS, NAP, PATIENCE

catalogue = Catalogue()


class Outside:
    """The world outside: what goes wrong in it now, and what was done, for each trip in order."""

    def __init__(self) -> None:
        self.troubles: set[str] = set()
        self.deeds: dict[str, list[str]] = {}
        self._keys: dict[str, str] = {}

    def do(self, trail: str | None, deed: str, key: str, trouble: str = "") -> None:
        """Somebody does something. trouble: with it nothing is done."""
        if trouble in self.troubles:
            raise RetryLater(trouble) if trouble == "full" else ConnectionError(trouble)
        verb, _, city = deed.partition(" ")
        if key in self._keys:
            assert self._keys[key] == deed, f"{deed} under the key of: {self._keys[key]}"
            verb = f"{verb} again"
        self._keys[key] = deed
        self.deeds.setdefault(trail or "", []).append(f"{verb} {city}".strip())


def _attempts(delays: tuple[float, ...]) -> Retry:
    return Retry(attempts=len(delays) + 1, delay=delays[0], factor=2, jitter=False)


@effect("letter", dedup="key", retry=_attempts(BETWEEN_LETTERS), catalogue=catalogue)
async def letter(call: EffectCall, city: str) -> None:
    call.resource(Outside).do(call.trail, f"letter {city}", call.key, "full")


async def refund(call: EffectCall, input: dict[str, Any]) -> None:
    call.resource(Outside).do(call.trail, f"refund {input['city']}", call.key)


@effect("charge", undo=refund, catalogue=catalogue)
async def charge(call: EffectCall, city: str) -> str:
    outside = call.resource(Outside)
    if "declined" in outside.troubles:
        raise Fail("declined")
    outside.do(call.trail, f"charge {city}", call.key)
    if "lost" in outside.troubles:
        raise ConnectionError("the line went dead")
    return f"receipt {city}"


@action("unbook", retry=1, catalogue=catalogue)
async def unbook(ctx: AsyncContext, city: str) -> None:
    ctx.resource(Outside).do(ctx.trail, f"unbook {city}", ctx.idempotency_key, "stuck")


@action("unpay", retry=1, catalogue=catalogue)
async def unpay(ctx: AsyncContext, city: str) -> None:
    ctx.resource(Outside).do(ctx.trail, f"unpay {city}", ctx.idempotency_key, "stuck")


@action("unpack", retry=1, catalogue=catalogue)
async def unpack(ctx: AsyncContext, city: str) -> None:
    ctx.resource(Outside).do(ctx.trail, f"unpack {city}", ctx.idempotency_key, "stuck")


@action("book", retry=_attempts(BETWEEN_CALLS), undo=unbook, catalogue=catalogue)
async def book(ctx: AsyncContext, city: str) -> str:
    ctx.resource(Outside).do(ctx.trail, f"book {city}", ctx.idempotency_key, "no line")
    ctx.stage(letter, city=city)
    return city


@action("pay", retry=1, undo=unpay, catalogue=catalogue)
async def pay(ctx: AsyncContext, city: str) -> str:
    assert await ctx.request(charge, city=city) == f"receipt {city}"
    return city


@action("pack", undo=unpack, catalogue=catalogue)
async def pack(ctx: AsyncContext, city: str) -> str:
    ctx.resource(Outside).do(ctx.trail, f"pack {city}", ctx.idempotency_key)
    return city


@action("tell", catalogue=catalogue)
async def tell(ctx: AsyncContext, failure: Failure) -> None:
    ctx.resource(Outside).do(ctx.trail, "tell", ctx.idempotency_key)


@service("packing", catalogue=catalogue)
async def packing(city: str) -> None:
    await pack(city=city)
    await sleep(NAP)


@service("trip", on_failure=[tell], catalogue=catalogue)
async def trip(city: str) -> str:
    await book(city=city)
    try:
        word = await wait_for_event("word", timeout=PATIENCE)
    except TimeoutError:
        word = "late"
    if word == "no":
        raise Fail("no trip")
    await pay(city=city)
    await packing(city=city)
    return f"{city}: {word}, {await wait_for_event('word')}"
