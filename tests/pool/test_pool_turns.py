"""Turns, requests and windows of a pool, while its replicas die, next to one engine."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading

import pytest
import torch
from transformers import AutoModelForCausalLM

from paged_stream import (
    EngineConfig,
    LLMEngine,
    LoRARequest,
    SamplingParams,
    StructuredOutputsParams,
)
from paged_stream.pool.ray_llm import RayLLM
from tests.lora_adapter import Adapter

pytestmark = pytest.mark.ray

SETTINGS = {
    "window_size": 24,
    "block_size": 8,
    "max_num_batched_tokens": 32,
    "dtype": "float32",
    "kv_cache_memory_bytes": 4 << 20,
}
GREEDY = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
ENDLESS = SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True)
UNSEEDED = SamplingParams(temperature=1.0, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def pool(ray, folder):
    with RayLLM(str(folder), num_replicas=2, save_every_tokens=30, **SETTINGS) as pool:
        yield pool


@pytest.fixture
def engine(folder):
    with LLMEngine(EngineConfig(model=str(folder), **SETTINGS)) as engine:
        yield engine


def kill(pool, stream):
    [pid] = [r.pid for r in pool.stats().replicas if r.number == stream.inner.replica]
    os.kill(pid, signal.SIGKILL)


def ids_of(deltas):
    return [token_id for delta in deltas for token_id in delta.delta_token_ids]


def test_adapters_go_where_their_streams_and_requests_go(ray, folder, engine, tmp_path):
    """Also to a replica that has not had them, when another one dies."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    adapter = LoRARequest("tuned", 7, Adapter(model).save(tmp_path / "adapter"))
    prompts, choices = ["abc", "xyz"], [adapter, None]
    with RayLLM(str(folder), num_replicas=2, **SETTINGS) as pool:
        requests = [each.generate(prompts, GREEDY, lora_request=choices) for each in (pool, engine)]
        told = [[output.outputs[0].token_ids for output in outputs] for outputs in requests]
        assert told[0] == told[1]
        assert pool.score("abc", lora_request=adapter) == engine.score("abc", lora_request=adapter)
        stream, expected = (each.open_stream(lora_request=adapter) for each in (pool, engine))
        for each in (stream, expected):
            each.append("abc")
        assert ids_of(stream.generate(GREEDY)) == ids_of(expected.generate(GREEDY))
        stream.save(tmp_path / "saved")
        kill(pool, stream)
        assert ids_of(stream.generate(GREEDY)) == ids_of(expected.generate(GREEDY))
        with pytest.raises(ValueError, match="is in use by a request or an open stream"):
            pool.remove_lora(7)
        stream.close()
        pool.wait_until_ready()
        assert pool.list_loras() == {7}
        assert pool.remove_lora(7)
        assert pool.list_loras() == set()
        with pytest.raises(ValueError, match="computed with an adapter; pass it as lora_request"):
            pool.load_stream(tmp_path / "saved")
        loaded = [e.load_stream(tmp_path / "saved", lora_request=adapter) for e in (pool, engine)]
        told = [ids_of(stream.generate(GREEDY)) for stream in loaded]
        assert told[0] == told[1]


def test_turns_without_a_seed_are_those_of_one_engine(ray, folder, engine, tmp_path):
    """Also of forks and saved streams, and in a turn that two replicas have run."""
    with RayLLM(str(folder), **SETTINGS) as pool:
        assert ids_of_requests(pool) == ids_of_requests(engine)
        stream, expected = pool.open_stream(), engine.open_stream()
        for each in (stream, expected):
            each.append("abc")
        assert ids_of(stream.generate(UNSEEDED)) == ids_of(expected.generate(UNSEEDED))
        turn = stream.generate(UNSEEDED)
        begun = ids_of([next(turn)])
        kill(pool, stream)
        assert begun + ids_of(turn) == ids_of(expected.generate(UNSEEDED))
        fork, other = stream.fork(), expected.fork()
        assert ids_of(fork.generate(UNSEEDED)) == ids_of(other.generate(UNSEEDED))
        stream.save(tmp_path / "saved")
        loaded = engine.load_stream(tmp_path / "saved"), pool.load_stream(tmp_path / "saved")
        wanted = ids_of(expected.generate(UNSEEDED))
        assert [ids_of(each.generate(UNSEEDED)) for each in (*loaded, stream)] == [wanted] * 3
        for each in (stream, expected, fork, other, *loaded):
            each.close()


def ids_of_requests(llm):
    if isinstance(llm, RayLLM):
        outputs = llm.generate(["abc", "abc"], UNSEEDED, use_tqdm=False)
        return [output.outputs[0].token_ids for output in outputs]
    ids = {name: [] for name in ("first", "second")}
    for name in ids:
        llm.add_request(name, "abc", UNSEEDED)
    while llm.has_unfinished_requests():
        for delta in llm.step():
            ids[delta.request_id] += delta.delta_token_ids
    return list(ids.values())


