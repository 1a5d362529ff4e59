"""An event loop is called once for all the news that come before it looks."""

from __future__ import annotations

import asyncio
import threading

import pytest

from paged_stream.engine.bell import Bell


class CountingLoop(asyncio.SelectorEventLoop):
    num_calls = 0

    def call_soon_threadsafe(self, *args, **options):
        self.num_calls += 1
        return super().call_soon_threadsafe(*args, **options)


def test_a_loop_is_called_once_for_many_events():
    loop = CountingLoop()

    async def run():
        bell, events = Bell(loop), [asyncio.Event() for _ in range(100)]
        for round_ in (1, 2):
            ringer = threading.Thread(target=lambda: [bell.ring(event) for event in events])
            ringer.start()
            ringer.join()
            assert loop.num_calls == round_
            for event in events:
                await event.wait()
                event.clear()

    loop.run_until_complete(run())
    loop.close()


def test_a_call_that_an_interrupt_took_is_made_again():
    loop = CountingLoop()
    bell, events = Bell(loop), [asyncio.Event() for _ in range(100)]
    for num_calls in (1, 2, 3):  # the loop does not run meanwhile
        for event in events:
            bell.ring(event)
        assert loop.num_calls == num_calls
    loop.close()


def test_no_event_is_lost_when_rings_come_at_any_moment():
    async def run():
        bell, events, count = Bell(asyncio.get_running_loop()), [asyncio.Event()], 1000
        seen = threading.Semaphore(0)

        def ring():
            for _ in range(count):
                bell.ring(events[0])
                seen.acquire()

        ringer = threading.Thread(target=ring)
        ringer.start()
        for _ in range(count):
            await events[0].wait()
            events[0].clear()
            seen.release()
        ringer.join()

    asyncio.run(run())


def test_a_closed_loop_hears_nothing_even_if_it_was_called_before():
    loop = asyncio.new_event_loop()
    bell = Bell(loop)
    bell.ring(asyncio.Event())
    loop.close()
    assert not bell.is_heard
    with pytest.raises(RuntimeError):
        bell.ring(asyncio.Event())
