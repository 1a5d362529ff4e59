"""A pool ends when it is closed or collected, and says so afterwards."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
from typing import Any

import pytest

from paged_stream.pool.async_ray_llm import AsyncRayLLM
from paged_stream.pool.errors import PoolError
from paged_stream.pool.ray_llm import RayLLM

pytestmark = pytest.mark.ray

SETTINGS: dict[str, Any] = {"window_size": 24, "kv_cache_memory_bytes": 4 << 20}


def make_pool(folder) -> RayLLM:
    return RayLLM(str(folder), **SETTINGS)


def test_a_closed_pool_says_so(ray, folder):
    pool = make_pool(folder)
    assert repr(pool) == f"<RayLLM of '{folder}': 1 replicas, open>"
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(pool)
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            pool.stats()
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
        finally:
            pool.close()
            os._exit(0)
    os.wait()
    expected = f"RuntimeError: this pool was made in another process (pid {os.getpid()}); "
    assert os.read(read, 1000).decode() == expected + "make one after the fork"
    with pool, pool.open_stream() as stream:
        assert len(pool.score([5, 6])) == 2
    for _ in range(2):
        pool.close()
    uses = [pool.stats, lambda: pool.generate("hi"), pool.open_stream, stream.stats, pool.__enter__]
    for use in uses:
        with pytest.raises(PoolError, match="the pool is closed"):
            use()
    stream.close()
    assert repr(pool) == f"<RayLLM of '{folder}': 1 replicas, closed>"


def test_a_pool_of_coroutines_that_is_collected_ends_its_replicas(ray, folder):
    """But not while there is a stream of it."""

    async def run():
        pool = AsyncRayLLM(str(folder), **SETTINGS)
        await pool.start()
        [replica] = pool._placement.replicas.replicas
        stream = await pool.open_stream()
        del pool
        gc.collect()
        await stream.append("abc")
        with pytest.warns(ResourceWarning, match="unclosed") as warned:
            del stream
            gc.collect()
        names = {str(each.message).split(" of ")[0] for each in warned}
        assert names == {"unclosed AsyncRayLLM", "unclosed stream stream-0"}
        while not replica.is_gone:
            await asyncio.sleep(0)

    asyncio.run(run())


def test_a_pool_that_is_collected_ends_its_replicas(ray, folder):
    gc.collect()
    pool = make_pool(folder)
    thread = pool._thread.thread
    process = pool.inner._placement.replicas.replicas[0].process
    with pytest.warns(ResourceWarning, match=f"unclosed RayLLM of '{folder}'"):
        del pool
        gc.collect()
    thread.join()
    assert not thread.is_alive()
    with pytest.raises(ray.exceptions.RayError):
        ray.get(process.stats.remote())
