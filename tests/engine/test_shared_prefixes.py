"""What the cache holds already is not computed again, and nothing else changes."""

from __future__ import annotations

import random

import pytest

from paged_stream import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
BLOCK = 8


def ids(count: int, seed: int = 0) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(97) for _ in range(count)]


def drain(engine) -> dict[str, dict[int, list[int]]]:
    """Tokens by request and completion."""
    out: dict[str, dict[int, list[int]]] = {}
    while engine.has_unfinished_requests():
        for delta in engine.step():
            completions = out.setdefault(delta.request_id, {})
            completions.setdefault(delta.index, []).extend(delta.delta_token_ids)
        engine.core.scheduler.check_integrity()
    return out


def complete(engine, prompt, params=GREEDY) -> dict[int, list[int]]:
    engine.add_request("one", prompt, params)
    return drain(engine)["one"]


def computed(engine, prompt, params=GREEDY) -> tuple[int, dict[int, list[int]]]:
    """Tokens that went through the model, and the result."""
    before = engine.stats().num_computed_tokens
    result = complete(engine, prompt, params)
    return engine.stats().num_computed_tokens - before, result


@pytest.mark.parametrize("length", [9, 16, 17, 24, 28, 60, 200])
def test_the_second_time_at_most_a_block_is_computed(make_engine, length):
    """Also of prompts much longer than the window: only what is visible has to be there."""
    engine, prompt = make_engine(), ids(length)
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    first, expected = computed(engine, prompt, params)
    second, result = computed(engine, prompt, params)
    assert result == expected
    assert first == length
    assert second <= BLOCK
    stats = engine.stats()
    assert stats.num_prefix_hits == first - second
    assert stats.num_prefix_queries == 2 * length
    assert stats.num_used_blocks == 0


def test_a_common_beginning_is_shared_as_far_as_it_goes(make_engine):
    engine = make_engine(num_sink_tokens=4, window_size=100)
    shared = ids(50)
    complete(engine, shared + ids(20, 1))
    count, result = computed(engine, prompt := shared + ids(20, 2))
    assert count == 70 + 7 - 48
    assert result == complete(make_engine(window_size=100), prompt)


def test_off_computes_everything(make_engine):
    engine = make_engine(enable_prefix_caching=False)
    first, expected = computed(engine, ids(60))
    assert computed(engine, ids(60)) == (first, expected)
    stats = engine.stats()
    assert first == 60 + 7  # the token sampled last waits
    assert stats.num_prefix_hits == stats.num_prefix_queries == 0


def test_other_sinks_or_another_window_share_nothing(make_engine):
    """K and V of the same tokens differ, from the second layer on, with what these could see."""
    engine, prompt = make_engine(), ids(60)
    for settings in ({}, {"num_sink_tokens": 5}, {"window_size": 23}):
        before = engine.stats()
        with engine.open_stream(**settings) as stream:
            stream.append(prompt)
            list(stream.generate(GREEDY))
        assert engine.stats().num_prefix_hits == before.num_prefix_hits


def test_each_stream_tells_what_it_found_and_the_engine_the_sum(make_engine, tmp_path):
    engine, text = make_engine(window_size=100), ids(200)
    complete(engine, text[:50])
    streams = [engine.open_stream() for _ in range(3)]
    for stream, length in zip(streams, (60, 33, 5), strict=True):
        stream.append(text[:length])
        list(stream.generate(GREEDY))
    streams.append(streams[0].fork())
    streams[0].save(tmp_path / "a.stream")
    streams.append(engine.load_stream(tmp_path / "a.stream"))
    for stream in streams:
        stream.append(text[60:])  # is looked for by nobody: it does not begin here
        stream.park()
        list(stream.generate(GREEDY))
    stats = [stream.stats() for stream in streams]
    assert [s.num_prefix_hits for s in stats] == [48, 32, 0, 0, 0]
    assert [s.num_prefix_queries for s in stats] == [60, 33, 0, 0, 0]
    total = engine.stats()
    assert total.num_prefix_hits == sum(s.num_prefix_hits for s in stats)
    assert total.num_prefix_queries == 50 + sum(s.num_prefix_queries for s in stats)


def test_streams_with_the_same_pin_share_its_blocks(make_engine):
    engine = make_engine()
    pin = ids(5 * BLOCK)
    used, streams = [], []
    for turn in range(4):
        stream = engine.open_stream(pin=pin)
        streams.append(stream)  # one that nobody holds is closed
        stream.append([turn, 5])
        list(stream.generate(GREEDY))
        used.append(engine.stats().num_used_blocks)
    assert [after - before for before, after in zip(used, used[1:], strict=False)] == [2, 2, 2]
    assert engine.stats().num_prefix_hits == 3 * len(pin)
    # Sharing changes no result.
    stream.append(ids(30, 9))
    shared = [d.delta_token_ids for d in stream.generate(GREEDY)]
    other = make_engine().open_stream(pin=pin)
    other.append([3, 5])
    list(other.generate(GREEDY))
    other.append(ids(30, 9))
    assert shared == [d.delta_token_ids for d in other.generate(GREEDY)]


