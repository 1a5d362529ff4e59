"""A pool answers as one engine does, whatever happens to its replicas."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from itertools import islice

import pytest

from paged_stream import LLM, EngineConfig, LLMEngine, SamplingParams
from paged_stream.pool.ray_llm import RayLLM
from paged_stream.pool.replica import Replica

pytestmark = pytest.mark.ray

SETTINGS = {
    "window_size": 24,
    "block_size": 8,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 32,
    "dtype": "float32",
    "kv_cache_memory_bytes": 4 << 20,
}
GREEDY = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
SAMPLED = SamplingParams(temperature=1.0, max_tokens=20, ignore_eos=True, seed=3)
ENDLESS = SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True)


@pytest.fixture(scope="module")
def pool(ray, folder):
    with RayLLM(str(folder), num_replicas=2, save_every_tokens=50, **SETTINGS) as pool:
        yield pool


@pytest.fixture(scope="module")
def engine(folder):
    return LLMEngine(EngineConfig(model=str(folder), **SETTINGS))


def text_of(stream, params=GREEDY):
    return "".join(delta.delta_text for delta in stream.generate(params))


def converse(stream, turns=range(3)):
    answers = []
    for turn in turns:
        stream.append(f"turn {turn}: what then? ")
        answers.append(text_of(stream))
    return answers


def kill(pool, number):
    [pid] = [replica.pid for replica in pool.stats().replicas if replica.number == number]
    os.kill(pid, signal.SIGKILL)


def test_requests_are_those_of_one_engine(pool, folder):
    llm = LLM(str(folder), **SETTINGS)
    prompts = ["once upon", "a long prompt that goes beyond the window of this model", [5, 6, 7]]
    params = [GREEDY, SAMPLED, SamplingParams(n=2, seed=1, logprobs=2, prompt_logprobs=1)]
    expected = llm.generate(prompts, params, use_tqdm=False)
    results = pool.generate(prompts, params, use_tqdm=False)
    for result, wanted in zip(results, expected, strict=True):
        assert result.prompt_token_ids == wanted.prompt_token_ids
        assert [o.token_ids for o in result.outputs] == [o.token_ids for o in wanted.outputs]
        assert [o.text for o in result.outputs] == [o.text for o in wanted.outputs]
        assert len(result.prompt_logprobs or ()) == len(wanted.prompt_logprobs or ())
    messages = [{"role": "user", "content": "who?"}]
    answer = pool.chat(messages, GREEDY, use_tqdm=False)[0]
    assert answer.outputs[0].text == llm.chat(messages, GREEDY, use_tqdm=False)[0].outputs[0].text
    with pytest.raises(ValueError, match=r"prompts\[1\]: prompt must not be empty"):
        pool.generate(["a", ""], GREEDY)
    with pytest.raises(ValueError, match=r"messages\[1\]: the content must be text"):
        pool.chat([messages, [{"role": "user", "content": None}]])
    text = "longer than the window is, and scored all the same"
    assert pool.score(text) == llm.score(text, use_tqdm=False)


def test_chats_without_parameters_go_on_to_the_end(pool):
    conversations = [[{"role": "user", "content": "who?"}]] * 20
    outputs = pool.chat(conversations, use_tqdm=False)
    assert {output.outputs[0].finish_reason for output in outputs} == {"stop"}
    with pool.open_stream() as stream:
        assert {[*stream.chat("who?")][-1].finish_reason for _ in range(20)} == {"stop"}


def test_streams_are_those_of_one_engine(pool, engine, tmp_path):
    """Turns, chats, forks, edits and files, with many saves on the way."""
    pin = [{"role": "system", "content": "short"}]
    with pool.open_stream(pin=pin) as stream, engine.open_stream(pin=pin) as expected:

        def both(function):
            result = function(stream)
            assert result == function(expected)
            assert stream.position == expected.position
            return result

        both(lambda s: "".join(d.delta_text for d in s.chat("and you?", GREEDY)))
        both(lambda s: "".join(d.delta_text for d in s.chat("why?", GREEDY)))
        both(lambda s: converse(s))
        both(lambda s: s.cut(s.position - 10, s.position - 4))
        both(lambda s: converse(s, range(2)))
        both(lambda s: s.rewind(s.position - 5))
        both(lambda s: s.park())
        both(lambda s: converse(s, range(2)))
        both(lambda s: s.stats().num_tokens)
        fork, other = stream.fork(), expected.fork()
        assert converse(fork) == converse(other)
        stream.save(tmp_path / "pool")
        expected.save(tmp_path / "engine")
        # Each is loaded by the other kind.
        loaded = pool.load_stream(tmp_path / "engine"), engine.load_stream(tmp_path / "pool")
        answers = [converse(each) for each in loaded]
        assert answers[0] == answers[1] == converse(expected)
        assert converse(stream) == answers[0]
        for each in (fork, other, *loaded):
            each.close()


async def leave_at_a_delta(stream):
    deltas = stream.generate(ENDLESS)
    for _ in range(70):
        await anext(deltas)
    await stream.append(" queued")
    await deltas.aclose()


async def leave_while_waiting(stream):
    count, has_read = 0, asyncio.Event()

    async def read():
        nonlocal count
        async for _ in stream.generate(ENDLESS):
            count += 1
            if count == 70:
                has_read.set()

    reader = asyncio.create_task(read())
    await has_read.wait()
    await stream.append(" queued")
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader


@pytest.mark.parametrize("leave", [leave_at_a_delta, leave_while_waiting])
def test_a_reader_that_leaves_ends_its_turn(pool, engine, leave):
    """What was generated unread is in the stream, and the pool knows it."""
    pool.wait_until_ready()
    with pool.open_stream() as stream:
        stream.append("abc")
        pool._thread.run(leave(stream.inner))
        position = stream.position
        assert position == stream.stats().num_tokens >= 3 + 70 + 7
        kill(pool, stream.inner.replica)
        text = text_of(stream)
        assert stream.position == position + 20
    with engine.open_stream() as expected:
        expected.append("abc")
        count = position - len("abc") - len(" queued")
        text_of(expected, SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True))
        expected.append(" queued")
        assert text_of(expected) == text


def open_streams(pool):
    """As the pool counts them, and as its engines do."""
    stats = pool.stats()
    return stats.num_streams, sum(replica.engine.num_streams for replica in stats.replicas)


def test_a_stream_that_is_closed_in_a_turn_is_gone(pool):
    pool.wait_until_ready()
    before = open_streams(pool)
    for num_read in (1, 70):  # 70: there is a save by then
        stream = pool.open_stream()
        stream.append("abc")
        deltas = stream.generate(ENDLESS)
        for _ in range(num_read):
            next(deltas)
        stream.close()
        assert len(list(islice(deltas, 200))) < 64
        assert open_streams(pool) == before


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_what_queues_behind_a_turn_that_never_begins(pool, is_cancelled):
    async def run(stream):
        await stream.append("abc")
        async with stream._turns._lock:
            turn = asyncio.create_task(anext(stream.complete([1000], GREEDY)))
            for _ in range(2):  # steps until it waits for the lock
                await asyncio.sleep(0)
            await stream.append("de")
            if is_cancelled:
                turn.cancel()
        with pytest.raises(asyncio.CancelledError if is_cancelled else ValueError):
            await turn
        assert stream.position == 5
        await stream.append("f")
        return [t async for d in stream.generate(GREEDY) for t in d.delta_token_ids]

    with pool.open_stream() as stream, pool.open_stream() as expected:
        expected.append("abcdef")
        wanted = [t for d in expected.generate(GREEDY) for t in d.delta_token_ids]
        assert pool._thread.run(run(stream.inner)) == wanted


def test_a_fork_that_nobody_waits_for_is_closed(pool):
    async def run(stream):
        fork = asyncio.create_task(stream.fork())
        await asyncio.sleep(0)
        fork.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fork

    with pool.open_stream() as stream:
        stream.append("abc")
        before = open_streams(pool)
        pool._thread.run(run(stream.inner))
        assert open_streams(pool) == before


def test_a_stream_that_is_closed_while_its_turn_starts(pool):
    """Its replica is not counted as busy for ever."""

    async def run(stream):
        await stream.append("abc")
        turn = asyncio.create_task(anext(stream.generate(ENDLESS), None))
        while not stream._turns._lock.locked():
            await asyncio.sleep(0)
        await stream.close()
        try:
            await turn
        except ValueError as error:
            assert "the stream is closed" in str(error)

    pool.wait_until_ready()
    for _ in range(5):
        pool._thread.run(run(pool.open_stream().inner))
    assert [replica.load for replica in pool.stats().replicas] == [0, 0]


def test_a_turn_that_comes_to_its_replica_after_the_stream_was_closed(pool, monkeypatch):
    call = Replica.call

    async def run(stream):
        async def call_late(replica, method, *args):
            if method == "start_turn":
                await stream.close()
            return await call(replica, method, *args)

        await stream.append("abc")
        monkeypatch.setattr(Replica, "call", call_late)
        return [delta async for delta in stream.generate(ENDLESS)]

    assert pool._thread.run(run(pool.open_stream().inner)) == []


def test_an_interrupted_reader_has_left_when_it_hears_of_it(pool):
    thread, events, main = pool._thread, [], threading.main_thread().ident

    async def deltas():
        try:
            yield "a delta"
            signal.pthread_kill(main, signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            events.append("left")

    reader = thread.read(deltas())
    next(reader)
    with pytest.raises(KeyboardInterrupt):
        next(reader)
    assert events == ["left"]


def test_bad_input_is_refused_and_harms_nobody(pool):
    with pytest.raises(ValueError, match=r"prompt token ids must be in \[0, 97\)"):
        pool.generate([[3], [1000]], use_tqdm=False)
    with pytest.raises(ValueError, match="stop_token_ids must be below 97"):
        pool.generate("a", SamplingParams(stop_token_ids=[97]), use_tqdm=False)
    with pytest.raises(ValueError, match="num_sink_tokens"):
        pool.open_stream(num_sink_tokens=100_000)
    with pool.open_stream() as stream:
        with pytest.raises(ValueError, match="the stream is empty"):
            next(stream.generate(GREEDY))
        stream.append("abc")
        with pytest.raises(ValueError, match="n must be 1 for a stream"):
            next(stream.generate(SamplingParams(n=2)))
        with pytest.raises(ValueError, match="prompt must not be empty"):
            stream.append([])
        with pytest.raises(ValueError, match="position must be at least"):
            stream.rewind(10_000)
        assert len(text_of(stream)) > 0
    with pytest.raises(ValueError, match="the stream is closed"):
        stream.append("abc")
    with pytest.raises(ValueError, match="num_replicas must be >= 1, got 0"):
        pool.scale_to(0)
    with pytest.raises(ValueError, match="num_replicas=50 needs 50 CPUs"):
        pool.scale_to(50)


def test_requests_go_where_the_least_is_to_do_and_streams_stay(pool):
    pool.wait_until_ready()
    streams = [pool.open_stream() for _ in range(6)]
    replicas = pool.stats().replicas
    assert [replica.num_streams for replica in replicas] == [3, 3]
    homes = [stream.inner.replica for stream in streams]
    busy = [stream for stream in streams if stream.inner.replica == replicas[0].number]
    turns = []
    for stream in busy:
        stream.append("abc")
        turns.append(stream.generate(ENDLESS))
        next(turns[-1])
    before = {r.number: r.engine.num_generated_tokens for r in pool.stats().replicas}
    assert sorted(r.load for r in pool.stats().replicas) == [0, 3]
    pool.generate(["a", "b"], GREEDY, use_tqdm=False)
    idle = next(r for r in pool.stats().replicas if r.load == 0)
    assert idle.number == replicas[1].number
    assert idle.engine.num_generated_tokens - before[idle.number] == 40
    for deltas in turns:
        deltas.close()
    for stream in streams:
        stream.append("more")
        text_of(stream)
    assert [stream.inner.replica for stream in streams] == homes
    for stream in streams:
        stream.close()
    assert [r.num_streams for r in pool.stats().replicas] == [0, 0]


def test_a_request_goes_on_when_its_replica_is_killed(pool, folder):
    expected = LLM(str(folder), **SETTINGS).generate(
        "abc", SamplingParams(temperature=0.9, seed=1, max_tokens=400, ignore_eos=True)
    )[0]

    async def run():
        params = SamplingParams(temperature=0.9, seed=1, max_tokens=400, ignore_eos=True)
        tokens, is_killed = [], False
        async for delta in pool.inner.generate("abc", params):
            tokens += delta.delta_token_ids
            if len(tokens) >= 20 and not is_killed:
                is_killed = True
                [busy] = [r for r in (await pool.inner.stats()).replicas if r.load]
                os.kill(busy.pid, signal.SIGKILL)
        return tokens

    assert pool._thread.run(run()) == expected.outputs[0].token_ids
