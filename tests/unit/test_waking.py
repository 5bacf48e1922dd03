"""The alarm: what is due is called, in order; what was cancelled is not, and does not stay until its time."""

import asyncio

from dotdo.engine.waking import SWEEP_FROM, Alarm
from dotdo.testing import ManualClock


def test_callbacks_come_in_the_order_of_their_times():
    async def main() -> list[int]:
        clock, called, all_called = ManualClock(), list[int](), asyncio.Event()
        alarm = Alarm(clock, asyncio.get_running_loop())
        for number in (3, 1, 2):
            alarm.at(clock.now() + number * 1000, lambda number=number: called.append(number))
        alarm.at(clock.now() + 4000, all_called.set)
        clock.advance(5)
        await asyncio.wait_for(all_called.wait(), 60)
        alarm.close()
        return called

    assert asyncio.run(main()) == [1, 2, 3]


def test_what_was_cancelled_is_thrown_out_long_before_its_time():
    async def main() -> tuple[int, list[str]]:
        clock, called, all_called = ManualClock(), list[str](), asyncio.Event()
        alarm = Alarm(clock, asyncio.get_running_loop())
        month = clock.now() + 30 * 24 * 3_600_000
        for number in range(10 * SWEEP_FROM):
            alarm.at(month - number, lambda: called.append("cancelled")).cancel()
        held = alarm.held
        kept = [alarm.at(month + number, lambda: called.append("kept")) for number in range(2 * SWEEP_FROM)]
        assert alarm.held >= len(kept)
        alarm.at(month + len(kept), all_called.set)
        clock.advance(31 * 24 * 3_600)
        await asyncio.wait_for(all_called.wait(), 60)
        alarm.close()
        return held, called

    held, called = asyncio.run(main())
    assert held < SWEEP_FROM
    assert called == ["kept"] * 2 * SWEEP_FROM
