"""Recorded decode steps, on the CPU: a double plays steps back as they were recorded."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from paged_stream import LLM, SamplingParams
from paged_stream.executor.local import LocalExecutor
from paged_stream.worker.cuda_graphs import DecodeGraphs, GraphLimits, ladder, padding_rows
from paged_stream.worker.decode_loop import split_tensors
from paged_stream.worker.worker import Worker
from tests.reference import random_ids, tiny_llama


class Playback:
    """Plays the same work on the same tensors."""

    def __init__(self) -> None:
        self.num_recorded = self.num_played = 0

    def record(self, work):
        work()
        self.num_recorded += 1

        def play() -> None:
            self.num_played += 1
            work()

        return play


@pytest.mark.parametrize(
    ("num_rows", "sizes"),
    [
        (1, [1]),
        (2, [1, 2]),
        (7, [1, 2, 4, 7]),
        (8, [1, 2, 4, 8]),
        (24, [1, 2, 4, 8, 16, 24]),
        (27, [1, 2, 4, 8, 16, 24, 27]),
    ],
)
def test_sizes_that_are_recorded(num_rows, sizes):
    assert ladder(num_rows) == sizes


LIMITS = GraphLimits(num_rows=3, table_width=5, num_steps=4, padding_block=17, block_size=8)


def test_rows_that_fill_up_share_no_memory():
    tensors = split_tensors(padding_rows(3, LIMITS))
    for index, tensor in enumerate(tensors):
        tensor.fill_(3)
        assert not any(bool((other == 3).all()) for other in tensors[index + 1 :] if other.numel())


def test_a_step_of_filled_rows_is_told_of_no_other_block():
    seen = []
    DecodeGraphs(LIMITS, seen.append, Playback(), torch.device("cpu"))
    assert sorted(len(batch.num_left) for batch in seen) == [1, 2, 3]
    for batch in seen:
        assert set(batch.input.block_table.flatten().tolist()) == {17, -1}
        assert not batch.num_left.any() and (batch.input.slot_mapping == -1).all()


@pytest.mark.parametrize(
    ("change", "fits"),
    [({}, True), ({"num_rows": 2}, False), ({"table_width": 4}, False), ({"num_steps": 3}, False)],
)
def test_what_does_not_fit_is_refused(change, fits):
    batch = padding_rows(3, LIMITS)
    assert dataclasses.replace(LIMITS, **change).take(batch) == fits


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = tiny_llama(0)
    model.save_pretrained(folder)
    return model, folder


def make_llm(folder, **settings) -> LLM:
    defaults: dict[str, Any] = {
        "num_sink_tokens": 4,
        "window_size": 24,
        "block_size": 8,
        "max_num_seqs": 6,
        "max_num_batched_tokens": 32,
        "dtype": "float32",
        "device": "cpu",
        "kv_cache_memory_bytes": 1 << 20,
    }
    return LLM(str(folder), **(defaults | settings))


def requests(model):
    """Prompts and parameters of rows that end at different times and draw in different ways."""
    prompts = [random_ids(model, count, seed=count) for count in (3, 30, 61, 12, 40)]
    return prompts, [
        SamplingParams(temperature=0.0, max_tokens=40),
        SamplingParams(temperature=0.9, seed=3, max_tokens=17),
        SamplingParams(temperature=0.0, max_tokens=5, stop_token_ids=[5, 9, 33]),
        SamplingParams(temperature=1.1, top_p=0.8, top_k=20, min_p=0.01, seed=8, max_tokens=33),
        SamplingParams(temperature=0.7, repetition_penalty=1.2, seed=1, max_tokens=9),
    ]


def local_worker(llm: LLM) -> Worker:
    assert isinstance(llm.core.executor, LocalExecutor)
    return llm.core.executor._worker


def record(llm: LLM, playback: Playback, **limits) -> None:
    """Let an engine on the CPU play steps back as one on CUDA does."""
    worker = local_worker(llm)
    cache = worker.cache_plan
    values = {
        "num_rows": 6,
        "table_width": 6,
        "num_steps": 8,
        "padding_block": cache.num_blocks,
        "block_size": 8,
    }
    worker._runner.record_graphs(GraphLimits(**(values | limits)), playback)


@pytest.mark.parametrize(("num_steps", "runs_ahead"), [(1, False), (3, False), (8, True)])
def test_tokens_are_those_of_steps_that_are_not_recorded(model_folder, num_steps, runs_ahead):
    model, folder = model_folder
    prompts, params = requests(model)
    expected = make_llm(folder, num_decode_steps=1).generate(prompts, params, use_tqdm=False)
    llm, playback = make_llm(folder, num_decode_steps=num_steps), Playback()
    record(llm, playback)
    llm.core.executor.runs_ahead = runs_ahead
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert playback.num_recorded == len(ladder(6)) and playback.num_played > 20
    for one, other in zip(outputs, expected, strict=True):
        assert one.outputs[0].token_ids == other.outputs[0].token_ids
        assert one.outputs[0].finish_reason == other.outputs[0].finish_reason
    # Nobody else's block was written, nor the one that fills up.
    cache = local_worker(llm)._runner.kv_cache.tensor
    assert not cache[:, :, llm.cache_plan.num_blocks].any()


def test_streams_with_wider_rows_run_unrecorded(model_folder):
    model, folder = model_folder
    ids, params = random_ids(model, 90), SamplingParams(temperature=0.0, max_tokens=20)
    answers = []
    for table_width in (None, 6):
        llm, playback = make_llm(folder, num_decode_steps=4), Playback()
        if table_width is not None:
            record(llm, playback, table_width=table_width)
        with llm.open_stream(num_sink_tokens=30, window_size=60) as stream:
            stream.append(ids)
            answers.append([i for d in stream.generate(params) for i in d.delta_token_ids])
    assert answers[0] == answers[1] and playback.num_played == 0
