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
