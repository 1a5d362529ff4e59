"""Replicas of a pool are killed, replaced and taken away while streams talk."""

from __future__ import annotations

import asyncio
import os
import signal
import threading

import pytest

from benchmarks import bench_pool
from benchmarks.bench_stream import tiny_model
from paged_stream.pool.async_ray_llm import AsyncRayLLM
from paged_stream.pool.errors import PoolError
from paged_stream.pool.ray_llm import RayLLM
from paged_stream.scheduler.sampling_params import SamplingParams

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model(folder)
    return str(folder)


def test_every_stream_goes_on_when_a_replica_is_killed(ray, model):
    """Turns are at any place then: before, in their midst, and behind."""
    counts = asyncio.run(bench_pool.measure(model, 16, 6, 40))
    assert counts["streams_on_the_killed_replica"] == 8
    assert counts["streams_that_went_on"] == 16
    assert counts["streams_with_a_wrong_answer"] == 0
    assert counts["replicas_lost"] == 1
    # Streams that had their last turn before are not brought back.
    assert 1 <= counts["streams_restored"] <= 8
    most = 40 + 12 + 8 + 64  # since the last save: what is due, a turn, and what it was late
    assert counts["tokens_replayed"] <= most * counts["streams_restored"]


def test_a_replica_that_does_not_answer_is_replaced(ray, model):
    settings = bench_pool.SETTINGS
    with RayLLM(model, num_replicas=2, heartbeat_seconds=10.0, **settings) as pool:
        with pool.open_stream() as stream:
            stream.append(bench_pool.turn_of(0, 0))
            number = stream.inner.replica
            [pid] = [each.pid for each in pool.stats().replicas if each.number == number]
            os.kill(pid, signal.SIGSTOP)
            answer = [t for d in stream.generate(bench_pool.PARAMS) for t in d.delta_token_ids]
            assert stream.inner.replica != number
        assert pool.inner._placement.replicas.num_lost >= 1
    assert [[answer]] == bench_pool.undisturbed(model, 1, 1)


def test_rolling_restart_and_scaling_under_load(ray, model):
    """Streams talk on while every replica is replaced, one is taken away, and one added."""
    asyncio.run(_restart(model))


async def _restart(folder):
    answers, is_over = [[] for _ in range(6)], asyncio.Event()
    have_begun = asyncio.Barrier(len(answers) + 1)

    async def live(number):
        stream, is_last = await pool.open_stream(), False
        await have_begun.wait()
        while not is_last:
            is_last = is_over.is_set()  # one more turn, whatever replica the stream was on
            await stream.append(bench_pool.turn_of(number, len(answers[number])))
            tokens = []
            async for delta in stream.generate(bench_pool.PARAMS):
                tokens += delta.delta_token_ids
            answers[number].append(tokens)

    async with AsyncRayLLM(
        folder, num_replicas=2, save_every_tokens=30, **bench_pool.SETTINGS
    ) as pool:
        streams = [asyncio.create_task(live(number)) for number in range(len(answers))]
        await have_begun.wait()
        before = {replica.pid for replica in (await pool.stats()).replicas}
        await pool.rolling_restart()
        after = {replica.pid for replica in (await pool.stats()).replicas}
        assert len(after) == 2 and not before & after
        await pool.scale_to(1, drain_seconds=0.0)  # in the midst of turns
        assert len((await pool.stats()).replicas) == 1
        await pool.scale_to(2)
        is_over.set()
        await asyncio.gather(*streams)
        stats = await pool.stats()
    expected = bench_pool.undisturbed(folder, len(answers), max(map(len, answers)))
    assert answers == [turns[: len(mine)] for turns, mine in zip(expected, answers, strict=True)]
    assert stats.num_lost_replicas == 0
    assert stats.num_restored_streams >= 6


def test_a_pool_that_cannot_start_says_why(ray, tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        RayLLM(str(tmp_path / "nothing"), num_replicas=1)
    with pytest.raises(ValueError, match="num_replicas=99 needs 99 CPUs"):
        RayLLM(str(tmp_path), num_replicas=99)
    with pytest.raises(ValueError, match="save_every_tokens must be >= 1, got 0"):
        RayLLM(str(tmp_path), save_every_tokens=0)


def test_readers_hear_that_the_pool_is_shut_down(ray, model):
    pool, raised = RayLLM(model, num_replicas=1, **bench_pool.SETTINGS), []
    have_begun = threading.Barrier(4)

    def read(stream):
        try:
            deltas = stream.generate(SamplingParams(max_tokens=None, ignore_eos=True))
            next(deltas)
            have_begun.wait()
            for _ in deltas:
                pass
        except PoolError as error:
            raised.append(str(error))

    streams = [pool.open_stream() for _ in range(3)]
    threads = [threading.Thread(target=read, args=[stream]) for stream in streams]
    for stream, thread in zip(streams, threads, strict=True):
        stream.append([1, 2, 3])
        thread.start()
    have_begun.wait()
    pool.close()
    for thread in threads:
        thread.join()
    assert len(raised) == 3
    with pytest.raises(PoolError, match="the pool is closed"):
        pool.open_stream()
