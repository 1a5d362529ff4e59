"""Whole steps of large models on one device: decoding, prefill, long streams, many streams.

Weights and K and V are random; what is computed means nothing, and takes as long as if it did.
"""

from __future__ import annotations

import gc
from functools import partial

import torch

from benchmarks.gpu import models
from benchmarks.gpu.sections import Case, Section
from benchmarks.gpu.timing import BANDWIDTH, MATRIX_RATE, device_seconds, share, wall_seconds
from paged_stream.models.decoder import Decoder
from paged_stream.worker.model_runner import ModelRunner

_POSITION = 10_000
_WANTED = {1: "75%"}  # of what the bandwidth allows, by the streams; 80% for more


def decode_cases(section: Section) -> list[Case]:
    shape = section.sizes.shapes[0]
    cases = [
        Case(name, partial(_decode, name=name, shape=shape, batch=batch, visible=visible))
        for batch, visible in section.sizes.decode_batches
        for name in [f"{shape} decode, {batch} x {visible} keys"]
    ]
    for name, work in ((f"{shape} positions", _positions), (f"{shape} streams", _throughput)):
        cases.append(Case(name, partial(work, shape=shape)))
    return cases


def prefill_cases(section: Section) -> list[Case]:
    shape = section.sizes.shapes[0]
    name = f"{shape} prefill of {section.sizes.prompt} tokens"
    return [Case(name, partial(_prefill, name=name, shape=shape))]


def recompute_cases(section: Section) -> list[Case]:
    return [
        Case(f"{shape} cache {cache}", partial(_recompute, shape=shape, cache=cache))
        for shape in section.sizes.shapes
        for cache in reversed(section.sizes.caches)
    ]


def decode_runner(model: Decoder, batch: int, visible: int) -> ModelRunner:
    """A runner with recorded steps and room for these streams."""
    # What the last one held is free once it is collected.
    gc.collect()
    torch.cuda.empty_cache()
    width = models.blocks_of(visible)
    return models.make_runner(model, batch * width, max_num_seqs=batch, graph_width=width)


