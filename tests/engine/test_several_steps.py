"""Several decode steps per launch give the tokens that single ones give, to the last one.

What only the host can see (a stop string, a reader who leaves) is seen after the steps are done;
what was computed beyond it must leave no trace.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from paged_stream import AsyncLLMEngine, EngineConfig, SamplingParams
from paged_stream.config import offline_settings
from tests.engine.coroutines import in_loop, read
from tests.engine.stream_oracle import text_ids, tokens_of

# Steps, and whether more of the same are submitted before anybody has seen the last.
LAUNCHES = [(2, False), (3, False), (3, True), (8, False), (8, True), (17, False), (17, True)]


@pytest.fixture
def make(make_engine):
    """Makes engines that compute several steps at once."""

    def make(num_steps: int, ahead: bool = False, **settings):
        engine = make_engine(num_decode_steps=num_steps, **settings)
        engine.core.executor.runs_ahead = ahead
        return engine

    return make


@pytest.fixture(scope="module")
def expected():
    """Results of single steps, by test: computed once."""
    return {}


def launches_of(engine) -> list[int]:
    """Will hold the number of steps of every launch to come."""
    sizes: list[int] = []
    submit = engine.core.executor.submit

    def spy(output):
        sizes.append(output.num_steps)
        return submit(output)

    engine.core.executor.submit = spy
    return sizes


def drain(engine, arrivals=()) -> dict:
    """Tokens, text and end of every completion; the next arrival comes every other launch."""
    results: dict[tuple[str, int], tuple[list[int], str, Any]] = {}
    arrivals, count = list(arrivals), 0
    while engine.has_unfinished_requests() or arrivals:
        if arrivals and count % 2 == 0:
            arrivals.pop(0)()
        count += 1
        for delta in engine.step():
            tokens, text, _ = results.get((delta.request_id, delta.index), ([], "", None))
            results[delta.request_id, delta.index] = (
                tokens + delta.delta_token_ids,
                text + delta.delta_text,
                delta.finish_reason,
            )
        engine.core.scheduler.check_integrity()
    return results


def random_params(rng: random.Random) -> SamplingParams:
    greedy = rng.random() < 0.4
    return SamplingParams(
        n=rng.choice([1, 1, 1, 3]),
        temperature=0.0 if greedy else rng.choice([0.7, 1.5]),
        top_p=rng.choice([1.0, 0.9]),
        top_k=rng.choice([0, 20]),
        min_p=rng.choice([0.0, 0.02]),
        seed=rng.randrange(1 << 40),
        max_tokens=rng.choice([1, 2, 7, 30, 90]),
        min_tokens=rng.choice([0, 0, 1]),
        ignore_eos=rng.random() < 0.5,
        stop_token_ids=rng.sample(range(97), rng.choice([0, 0, 3])),
        stop=rng.sample("abcdefghijklmnop", rng.choice([0, 0, 2])),
    )


def requests(engine, seed: int, extra=None):
    """Arrivals of requests of all kinds; some begin like others."""
    rng = random.Random(seed)
    for number in range(14):
        prompt = text_ids(rng.choice([1, 9, 30, 80]), rng.randrange(3))
        prompt = prompt + text_ids(rng.choice([0, 3]), number)
        params = random_params(rng)
        yield lambda n=number, p=prompt, s=params: engine.add_request(str(n), p, s)
    if extra is not None:
        yield lambda: engine.add_request("extra", text_ids(20), extra)


@pytest.mark.parametrize(("num_steps", "ahead"), LAUNCHES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"block_size": 4, "window_size": 5, "num_sink_tokens": 6},
        {"block_size": 16, "window_size": 1, "num_sink_tokens": 0},
        {"block_size": 2, "window_size": 9},
        {"max_num_seqs": 2, "kv_cache_memory_bytes": 100_000, "num_sink_tokens": 8},
        {"enable_prefix_caching": False, "max_num_batched_tokens": 8},
    ],
    ids=str,
)
def test_requests_of_all_kinds(make, expected, settings, num_steps, ahead):
    for seed in (0, 1):
        key = (str(settings), seed)
        if key not in expected:
            engine = make(1, **settings)
            expected[key] = drain(engine, requests(engine, seed))
            assert len(expected[key]) > 14
        engine = make(num_steps, ahead, **settings)
        sizes = launches_of(engine)
        assert drain(engine, requests(engine, seed)) == expected[key]
        stats = engine.stats()
        assert stats.num_used_blocks == 0 and sum(sizes) > len(sizes)
        # What was submitted last may never be looked at: all had come to their ends.
        assert stats.num_steps == sum(sizes) or (
            ahead and stats.num_steps == sum(sizes) - sizes[-1]
        )


def test_the_longest_launch_is_what_was_asked_for_or_a_block(make_engine):
    """A ring of the smallest size has room for a block more than its window."""
    for num_steps, block_size, longest in ((8, 16, 8), (17, 4, 4 + 3), (17, 16, 17)):
        engine = make_engine(num_decode_steps=num_steps, block_size=block_size, window_size=18)
        sizes = launches_of(engine)
        params = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
        engine.add_request("a", text_ids(5), params)
        deltas = []
        while engine.has_unfinished_requests():
            deltas += engine.step()
        assert max(sizes) == longest == max(len(delta.delta_token_ids) for delta in deltas)
        assert len(tokens_of(deltas)) == 100


def test_more_is_submitted_before_the_last_is_seen(make):
    engine, events = make(4, ahead=True, block_size=16), []
    submit = engine.core.executor.submit

    def spy(output):
        number = len([event for event in events if event[0] == "submit"])
        events.append(("submit", number, output.follows))
        wait = submit(output)
        return lambda: (events.append(("read", number)), wait())[1]

    engine.core.executor.submit = spy
    engine.add_request("a", text_ids(5), SamplingParams(max_tokens=15, seed=1, ignore_eos=True))
    tokens = drain(engine)["a", 0][0]
    assert len(tokens) == 15
    # The prompt and a token, three times four, two.
    assert events == [
        *[("submit", 0, False), ("read", 0), ("submit", 1, False), ("submit", 2, True)],
        *[("read", 1), ("submit", 3, True), ("read", 2), ("submit", 4, True)],
        *[("read", 3), ("read", 4)],
    ]
    # Who arrives meanwhile is let in as soon as what was submitted is read.
    del events[:]
    engine.add_request("a", text_ids(5), SamplingParams(max_tokens=90, seed=1, ignore_eos=True))
    engine.step(), engine.step()
    engine.add_request("b", text_ids(5), SamplingParams(max_tokens=1, seed=1, ignore_eos=True))
    results = drain(engine)
    assert results["b", 0][0] == tokens[:1]
    assert [event[1:] for event in events if event[0] == "submit"][:5] == [
        *[(0, False), (1, False), (2, True), (3, False), (4, False)],
    ]


def test_a_result_that_cannot_be_read_takes_what_follows_with_it(make):
    """The next step computes both again."""
    engine = make(4, ahead=True, block_size=16)
    submit, failures = engine.core.executor.submit, ["once"]

    def flaky(output):
        wait = submit(output)
        if output.follows or output.num_steps == 1 or not failures:
            return wait
        failures.clear()

        def fail():
            raise OSError("lost")

        return fail

    engine.core.executor.submit = flaky
    params = SamplingParams(max_tokens=40, seed=1, ignore_eos=True)
    engine.add_request("a", text_ids(30), params)
    first = [delta for _ in range(1) for delta in engine.step()]
    with pytest.raises(OSError, match="lost"):
        engine.step()
    engine.core.scheduler.check_integrity()
    alone = make(1)
    alone.add_request("a", text_ids(30), params)
    want = drain(alone)["a", 0][0]
    assert tokens_of(first) + drain(engine)["a", 0][0] == want


@pytest.mark.parametrize(
    "params",
    [
        {"logprobs": 2},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"repetition_penalty": 1.2},
        {"min_tokens": 25},
    ],
    ids=str,
)
def test_what_the_host_must_see_in_between_takes_single_steps(make_engine, expected, params):
    params = SamplingParams(temperature=0, max_tokens=25, ignore_eos=True, **params)
    results = []
    for num_steps in (1, 8):
        engine = make_engine(num_decode_steps=num_steps)
        sizes = launches_of(engine)
        results.append(drain(engine, requests(engine, 3, extra=params)))
        assert sizes[-1] == 1 or num_steps > 1
        if num_steps > 1:
            engine.add_request("alone", text_ids(20), params)
            del sizes[:]
            results[-1] |= drain(engine)
            assert set(sizes) == {1}
    assert results[0]["extra", 0] == results[1]["extra", 0] == results[1]["alone", 0]


def test_min_tokens_ends_before_the_launches_begin(make_engine):
    params = SamplingParams(temperature=0, max_tokens=30, min_tokens=5)
    results = []
    for num_steps in (1, 8):
        engine = make_engine(num_decode_steps=num_steps)
        sizes = launches_of(engine)
        engine.add_request("a", text_ids(5), params)
        results.append(drain(engine))
    assert results[0] == results[1]
    assert sizes[:5] == [1] * 5 and set(sizes[6:]) != {1}


@pytest.mark.parametrize(("num_steps", "ahead"), LAUNCHES)
def test_aborts_leave_the_others_alone(make, expected, num_steps, ahead):
    if "aborts" not in expected:
        engine = make(1)
        expected["aborts"] = drain(engine, requests(engine, 5))
    engine = make(num_steps, ahead)
    victims = ("1", "4", "9", "12")
    arrivals = list(requests(engine, 5))
    for place, victim in enumerate(victims):
        arrivals.insert(int(victim) + 2 + place, lambda v=victim: engine.abort_request(v))
    results = drain(engine, arrivals)
    for key, (tokens, text, reason) in expected["aborts"].items():
        if key[0] not in victims:
            assert results[key] == (tokens, text, reason)
        elif key in results:
            assert results[key][0] == tokens[: len(results[key][0])]
    assert engine.stats().num_used_blocks == 0


def live_history(engine, tmp_path, evicted: list) -> list:
    """What streams say while they are stopped by the host at odd places, forked, cut, rewound,
    parked, saved and loaded; a request runs beside them."""
    rng = random.Random(7)
    said: list[Any] = []
    stream = engine.open_stream(on_evict=lambda first, end: evicted.append((first, end)))
    stream.append(text_ids(60))
    for turn in range(30):
        stop = rng.sample("abcdefghijklmnopqrstuvwxyz0123456789", 8)
        params = SamplingParams(temperature=1.3, seed=turn, max_tokens=25, stop=stop)
        if turn % 4 == 0:
            engine.add_request(str(turn), text_ids(9, turn), SamplingParams(seed=1))
        deltas = list(stream.generate(params))
        position = stream.position
        said.append((tokens_of(deltas), "".join(d.delta_text for d in deltas), position))
        said.append(deltas[-1].finish_reason)
        if turn % 5 == 0:
            child = stream.fork()
            greedy = SamplingParams(temperature=0, max_tokens=30, stop=stop)
            said.append(tokens_of(child.generate(greedy)))
            said.append(tokens_of(stream.generate(greedy)))
            child.close()
        if turn % 5 == 1:
            first = stream.stats().window_start
            stream.cut(first + 3, first + 6)
        if turn % 5 == 2:
            stream.rewind(position - 2)
        if turn % 5 == 3:
            stream.park()
            stream.append(text_ids(3, turn))
        if turn % 5 == 4:
            stream.save(tmp_path / "stream")
            stream.close()
            stream = engine.load_stream(
                tmp_path / "stream", on_evict=lambda first, end: evicted.append((first, end))
            )
        engine.core.scheduler.check_integrity()
        stats = stream.stats()
        said.append((stats.num_tokens, stats.num_pending_tokens, stats.num_visible_tokens))
        said.append((stats.num_evicted_tokens, stats.window_start))
    stream.close()
    said.append(drain(engine))
    said.append(engine.stats().num_generated_tokens)
    return said


@pytest.mark.parametrize(("num_steps", "ahead"), LAUNCHES)
@pytest.mark.parametrize("block_size", [4, 16])
def test_live_streams(make, tmp_path, expected, num_steps, ahead, block_size):
    if "live" not in expected:
        evicted: list = []
        engine = make(1, block_size=4, window_size=22)
        expected["live"] = live_history(engine, tmp_path, evicted), evicted
        assert "stop" in expected["live"][0] and "length" in expected["live"][0]
    said, spans = expected["live"]
    evicted = []
    engine = make(num_steps, ahead, block_size=block_size, window_size=22)
    assert live_history(engine, tmp_path, evicted) == said
    # In larger spans, but each position once and in order.
    assert positions_in(evicted) == positions_in(spans)
    assert len(evicted) < len(spans)


def positions_in(spans) -> list[int]:
    return [position for first, end in spans for position in range(first, end)]


@pytest.mark.parametrize(("num_steps", "ahead"), LAUNCHES)
def test_leaving_a_turn_loses_no_token(make, make_engine, num_steps, ahead):
    """What was computed and not read stays in the stream, whose continuation is that of a stream
    that was given the same tokens."""
    params = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
    engine = make(num_steps, ahead, block_size=4)
    stream, other = engine.open_stream(), engine.open_stream()
    stream.append(text_ids(50))
    turns = [stream.generate(params) for _ in range(3)]
    for turn in turns:
        start = stream.position
        tokens = tokens_of([next(turn) for _ in range(4)])
        if other.position:
            list(other.generate(SamplingParams(max_tokens=30)))
        other.append(text_ids(4))  # drives the engine, so that a delta may wait unread
        turn.close()
        engine.core.scheduler.check_integrity()
        known = stream.inner._sequence.token_ids(start, start + len(tokens)).tolist()
        assert known == tokens
        assert stream.inner._sequence.num_computed_tokens == stream.position - 1
    fresh = make_engine(num_decode_steps=1).open_stream()
    assert stream.position > 60
    sequence = stream.inner._sequence
    fresh.append(text_ids(50) + all_after(make_engine, text_ids(50), stream.position - 50))
    assert sequence.last_token_ids(20) == fresh.inner._sequence.last_token_ids(20)
    short = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    assert tokens_of(stream.generate(short)) == tokens_of(fresh.generate(short))


def all_after(make_engine, prompt, count: int) -> list[int]:
    engine = make_engine(num_decode_steps=1)
    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
    engine.add_request("r", prompt, params)
    return drain(engine)["r", 0][0]


@pytest.mark.parametrize("num_steps", [2, 3])
def test_copies_are_made_before_what_follows_overwrites(make, num_steps):
    """A cut makes a copy of a block that a fork holds too, and may overwrite from then on."""

    def run(engine, when):
        stream = engine.open_stream()
        stream.append(text_ids(61))
        tokens: list[int] = []
        for delta in stream.fork().generate(params):
            before = len(tokens)
            tokens += delta.delta_token_ids
            if before < when <= len(tokens):
                stream.cut(40, 43)
        return tokens, tokens_of(stream.generate(params))

    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    settings = {"block_size": 4, "window_size": 22}
    for when in range(1, 13):
        assert run(make(num_steps, True, **settings), when) == run(make(1, **settings), when)


@pytest.mark.parametrize("num_steps", [3, 8])
def test_slow_readers(make_engine, num_steps):
    """Deltas of several tokens; a full mailbox holds up its own request only."""
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    prompts = [text_ids(3 + 9 * i, i) for i in range(5)]
    want = [all_after(make_engine, prompt, 60) for prompt in prompts]
    settings = make_engine().config
    config = EngineConfig(
        **{name: getattr(settings, name) for name in ("model", "num_sink_tokens", "window_size")},
        dtype="float32",
        block_size=8,
        num_decode_steps=num_steps,
        kv_cache_memory_bytes=4 << 20,
    )

    async def slowly(engine, deltas):
        tokens: list[int] = []
        async for delta in deltas:
            assert len(delta.delta_token_ids) <= num_steps
            tokens += delta.delta_token_ids
            for _ in range(2):  # there is a step between one answer and the next
                await engine.stats()
        return tokens

    @in_loop
    async def run():
        async with AsyncLLMEngine(config, max_unread=1) as engine:
            turns = [engine.generate(prompt, params) for prompt in prompts]
            readers = [
                slowly(engine, deltas) if i % 2 else read(deltas) for i, deltas in enumerate(turns)
            ]
            assert await asyncio.gather(*readers) == want
            await engine.thread.call(engine.core.scheduler.check_integrity)

    run()


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, 8),
        ({"num_decode_steps": None}, 8),
        ({"num_decode_steps": 3}, 3),
        ({"num_decode_steps": 0}, 0),  # which `EngineConfig` refuses
        ({"attention_backend": "xformers"}, None),
    ],
)
def test_who_reads_whole_answers_lets_several_steps_run(settings, steps):
    assert offline_settings(settings) == {**settings, "num_decode_steps": steps}
