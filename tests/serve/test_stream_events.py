"""The events of a stream reach whoever follows it, in order and once."""

from __future__ import annotations

import asyncio
import threading

from paged_stream.serve.stream_events import StreamEvents


async def taken(events, number):
    found = [await anext(events) for _ in range(number)]
    await events.aclose()
    return found


def test_who_comes_later_gets_what_is_remembered():
    async def run():
        events = StreamEvents()
        added = [events.add("delta", text=str(number)) for number in range(5)]
        ids = [event["event_id"] for event in added]
        assert ids == list(range(ids[0], ids[0] + 5))
        assert await taken(events.follow(ids[1]), 3) == added[2:]
        assert await taken(events.follow(ids[0] - 1), 5) == added

    asyncio.run(run())


def test_what_is_forgotten_is_told():
    async def run():
        events = StreamEvents(num_remembered=3)
        added = [events.add("delta", text=str(number)) for number in range(5)]
        missed = {"event_id": added[1]["event_id"], "type": "missed"}
        before = added[0]["event_id"] - 1
        for after in (before, 0, added[-1]["event_id"] + 100):  # which no stream here has had
            assert await taken(events.follow(after), 4) == [missed, *added[2:]]

    asyncio.run(run())


def test_a_slow_reader_holds_up_nobody():
    async def run():
        events = StreamEvents(num_remembered=3)
        slow, quick = events.follow(events.last_id), events.follow(events.last_id)
        seen = []
        for number in range(10):
            added = events.add("delta", text=str(number))
            seen.append((await anext(quick)) == added)
        assert all(seen) and len(seen) == 10
        assert (await anext(slow))["type"] == "missed"
        assert (await anext(slow))["text"] == "7"
        await slow.aclose()
        await quick.aclose()

    asyncio.run(run())


def test_without_an_id_only_what_happens_from_now_on_is_told():
    async def run():
        events = StreamEvents()
        events.add("delta", text="before")
        following = asyncio.ensure_future(taken(events.follow(), 1))
        await asyncio.sleep(0)
        added = events.add("delta", text="now")
        assert await following == [added]

    asyncio.run(run())


def test_evictions_come_from_another_thread_and_are_joined():
    async def run():
        events = StreamEvents()

        def evict(*spans):
            thread = threading.Thread(target=lambda: [events.on_evict(*span) for span in spans])
            thread.start()
            thread.join()

        evict((4, 6), (6, 9))
        last = events.add("delta", text="a")
        [evicted, delta] = await taken(events.follow(last["event_id"] - 2), 2)
        assert (evicted["type"], evicted["start"], evicted["end"]) == ("evicted", 4, 9)
        assert delta == last
        following = asyncio.ensure_future(taken(events.follow(), 1))
        await asyncio.sleep(0)
        evict((9, 10))  # who waits is told without anything else
        [evicted] = await following
        assert (evicted["start"], evicted["end"]) == (9, 10)

    asyncio.run(run())


def test_the_end_is_the_end_for_all():
    async def run():
        events = StreamEvents()
        following = asyncio.ensure_future(anext(events.follow(), None))
        await asyncio.sleep(0)
        before = events.last_id
        last = events.add("ended")
        events.end()
        assert await following == last
        assert [event async for event in events.follow(before)] == [last]
        assert [event async for event in events.follow()] == []

    asyncio.run(run())