def decode_seconds(
    section: Section, runner: ModelRunner, batch: int, visible: int, position: int = _POSITION
) -> float:
    """Time of one decode step as the engine sees it: prepared, launched and read."""
    step = models.step_of(batch, visible, position, num_steps=models.NUM_STEPS)
    repeats = max(2, section.sizes.repeats // 4)
    return wall_seconds(lambda: runner.execute(step), repeats=repeats) / models.NUM_STEPS


def _decode(section: Section, *, name: str, shape: str, batch: int, visible: int) -> None:
    model = models.random_model(shape, section.device)
    runner = decode_runner(model, batch, visible)
    num_bytes = models.weight_bytes(model) + batch * models.kv_bytes(model, visible)

    def measure() -> float:
        seconds = decode_seconds(section, runner, batch, visible)
        section.record(
            name,
            value=seconds * 1e3,
            unit="ms",
            share=share(num_bytes, seconds, section.ceiling(BANDWIDTH)),
            of="bytes / bandwidth",
            wanted=_WANTED.get(batch, "80%"),
        )
        return seconds

    seconds = section.attempt(name, measure)
    gap = f"{name}: host gap"
    if seconds is None:
        section.skip(gap, "the step was not measured")
    else:
        section.attempt(gap, _host_gap, section, gap, runner, batch, visible, seconds)


def _host_gap(
    section: Section, name: str, runner: ModelRunner, batch: int, visible: int, seconds: float
) -> None:
    """The part of a step in which the device waits: launches queued behind each other leave out
    what the host does in between."""
    step = models.step_of(batch, visible, _POSITION, num_steps=models.NUM_STEPS)
    repeats = max(2, section.sizes.repeats // 4)
    busy = device_seconds(partial(runner.submit, step), repeats=repeats, runs=4)
    gap = max(0.0, 1 - busy / models.NUM_STEPS / seconds)
    section.record(name, value=gap * 100, unit="%", wanted="< 5%")


def _prefill_seconds(section: Section, model: Decoder, num_tokens: int, visible: int) -> float:
    """Time of a prompt in one chunk, its first token included."""
    runner = models.make_runner(model, models.blocks_of(visible, num_tokens))
    step = models.step_of(1, visible, 0, chunk=num_tokens)
    repeats = max(2, section.sizes.repeats // 4)
    return wall_seconds(lambda: runner.execute(step), repeats=repeats)


def _prefill(section: Section, *, name: str, shape: str) -> None:
    model = models.random_model(shape, section.device)
    config, num_tokens = model.config, section.sizes.prompt
    visible = min(num_tokens, 4096)
    window = models.window_of(visible)
    seconds = _prefill_seconds(section, model, num_tokens, visible)
    tables = config.vocab_size * config.hidden_size
    pairs = sum(window.num_visible(position) for position in range(num_tokens))
    flops = 2 * (config.num_parameters - 2 * tables) * num_tokens + 2 * tables
    flops += 4 * config.query_size * config.num_layers * pairs
    section.record(
        name,
        value=num_tokens / seconds,
        unit="tokens/s",
        share=share(flops, seconds, section.ceiling(MATRIX_RATE)),
        of=MATRIX_RATE,
        wanted="55%",
    )


def _positions(section: Section, *, shape: str) -> None:
    """Decoding far into a stream takes the time and memory that it takes at first."""
    visible = section.sizes.caches[-1]
    runner = decode_runner(models.random_model(shape, section.device), 1, visible)
    for position in (10_000, 4_000_000):
        seconds = decode_seconds(section, runner, 1, visible, position)
        section.record(f"{shape} decode at position {position:,}", value=seconds * 1e3, unit="ms")
        torch.cuda.synchronize()
        section.record(
            f"{shape} memory at position {position:,}",
            value=torch.cuda.memory_allocated(section.device) / 2**30,
            unit="GiB",
        )


def _recompute(section: Section, *, shape: str, cache: int) -> None:
    """Streaming against a sliding window that is computed anew for every token."""
    model = models.random_model(shape, section.device)
    runner = decode_runner(model, 1, cache)
    streaming = decode_seconds(section, runner, 1, cache)
    del runner
    again = _prefill_seconds(section, model, cache, cache)
    for name, seconds in (("streaming", streaming), ("recomputing", again)):
        name = f"{shape} {name}, cache {cache}"
        section.record(name, value=seconds * 1e3, unit="ms/token")
    section.record(
        f"{shape} streaming over recomputing, cache {cache}",
        value=again / streaming,
        unit="x",
        shape=shape,
        cache=cache,
    )


def _throughput(section: Section, *, shape: str) -> None:
    """Tokens per second of all streams together."""
    model = models.random_model(shape, section.device)
    gc.collect()
    torch.cuda.empty_cache()
    visible = min(1024, section.sizes.caches[-1])
    per_stream = models.blocks_of(visible) * models.BLOCK_SIZE
    per_stream *= model.config.kv_bytes_per_token(torch.bfloat16)
    room = int(torch.cuda.mem_get_info(section.device)[0] * 0.85) // per_stream
    capacity = min(room, section.sizes.most_streams)
    counts = [1 << power for power in range(capacity.bit_length()) if 1 << power < capacity]
    runner = decode_runner(model, capacity, visible)
    for count in [*counts, capacity]:
        name = f"{shape}, {count} streams of {visible} keys"
        section.attempt(name, _record_rate, section, name, runner, shape, count, visible)


def _record_rate(
    section: Section, name: str, runner: ModelRunner, shape: str, count: int, visible: int
) -> None:
    seconds = decode_seconds(section, runner, count, visible)
    rate = count / seconds
    section.record(name, value=rate, unit="tokens/s", shape=shape, streams=count)
