"""A pool ends when it is closed or collected, and says so afterwards."""

from __future__ import annotations

import gc
import os
import pickle

import pytest

from paged_stream.pool.ray_llm import PoolError, RayLLM

pytestmark = pytest.mark.ray


def make_pool(folder) -> RayLLM:
    return RayLLM(str(folder), window_size=24, kv_cache_memory_bytes=4 << 20)


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
        with pytest.raises(PoolError, match="the pool was shut down"):
            use()
    stream.close()
    assert repr(pool) == f"<RayLLM of '{folder}': 1 replicas, closed>"


def test_a_pool_that_is_collected_ends_its_replicas(ray, folder):
    gc.collect()
    pool = make_pool(folder)
    thread, actor = pool._thread, pool.pool._replicas.members[0].actor
    with pytest.warns(ResourceWarning, match=f"unclosed RayLLM of '{folder}'"):
        del pool
        gc.collect()
    thread.join()
    assert not thread.is_alive()
    with pytest.raises(ray.exceptions.RayError):
        ray.get(actor.stats.remote())