def test_a_structure_goes_on_on_another_replica(pool, engine):
    """Behind the middle of a text whose beginning has left the window."""
    structure = StructuredOutputsParams(regex="[a-z]{40}[0-9]{40}")
    params = SamplingParams(seed=1, max_tokens=90, structured_outputs=structure)
    with pool.open_stream() as stream, engine.open_stream() as expected:
        for each in (stream, expected):
            each.append("abc")
        turn, begun = stream.generate(params), []
        while len(begun) < 45:
            begun += ids_of([next(turn)])
        kill(pool, stream)
        assert begun + ids_of(turn) == ids_of(expected.generate(params))


def test_evictions_are_told_once(pool, engine, tmp_path):
    """The same positions as one engine tells, also those that two replicas have computed."""
    told, wanted = [], []
    with (
        pool.open_stream(on_evict=lambda *span: told.append(span)) as stream,
        engine.open_stream(on_evict=lambda *span: wanted.append(span)) as expected,
    ):

        def both(function):
            for each in (stream, expected):
                function(each)

        both(lambda s: s.append("a long beginning, longer than the window"))
        both(lambda s: ids_of(s.generate(GREEDY)))
        assert spanned(told) == spanned(wanted) != set()
        kill(pool, stream)
        both(lambda s: ids_of(s.generate(GREEDY)))
        both(lambda s: s.cut(s.position - 12, s.position - 4))
        both(lambda s: ids_of(s.generate(GREEDY)))
        both(lambda s: s.rewind(s.position - 9))
        both(lambda s: ids_of(s.generate(GREEDY)))
        assert spanned(told) == spanned(wanted)
        assert told == sorted(told)
        both(lambda s: s.save(tmp_path / "saved"))
    again = []
    with pool.load_stream(tmp_path / "saved", on_evict=lambda *span: again.append(span)) as loaded:
        ids_of(loaded.generate(GREEDY))
    assert again[0][0] == told[-1][1]


def spanned(spans):
    """The positions, none of them twice."""
    positions = [position for first, last in spans for position in range(first, last)]
    assert len(set(positions)) == len(positions)
    return set(positions)


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_turn_that_is_ended(pool, engine, is_killed):
    """Its reader gets what was generated; what queued comes next, also if it reads no more."""
    with pool.open_stream() as stream:
        stream.append("abc")
        turn = stream.generate(ENDLESS)
        read = ids_of(next(turn) for _ in range(8))
        stream.append(" queued")
        assert stream.is_generating
        if is_killed:
            kill(pool, stream)
        stream.end_turn()
        assert not stream.is_generating
        stream.append(" and more")
        position = stream.position
        rest = list(turn)
        read += ids_of(rest)
        assert not any(delta.finished for delta in rest)
        assert position == len("abc queued and more") + len(read)
        stream.end_turn()
        following = ids_of(stream.generate(GREEDY))
    with engine.open_stream() as expected:
        expected.append("abc")
        params = SamplingParams(temperature=0.0, max_tokens=len(read), ignore_eos=True)
        assert ids_of(expected.generate(params)) == read
        expected.append(" queued and more")
        assert ids_of(expected.generate(GREEDY)) == following


def test_a_turn_that_is_ended_before_it_begins(pool):
    async def run(stream):
        async with stream._turns._lock:
            turn = asyncio.create_task(anext(stream.complete("de", GREEDY), None))
            while not stream.is_generating:
                await asyncio.sleep(0)
            await stream.end_turn()
        assert await turn is None
        assert not stream.is_generating

    with pool.open_stream() as stream:
        stream.append("abc")
        pool._thread.run(run(stream.inner))
        assert stream.position == 5


@pytest.mark.parametrize("is_killed", [False, True])
def test_an_aborted_request_keeps_what_it_has(pool, is_killed):
    outputs, has_begun = [], threading.Event()
    note = pool.inner.generate

    async def generate(*args, **options):
        async for delta in note(*args, **options):
            has_begun.set()
            yield delta

    def run():
        params = SamplingParams(n=2, max_tokens=None, ignore_eos=True)
        outputs.extend(pool.generate("abc", params, request_ids="mine", use_tqdm=False))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool.inner, "generate", generate)
        thread = threading.Thread(target=run)
        thread.start()
        has_begun.wait()
        with pytest.raises(ValueError, match="request_id 'mine' is in use"):
            pool.generate("abc", request_ids="mine", use_tqdm=False)
        if is_killed:
            [pid] = [replica.pid for replica in pool.stats().replicas if replica.load]
            os.kill(pid, signal.SIGKILL)
        pool.abort("mine")
        thread.join()
    [output] = outputs
    assert output.request_id == "mine"
    assert [each.finish_reason for each in output.outputs] == ["abort", "abort"]
    assert sum(len(each.token_ids) for each in output.outputs) > 0
    pool.abort("mine")
    assert not any(replica.load for replica in pool.stats().replicas)
    pool.wait_until_ready()


def test_a_stream_that_nobody_has_is_closed(pool):
    pool.wait_until_ready()
    gc.collect()
    before = pool.stats().num_streams
    stream = pool.open_stream()
    stream.append("abc")
    assert pool.stats().num_streams == before + 1
    with pytest.warns(ResourceWarning, match="unclosed stream stream-"):
        del stream
        gc.collect()
    while pool.stats().num_streams > before:
        pass
    while sum(replica.engine.num_streams for replica in pool.stats().replicas) > before:
        pass
