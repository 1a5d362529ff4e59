"""Whole steps of large models on one device: decoding, prefill, long streams, many streams.

Weights and K and V are random; what is computed means nothing, and takes as long as if it did.
"""

from __future__ import annotations

import gc
from functools import partial

import torch

from benchmarks.gpu import models
from benchmarks.gpu.sections import Section
from benchmarks.gpu.timing import (
    copy_bandwidth,
    device_seconds,
    matrix_rate,
    synchronize,
    wall_seconds,
)
from paged_stream.models.decoder import Decoder
from paged_stream.worker.model_runner import ModelRunner

_POSITION = 10_000


def measure_shapes(section: Section) -> None:
    bandwidth = section.attempt("copy bandwidth", copy_bandwidth, section)
    rate = section.attempt("matrix rate", matrix_rate, section)
    if bandwidth is None or rate is None:
        return
    first, *others = section.sizes.shapes
    section.attempt(first, _measure_all, section, first, bandwidth, rate)
    _free()
    for shape in others:
        section.attempt(shape, _measure_caches, section, shape)
        _free()


def _measure_all(section: Section, shape: str, bandwidth: float, rate: float) -> None:
    model = models.random_model(shape, section.device)
    for batch, visible in section.sizes.decode_batches:
        name = f"{shape} decode, {batch} x {visible} keys"
        section.attempt(name, _decode, section, name, model, batch, visible, bandwidth)
    section.attempt(f"{shape} prefill", _prefill, section, shape, model, rate)
    for cache in section.sizes.caches:
        section.attempt(f"{shape} cache {cache}", _recompute, section, shape, model, cache)
    section.attempt(f"{shape} positions", _positions, section, shape, model)
    section.attempt(f"{shape} streams", _throughput, section, shape, model)


def _measure_caches(section: Section, shape: str) -> None:
    model = models.random_model(shape, section.device)
    for cache in reversed(section.sizes.caches):
        section.attempt(f"{shape} cache {cache}", _recompute, section, shape, model, cache)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _decode_runner(model: Decoder, batch: int, visible: int) -> ModelRunner:
    width = models.blocks_of(visible)
    return models.make_runner(model, batch * width, max_num_seqs=batch, graph_width=width)


def _decode_seconds(
    section: Section, runner: ModelRunner, batch: int, visible: int, position: int
) -> float:
    """Time of one decode step as the engine sees it: prepared, launched and read."""
    step = models.step_of(batch, visible, position, num_steps=models.NUM_STEPS)
    repeats = max(2, section.sizes.repeats // 4)
    return (
        wall_seconds(section.device, lambda: runner.execute(step), repeats=repeats)
        / models.NUM_STEPS
    )


def _decode(
    section: Section, label: str, model: Decoder, batch: int, visible: int, bandwidth: float
) -> None:
    runner = _decode_runner(model, batch, visible)
    seconds = _decode_seconds(section, runner, batch, visible, _POSITION)
    num_bytes = models.weight_bytes(model) + batch * models.kv_bytes(model, visible)
    section.record(
        label,
        value=seconds * 1e3,
        unit="ms",
        share=num_bytes / bandwidth / seconds,
        of="bytes / bandwidth",
        wanted="80%",
    )
    step = models.step_of(batch, visible, _POSITION, num_steps=models.NUM_STEPS)
    # Launches queued behind each other, so that the device has always something to do.
    busy = device_seconds(
        section.device,
        partial(runner.submit, step),
        repeats=max(2, section.sizes.repeats // 4),
        runs=4,
    )
    busy /= models.NUM_STEPS
    section.record(
        f"{label}: host gap",
        value=max(0.0, 1 - busy / seconds) * 100,
        unit="%",
        wanted="< 5%",
    )
    del runner
    _free()


def _prefill_seconds(section: Section, model: Decoder, num_tokens: int, visible: int) -> float:
    """Time of a prompt in one chunk, its first token included."""
    blocks = models.blocks_of(visible, num_tokens)
    runner = models.make_runner(model, blocks)
    step = models.step_of(1, visible, 0, chunk=num_tokens)
    repeats = max(2, section.sizes.repeats // 4)
    return wall_seconds(section.device, lambda: runner.execute(step), repeats=repeats)


def _prefill(section: Section, shape: str, model: Decoder, rate: float) -> None:
    config, num_tokens = model.config, section.sizes.prompt
    visible = min(num_tokens, 4096)
    window = models.window_of(visible)
    seconds = _prefill_seconds(section, model, num_tokens, visible)
    tables = config.vocab_size * config.hidden_size
    pairs = sum(window.num_visible(position) for position in range(num_tokens))
    flops = 2 * (config.num_parameters - 2 * tables) * num_tokens + 2 * tables
    flops += 4 * config.query_size * config.num_layers * pairs
    section.record(
        f"{shape} prefill of {num_tokens} tokens",
        value=num_tokens / seconds,
        unit="tokens/s",
        share=flops / seconds / rate,
        of="matrix rate",
        wanted="55%",
    )
    _free()


def _positions(section: Section, shape: str, model: Decoder) -> None:
    """Decoding far into a stream takes the time and memory that it takes at first."""
    visible = section.sizes.caches[-1]
    runner = _decode_runner(model, 1, visible)
    for position in (10_000, 4_000_000):
        seconds = _decode_seconds(section, runner, 1, visible, position)
        section.record(f"{shape} decode at position {position:,}", value=seconds * 1e3, unit="ms")
        if section.device.type == "cuda":
            synchronize(section.device)
            section.record(
                f"{shape} memory at position {position:,}",
                value=torch.cuda.memory_allocated(section.device) / 2**30,
                unit="GiB",
            )
    del runner
    _free()


def _recompute(section: Section, shape: str, model: Decoder, cache: int) -> None:
    """Streaming against a sliding window that is computed anew for every token."""
    runner = _decode_runner(model, 1, cache)
    streaming = _decode_seconds(section, runner, 1, cache, _POSITION)
    del runner
    again = _prefill_seconds(section, model, cache, cache)
    section.record(f"{shape} streaming, cache {cache}", value=streaming * 1e3, unit="ms/token")
    section.record(f"{shape} recomputing, cache {cache}", value=again * 1e3, unit="ms/token")
    section.record(
        f"{shape} streaming over recomputing, cache {cache}",
        value=again / streaming,
        unit="x",
        shape=shape,
        cache=cache,
    )
    _free()


def _throughput(section: Section, shape: str, model: Decoder) -> None:
    """Tokens per second of all streams together, up to what the memory holds."""
    visible = min(1024, section.sizes.caches[-1])
    per_stream = models.blocks_of(visible) * models.BLOCK_SIZE
    per_stream *= model.config.kv_bytes_per_token(torch.bfloat16)
    capacity = 4
    if section.device.type == "cuda":
        capacity = int(torch.cuda.mem_get_info(section.device)[0] * 0.85) // per_stream
    counts = [1 << power for power in range(capacity.bit_length()) if 1 << power < capacity]
    runner = _decode_runner(model, capacity, visible)
    for count in [*counts, capacity]:
        seconds = _decode_seconds(section, runner, count, visible, _POSITION)
        section.record(
            f"{shape}, {count} streams of {visible} keys",
            value=count / seconds,
            unit="tokens/s",
            shape=shape,
            streams=count,
        )
    del runner
    _free()
