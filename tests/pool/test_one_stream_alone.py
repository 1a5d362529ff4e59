"""What goes wrong with one stream of a pool costs that stream alone, and says which it is."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("ray")

from paged_stream import SamplingParams
from paged_stream.pool.async_ray_llm import AsyncRayLLM
from paged_stream.pool.errors import PoolError
from paged_stream.pool.ray_llm import RayLLM

SETTINGS = {
    "num_sink_tokens": 4,
    "window_size": 24,
    "block_size": 8,
    "dtype": "float32",
    "kv_cache_memory_bytes": 4 << 20,
    "num_threads": 1,
}
GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
PROMPT = list(range(2, 62))


async def read(deltas):
    return [token_id async for delta in deltas for token_id in delta.delta_token_ids]


def pool_of(folder):
    return AsyncRayLLM(str(folder), num_replicas=2, save_every_tokens=16, **SETTINGS)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_what_on_evict_raises_is_logged(local_ray, folder, caplog, error):
    def on_evict(start, end):
        raise error

    async def run():
        async with pool_of(folder) as pool:
            stream, other = await pool.open_stream(on_evict=on_evict), await pool.open_stream()
            turns = []
            for each in (stream, other):
                await each.append(PROMPT)
                turns.append(await read(each.generate(GREEDY)))
            assert turns[0] == turns[1]

    asyncio.run(run())
    assert "on_evict failed" in caplog.text


def test_on_evict_cannot_wait_for_its_own_pool(local_ray, folder, caplog):
    with RayLLM(str(folder), **SETTINGS) as pool:
        other = pool.open_stream()
        stream = pool.open_stream(on_evict=lambda start, end: other.append("a"))
        stream.append(PROMPT)
        assert stream.position == 60 and other.position == 0
    assert "RuntimeError: on_evict is called in the pool's own thread" in caplog.text


@pytest.mark.parametrize("is_deleted", [False, True])
def test_a_bad_saved_file_is_named(local_ray, folder, is_deleted):
    async def run():
        async with pool_of(folder) as pool:
            stream, other = [await pool.open_stream() for _ in range(2)]
            for each in (stream, other):
                await each.append(PROMPT)
                await each._home.leave()
            path = stream._home.history.journal.path
            if is_deleted:
                path.unlink()
            else:
                path.write_bytes(path.read_bytes()[:1000])
            for _ in range(2):
                with pytest.raises(PoolError, match=rf"stream-0 cannot be restored: .*{path}"):
                    await stream.append(PROMPT)
            assert len(await read(other.generate(GREEDY))) == 6
            await stream.close()
            assert (await pool.stats()).num_lost_replicas == 0
            assert all(len(actor._streams) <= 1 for actor in local_ray.actors)

    asyncio.run(run())


def test_a_full_disk_costs_no_more_than_the_save(local_ray, folder, monkeypatch, caplog):
    from paged_stream.pool import replica_process

    def fail(path, saved):
        raise OSError(28, "No space left on device", str(path))

    async def run():
        async with pool_of(folder) as pool, await pool.open_stream() as stream:
            await stream.append(PROMPT)
            saved = await stream.save_bytes()
            async with await pool.load_stream(saved) as other:
                expected = await read(other.generate(GREEDY))
            with monkeypatch.context() as full:
                full.setattr(replica_process, "write_stream_file", fail)
                for action in (
                    lambda: stream.rewind(50),
                    lambda: stream.cut(50, 55),
                    lambda: stream.fork(),
                    lambda: stream.save("anywhere"),
                    lambda: pool.load_stream(saved),
                ):
                    with pytest.raises(OSError, match="No space left on device"):
                        await action()
                assert stream.position == 60
                await stream.stats()  # brings it to a replica again
                await stream._home.leave()  # as before that ends
                assert await read(stream.generate(GREEDY)) == expected
            assert sum(len(actor._streams) for actor in local_ray.actors) == 1
            assert (await pool.stats()).num_lost_replicas == 0

    asyncio.run(run())
    assert "stream-0 cannot be saved: [Errno 28] No space left on device" in caplog.text


def test_a_save_during_a_failed_edit_is_no_part_of_the_stream(local_ray, folder, monkeypatch):
    from paged_stream.pool.replica_process import ReplicaProcess

    async def run():
        async with pool_of(folder) as pool, await pool.open_stream() as stream:
            await stream.append(PROMPT[:30])

            async def cut_and_fail(self, name, path):
                await stream._home.save_now()  # of the stream as it is now, without the cut
                raise OSError("the disk is full")

            with monkeypatch.context() as full:
                full.setattr(ReplicaProcess, "_save_edited", cut_and_fail)
                with pytest.raises(OSError, match="the disk is full"):
                    await stream.cut(10, 20)
            after = await read(stream.generate(GREEDY))
            async with await pool.open_stream() as other:
                await other.append(PROMPT[:30])
                assert after == await read(other.generate(GREEDY))

    asyncio.run(run())
