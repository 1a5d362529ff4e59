"""An append to a stream of a pool that is broken off leaves what is computed."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("ray")

from paged_stream import SamplingParams
from paged_stream.pool.async_ray_llm import AsyncRayLLM
from tests.contract.engines import SETTINGS
from tests.engine.coroutines import held, read
from tests.engine.stream_oracle import text_ids

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
LONG = text_ids(5000)


def test_a_cancelled_append_leaves_what_is_computed(local_ray, folder):
    async def run():
        async with AsyncRayLLM(str(folder), num_replicas=1, **SETTINGS) as pool:
            stream, other = await pool.open_stream(), await pool.open_stream()
            await stream.append([5, 6, 7])
            appending = asyncio.create_task(stream.append(LONG))
            (actor,) = local_ray.actors
            inner = actor._streams[stream._home.history.key].inner
            async with held(actor._engine, when=lambda: inner.position > 3):
                appending.cancel()
                for _ in range(20):
                    await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError) as caught:
                await appending
            position = stream.position
            assert position == (await stream.stats()).num_tokens < 1000
            assert f"the stream is at position {position}" in caught.value.__notes__[0]
            await other.append([5, 6, 7, *LONG[: position - 3]])
            assert await read(stream.generate(GREEDY)) == await read(other.generate(GREEDY))
            await stream.append("abc")
            assert stream.position == position + GREEDY.max_tokens + 3

    asyncio.run(run())


@pytest.mark.parametrize("is_made", ["before the end", "beyond the end"])
def test_a_save_of_what_was_taken_back_is_of_no_use(local_ray, folder, is_made):
    """A pool saves streams while tokens are appended, too. The stream must not be restored from a
    file with tokens that were taken back, however long it has become since."""

    async def run():
        never = {"num_replicas": 1, "save_every_tokens": 1 << 30}  # but for the one below
        async with AsyncRayLLM(str(folder), **never, **SETTINGS) as pool:
            stream, other = await pool.open_stream(), await pool.open_stream()
            await stream.append([5, 6, 7])
            appending = asyncio.create_task(stream.append(LONG))
            (actor,) = local_ray.actors
            inner = actor._streams[stream._home.history.key].inner
            async with held(actor._engine, when=lambda: inner.position > 3):
                saving = asyncio.create_task(stream._home.save_now())
                while actor._engine.thread._calls.empty():
                    await asyncio.sleep(0)
                if is_made == "beyond the end":
                    appending.cancel()
            if is_made == "before the end":
                await saving
                appending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await appending
            await saving
            kept = stream.position - 3
            # A little beyond the end of the file, so that its last tokens would still be seen.
            others = text_ids(5010 - stream.position, seed=1)
            await stream.append(others)
            await stream._home.leave(saves=False)  # as when its replica has died
            await other.append([5, 6, 7, *LONG[:kept], *others])
            assert kept < 4000 and stream.position == other.position
            assert (await stream.visible()).token_ids == (await other.visible()).token_ids
            assert await read(stream.generate(GREEDY)) == await read(other.generate(GREEDY))

    asyncio.run(run())
