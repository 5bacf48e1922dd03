"""A run whose journal says what no engine would have written is not gone on with; all others are (I13)."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from dotdo import AsyncDo, Catalogue, service, sleep
from dotdo.engine.engine import Engine
from dotdo.journal import Resolved, encode_data, link
from dotdo.testing import ManualClock
from tests.guarantees.lab import in_loop
from tests.patience import PATIENCE
from tests.stores import LASTING, url_of

own = Catalogue()


@service("dozes", catalogue=own)
async def dozes(seconds: int) -> str:
    await sleep(seconds)
    return "awake"


@pytest.mark.usefixtures("each_store")
@in_loop
async def test_runs_beside_one_that_cannot_be_read_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """Its journal answers a question that nobody has asked."""
    monkeypatch.setenv("DOTDO_LEASE", LASTING)
    clock, path = ManualClock(), tmp_path / "dotdo.db"
    async with AsyncDo(url_of(path), catalogue=own, clock=clock) as client:
        engine = await client.platform()
        assert isinstance(engine, Engine)
        spoilt, beside = [await client.start(dozes, seconds=60) for _ in range(2)]
        async with asyncio.timeout(PATIENCE):
            while engine.live:  # noqa: ASYNC110 - commits tell nobody here
                await asyncio.sleep(0.01)
        head = (await spoilt.journal())[-1]
        data = encode_data(Resolved("some key", "delivery", "happened"))
        entry = link(head.digest, spoilt.id, head.seq + 1, "resolved", "", 0, 0, head.at, data)
        store = engine.store
        rows = msgspec.json.encode([(*msgspec.structs.astuple(entry), 1)]).decode()
        await engine.write(lambda: store._db.batch([(store._sql["append_entries"], {"rows": rows}, 1, "")]))  # type: ignore[attr-defined]
        clock.advance(60)
        assert await beside.result(timeout=PATIENCE) == "awake"
        later = await client.start(dozes, seconds=0)
        assert await later.result(timeout=PATIENCE) == "awake"
    assert f"the journal of {spoilt.id} cannot be read" in caplog.text
