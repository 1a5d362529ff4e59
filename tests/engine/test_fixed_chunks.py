"""A request's results are the same bits whatever runs beside it, and however its prompt is cut."""

from __future__ import annotations

import random

import pytest

from paged_stream import EngineConfig, SamplingParams

CHUNKS = {"chunk_size": 8, "enable_prefix_caching": False}
SETTINGS = {"chunks as they come": {}, "chunks of a size": CHUNKS}
COMPANY = {
    "small budget": {"max_num_batched_tokens": 16},
    "large budget": {"max_num_batched_tokens": 64},
    "alone": {"max_num_seqs": 1},
    "little memory": {"kv_cache_memory_bytes": 10 << 13},  # two streams: others wait for memory
}


def prompt(generator: random.Random) -> list[int]:
    return [generator.randrange(2, 97) for _ in range(generator.randint(2, 90))]


def results(engine, prompts, prompt_logprobs=0) -> list[tuple]:
    """Of each request: its tokens and log-probabilities, if asked for the prompt's too."""
    found: dict[str, tuple] = {}
    for index, token_ids in enumerate(prompts):
        params = SamplingParams(
            max_tokens=4 + index % 9,
            seed=index,
            logprobs=0,
            prompt_logprobs=prompt_logprobs,
            ignore_eos=True,
        )
        engine.add_request(str(index), token_ids, params)
        found[str(index)] = ([], [])
    while engine.has_unfinished_requests():
        for delta in engine.step():
            tokens, logprobs = found[delta.request_id]
            tokens += delta.delta_token_ids
            for entries in (delta.prompt_logprobs, delta.logprobs):
                logprobs += [entry.logprob for entry in entries or ()]
        engine.core.scheduler.check_integrity()
    return list(found.values())


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=list(SETTINGS))
@pytest.mark.parametrize("company", COMPANY.values(), ids=list(COMPANY))
def test_bits_do_not_depend_on_the_company(make_engine, company, settings):
    generator = random.Random(0)
    prompts = [prompt(generator) for _ in range(24)]
    expected = results(make_engine(**settings), prompts)
    assert results(make_engine(**(settings | company)), prompts) == expected


def test_bits_do_not_depend_on_chunks_or_hits(make_engine):
    generator = random.Random(2)
    beginnings = [prompt(generator) for _ in range(3)]
    prompts = [beginnings[index % 3] + prompt(generator) for index in range(18)]
    expected = results(make_engine(enable_prefix_caching=False), prompts, None)
    engine = make_engine(enable_prefix_caching=True)
    assert results(engine, prompts, None) == expected
    assert engine.stats().num_prefix_hits > 0
    for size in (1, 3, 17):
        chunks = {"chunk_size": size, "enable_prefix_caching": False}
        assert results(make_engine(**chunks), prompts, None) == expected


def embeddings(engine, prompts) -> list[list[float]]:
    return [output.outputs.embedding for output in engine.embed(prompts, use_tqdm=False)]


def test_bits_of_embeddings_do_not_depend_on_the_company(make_engine):
    generator = random.Random(1)
    prompts = [prompt(generator) for _ in range(24)]
    expected = embeddings(make_engine(**CHUNKS), prompts)
    for company in COMPANY.values():
        assert embeddings(make_engine(**(CHUNKS | company)), prompts) == expected


def test_chunks_end_at_multiples_of_their_size(make_engine):
    engine = make_engine(max_num_seqs=4, max_num_batched_tokens=12, **CHUNKS)
    chunks: dict[int, list[int]] = {}
    execute = engine.core.executor.execute

    def watch(output):
        for scheduled in output.sequences:
            chunks.setdefault(scheduled.seq_id, []).append(len(scheduled.token_ids))
        return execute(output)

    engine.core.executor.execute = watch
    results(engine, [list(range(2, 2 + length)) for length in (5, 8, 30, 17)])
    prefills = [
        list(lengths[: -(-length // 8)])
        for length, lengths in zip((5, 8, 30, 17), chunks.values(), strict=True)
    ]
    assert prefills == [[5], [8], [8, 8, 8, 6], [8, 8, 1]]


def test_a_chunk_must_fit_beside_the_others():
    with pytest.raises(ValueError, match="chunk_size must be <= 25, .* got 26"):
        EngineConfig(model="m", max_num_seqs=8, max_num_batched_tokens=32, chunk_size=26)
    config = EngineConfig(model="m", max_num_batched_tokens=32, chunk_size=26)
    assert config.actual_max_num_seqs == 7


def test_streams_keep_room_for_chunks(make_engine):
    """A stream that has generated takes whole chunks again, though the cache is full."""
    engine = make_engine(kv_cache_memory_bytes=10 << 13, **CHUNKS)
    streams = [engine.open_stream() for _ in range(3)]
    params = SamplingParams(max_tokens=3, ignore_eos=True, temperature=0.0)
    for _ in range(3):
        for stream in streams:
            stream.append(list(range(2, 60)))
        turns = [stream.generate(params) for stream in streams]
        assert [sum(len(delta.delta_token_ids) for delta in turn) for turn in turns] == [3, 3, 3]
        engine.core.scheduler.check_integrity()
