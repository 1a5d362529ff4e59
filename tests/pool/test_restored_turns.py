"""A stream that is restored goes on with the keys and values that it had, to the bit."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("ray")

from paged_stream import SamplingParams
from paged_stream.pool.async_ray_llm import AsyncRayLLM
from tests.contract.engines import SETTINGS
from tests.engine.coroutines import read
from tests.engine.stream_oracle import text_ids

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)


@pytest.mark.parametrize("appended", [0, 1, 3])
@pytest.mark.parametrize("edit", ["rewind", "cut", None])
@pytest.mark.parametrize("saves", [False, True])
def test_after_an_edit(local_ray, folder, appended, edit, saves):
    """A turn right behind what was rewound computes the last token again, where older ones are
    gone, and so does whoever repeats the turn from the save that the edit has left."""

    async def run():
        never = {"num_replicas": 1, "save_every_tokens": 1 << 30}
        async with AsyncRayLLM(str(folder), **never, **SETTINGS) as pool:
            streams = [await pool.open_stream(window_size=16) for _ in range(2)]
            for stream in streams:
                await stream.append(text_ids(60))
                await read(stream.generate(GREEDY))
                end = stream.position
                if edit == "rewind":
                    await stream.rewind(end - 8)
                elif edit == "cut":
                    await stream.cut(end - 8, end - 4)
                if appended:
                    await stream.append(text_ids(appended, 3))
                await read(stream.generate(GREEDY))
            lost, other = streams
            if saves:
                await lost._home.save_now()
            await lost._home.leave(saves=False)  # as if its replica had died
            assert await lost.visible() == await other.visible()
            assert await lost.score(text_ids(20, 5)) == await other.score(text_ids(20, 5))
            assert await read(lost.generate(GREEDY)) == await read(other.generate(GREEDY))

    asyncio.run(run())
