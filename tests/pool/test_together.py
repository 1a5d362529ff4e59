"""Many coroutines at once: as many as may run, their results in order, and one end for all."""

from __future__ import annotations

import asyncio

import pytest

from paged_stream.pool.together import together


def test_no_more_run_at_once_than_may():
    running = most = 0

    async def double(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return 2 * number

    assert asyncio.run(together(double, range(10), limit=3)) == [2 * i for i in range(10)]
    assert most == 3
    assert asyncio.run(together(double, [], limit=3)) == []


def test_a_failure_cancels_the_others():
    cancelled = []

    async def wait(number: int) -> None:
        if number == 2:
            raise ValueError("two")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(number)
            raise

    async def run() -> None:
        with pytest.raises(ValueError, match="two"):
            await together(wait, range(4), limit=4)
        await asyncio.sleep(0)

    asyncio.run(run())
    assert cancelled == [0, 1, 3]
