"""What is around a killed engine: resources are closed and opened again, and code of the test's own is called again."""

from typing import Any, Self

import pytest

from dotdo import AsyncContext, AsyncDo, Catalogue, action, effect
from dotdo.testing import TestDo

catalogue = Catalogue()


class Pool:
    """Cannot be opened while it is open, such as a Mailer."""

    is_open = False

    async def __aenter__(self) -> Self:
        assert not self.is_open
        self.is_open = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self.is_open = False


@effect("around.letter", on_unknown="resend", catalogue=catalogue)
def letter(text: str) -> None: ...


@action("around.write", catalogue=catalogue)
async def write(ctx: AsyncContext, text: str) -> bool:
    ctx.stage(letter, text=text)
    return ctx.resource(Pool).is_open


@pytest.fixture
def pool() -> Pool:
    return Pool()


@pytest.fixture
def do_options(pool: Pool) -> dict[str, Any]:
    return {"catalogue": catalogue, "resources": [pool]}


@pytest.mark.crash_everywhere
def test_resources_are_closed_and_opened_again(do: TestDo, pool: Pool):
    assert do.run(write, text="a") is True
    assert pool.is_open


@pytest.mark.crash_everywhere
def test_own_code_is_called_again_after_a_kill(do: TestDo):
    calls: list[str] = []

    async def handle(client: AsyncDo, name: str, *, times: int) -> bool:
        calls.append(name)
        return await client.run(write.with_(key=name), text=name * times)

    assert do.call(handle, "ada", times=2) is True
    assert [one.input["text"] for one in do.sent(letter)][-1] == "adaada"
    assert calls == ["ada"] * (1 + do.was_killed)