def test_a_pin_is_shared_again_after_parking(make_engine):
    answers, used = [], []
    for parks in (False, True):
        engine = make_engine()
        streams = [engine.open_stream(pin=ids(5 * BLOCK + 3)) for _ in range(4)]
        answer = []
        for turn in range(3):
            for number, stream in enumerate(streams):
                stream.append([turn, number])
                answer.append([d.delta_token_ids for d in stream.generate(GREEDY)])
            if parks:
                engine.park_idle_streams()
                assert engine.stats().num_used_blocks == 0
        answers.append(answer)
        for stream in streams:
            stream.rewind(stream.position - 2)  # brings it back
        used.append(engine.stats().num_used_blocks)
    assert answers[0] == answers[1]
    assert used[1] <= used[0], "less, by what had left the windows"


@pytest.mark.parametrize("length", [1, 2, 8, 9, 27, 61, 150])
def test_completions_share_their_prompt(make_engine, length):
    """Each is what a request of its own with that seed gives, and the prompt is computed once."""
    engine, prompt = make_engine(enable_prefix_caching=False), ids(length)
    several = SamplingParams(n=5, seed=40, max_tokens=12, ignore_eos=True)
    count, results = computed(engine, prompt, several)
    # All but the prompt's last token are computed once, it by each copy.
    assert count == length - 1 + 5 * 12
    for index in range(5):
        alone = SamplingParams(seed=40 + index, max_tokens=12, ignore_eos=True)
        assert complete(engine, prompt, alone)[0] == results[index]
    assert len({tuple(result) for result in results.values()}) == 5
    assert engine.stats().num_used_blocks == 0


def test_completions_that_do_not_fit_at_once(make_engine):
    engine = make_engine(kv_cache_memory_bytes=12 * BLOCK * 512)
    several = SamplingParams(n=8, seed=4, max_tokens=30, ignore_eos=True)
    prompt = ids(40)
    expected = complete(make_engine(), prompt, several)
    assert complete(engine, prompt, several) == expected
    engine.add_request("aborted", prompt, several)
    for _ in range(6):
        engine.step()
    engine.abort_request("aborted")
    engine.core.flush()
    assert engine.stats().num_used_blocks == 0
    assert engine.core.executor.parked_bytes() == (0, 0)


def test_scores_are_computed_in_full(make_engine):
    engine, prompt = make_engine(), ids(60)
    complete(engine, prompt)
    before = engine.stats()

    def score():
        engine.intake.add_scoring("score", prompt)
        return [entry for d in run_all() for entry in d.prompt_logprobs or ()]

    def run_all():
        deltas = []
        while engine.has_unfinished_requests():
            deltas += engine.step()
        return deltas

    scores = score()
    assert len(scores) == 59
    assert engine.stats().num_computed_tokens - before.num_computed_tokens == 59
    stats = engine.stats()
    assert stats.num_prefix_hits == before.num_prefix_hits
    assert stats.num_prefix_queries == before.num_prefix_queries
    assert [entry.logprob for entry in scores] == [entry.logprob for entry in score()]
    # As does a request that wants them beside its answer.
    assert computed(engine, prompt, SamplingParams(max_tokens=1, prompt_logprobs=0))[0] == 60


def test_an_embedding_begins_where_the_cache_ends(make_engine):
    engine, prompt = make_engine(), ids(60)

    def embed(prompt):
        [output] = engine.embed(prompt, use_tqdm=False)
        return output.outputs.embedding

    expected = embed(prompt)
    before = engine.stats()
    assert embed(prompt) == pytest.approx(expected, abs=1e-6)
    assert engine.stats().num_prefix_hits - before.num_prefix_hits == 56
    assert engine.stats().num_computed_tokens - before.num_computed_tokens == 4
    assert engine.stats().num_used_blocks == 0


@pytest.mark.parametrize("blocks", [10, 16, 200])
def test_results_are_those_without_caching(make_engine, blocks):
    """Many prompts that begin alike, with streams among them, in caches of all sizes."""
    generator = random.Random(blocks)
    engines = [
        make_engine(enable_prefix_caching=on, kv_cache_memory_bytes=blocks * BLOCK * 512)
        for on in (True, False)
    ]
    stems = [ids(generator.randrange(5, 90), seed) for seed in range(4)]
    for start in range(0, 60, 6):
        prompts = []
        for number in range(6):
            stem = generator.choice(stems)
            stem = stem[: generator.randrange(1, len(stem) + 1)]
            prompts.append(stem + ids(generator.randrange(0, 12), start + number))
        results = []
        for engine in engines:
            streams = []
            for number, prompt in enumerate(prompts):
                if number % 3:
                    engine.add_request(str(number), prompt, GREEDY)
                else:
                    streams.append(stream := engine.open_stream())
                    stream.append(prompt)
            answers = [[d.delta_token_ids for d in s.generate(GREEDY)] for s in streams]
            for stream in streams:
                stream.close()
            results.append((answers, drain(engine)))
        assert results[0] == results[1]
    assert engines[0].stats().num_prefix_hits > 0
    assert engines[0].stats().num_computed_tokens < engines[1].stats().num_computed_tokens
