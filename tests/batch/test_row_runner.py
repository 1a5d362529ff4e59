"""Rows on one engine: as many at a time as it can take, and in an order that shares the most."""

from __future__ import annotations

import asyncio
import random

import pytest

from paged_stream import EngineConfig, EngineStoppedError, SamplingParams
from paged_stream.batch.engine import start_engine
from paged_stream.batch.prompts import encode
from paged_stream.batch.row_runner import KeyedRow, RowRunner
from paged_stream.batch.row_task import REQUEST, RowTask
from tests.batch.corpora import ENGINE, config, files, run_here, texts, write_lines


@pytest.fixture
def start(folder):
    """Starts engines for tasks; they are closed in the end."""
    engines = []

    def start(task, **settings):
        config = EngineConfig(model=str(folder), **(ENGINE | settings))
        engines.append(start_engine(config, task))
        return engines[-1]

    yield start
    for engine in engines:
        asyncio.run(engine.engine.close())


def scores(prompts, *, key=0):
    return [KeyedRow((key, i), {"prompt": prompt}) for i, prompt in enumerate(prompts)]


SCORE = RowTask(task="score", prompt_column="prompt", sampling_params=SamplingParams())
GENERATE = RowTask(task="generate", sampling_params=SamplingParams(max_tokens=5))


def test_a_slow_row_holds_up_its_own_job_only(start):
    engine, in_order, reports = start(SCORE), [], []

    async def run(runner, name, rows):
        results = await runner.run(rows)
        in_order.append(name)
        return results

    async def all_jobs():
        runner = RowRunner(engine, SCORE, reports.append)
        jobs = [run(runner, "slow", scores(["a" * 20000, "abc"]))]
        jobs += [run(runner, i, scores(texts(6), key=i)) for i in range(8)]
        return await asyncio.gather(*jobs, runner.run([]))

    slow, *others, nothing = asyncio.run(all_jobs())
    assert [result["prompt_tokens"] for result in slow] == [20000, 3] and nothing == []
    assert all("perplexity" in result for results in others for result in results)
    assert in_order[-1] == "slow", "the others were to overtake it"
    assert sum(report.num_engines for report in reports) == 1
    assert sum(report.num_rows for report in reports) == 50
    assert sum(report.num_tokens for report in reports) > 20000


def test_an_engine_has_enough_rows_and_no_more(start):
    """So that a step never waits for the next row, and memory does not grow with the shard."""
    engine, most = start(GENERATE), 0
    generate = engine.engine.generate
    running: set[int] = set()

    async def counted(ids, params):
        nonlocal most
        running.add(params.seed)
        most = max(most, len(running))
        async for delta in generate(ids, params):
            yield delta
        running.remove(params.seed)

    engine.engine.generate = counted
    results = asyncio.run(RowRunner(engine, GENERATE).run(scores(texts(40))))
    assert len(results) == 40 and all(isinstance(result, dict) for result in results)
    assert most == 2 * ENGINE["max_num_seqs"]


def test_a_failed_engine_fails_what_it_had(start):
    engine = start(GENERATE)

    def fail(output):
        raise OSError("no device")

    engine.engine.core.executor.execute = fail
    runner = RowRunner(engine, GENERATE)

    async def run():
        jobs = [runner.run(scores(texts(20), key=i)) for i in range(3)]
        return await asyncio.gather(*jobs, return_exceptions=True)

    for _ in range(2):  # while it fails, and afterwards
        assert [type(error) for error in asyncio.run(run())] == [EngineStoppedError] * 3


def test_engines_that_cannot_do_the_task(bare_folder, folder):
    settings = {"model": str(bare_folder)} | ENGINE
    with pytest.raises(ValueError, match="task='generate' needs a tokenizer"):
        start_engine(EngineConfig(**settings), GENERATE)
    small = settings | {"model": str(folder), "kv_cache_memory_bytes": 5000}
    with pytest.raises(ValueError, match="kv_cache_memory_bytes"):
        start_engine(EngineConfig(**small), SCORE)


@pytest.mark.parametrize("prompt", ["text", [1, 2, 3], [{"role": "user", "content": "text"}]])
def test_token_ids_are_left_to_the_engine(start, prompt):
    """They were checked one by one here and there; the rest is text, which has none."""
    tokenizer = start(SCORE).tokenizer
    ids = encode(tokenizer, prompt)
    assert (ids is prompt) == (prompt == [1, 2, 3])
    assert all(type(token_id) is int for token_id in ids)


def prompts_with_beginnings(num_beginnings=16, each=6):
    """In a random order, prompts of which several begin in the same way."""
    beginnings = [text.ljust(64, "x")[:64] for text in texts(num_beginnings)]
    prompts = [first + rest for first in beginnings for rest in texts(each, 20)]
    random.Random(1).shuffle(prompts)
    return prompts


@pytest.mark.parametrize("task", ["generate", "openai"])
def test_prompts_that_begin_in_the_same_way_are_computed_once(start, monkeypatch, task):
    """Though they are far apart, and the cache is too small for the beginnings of all."""
    prompts = prompts_with_beginnings()
    rows, row_task = scores(prompts), GENERATE
    if task == "openai":
        bodies = [{"model": "any", "max_tokens": 5, "prompt": prompt} for prompt in prompts]
        names = map(str, range(len(prompts)))
        requests = [
            (name, "POST", "/v1/completions", body)
            for name, body in zip(names, bodies, strict=True)
        ]
        values = [dict(zip(REQUEST, request, strict=True)) for request in requests]
        rows = [KeyedRow((0, i), value) for i, value in enumerate(values)]
        row_task = RowTask(task="openai", sampling_params=SamplingParams())

    def run(**settings):
        engine = start(row_task, window_size=100, kv_cache_memory_bytes=150_000, **settings)

        async def run():
            results = await RowRunner(engine, row_task).run(rows)
            return results, (await engine.engine.stats()).num_computed_tokens

        return asyncio.run(run())

    expected, all_tokens = run(enable_prefix_caching=False)
    assert all(isinstance(result, dict) for result in expected)
    results, num_tokens = run()
    assert results == expected
    monkeypatch.setattr(RowRunner, "_by_beginning", lambda self, rows: range(len(rows)))
    results, tokens_as_they_come = run()
    assert results == expected
    assert num_tokens < 0.6 * all_tokens and num_tokens < 0.8 * tokens_as_they_come


def test_shared_beginnings_change_no_byte(folder, tmp_path):
    source = write_lines(
        tmp_path / "in.jsonl",
        [{"prompt": prompt} for prompt in prompts_with_beginnings()] + [{"prompt": ""}, {"x": 1}],
    )
    for name, is_shared in (("alone", False), ("shared", True)):
        engine = {"chunk_size": None, "enable_prefix_caching": is_shared}
        run_here(config(folder, tmp_path / name, source, engine=engine))
    assert files(tmp_path / "shared") == files(tmp_path / "alone")
