"""Decode attention alone, on the heads of Llama-2-7B: this engine's, xformers' and FlashInfer's.

Bytes are those of the visible K and V, queries and outputs, each once. The same cache is read by
all of them, through tables of shuffled blocks.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch

from benchmarks.gpu.models import BLOCK_SIZE, blocks_of, window_of
from benchmarks.gpu.sections import Section
from benchmarks.gpu.timing import copy_bandwidth, device_seconds
from paged_stream.attention.forward_batch import ForwardBatch
from paged_stream.attention.native import NativeBackend
from paged_stream.ops import BatchTensors, Scoring

_POSITION = 1_000_000


def measure_attention(section: Section) -> None:
    bandwidth = section.attempt("copy bandwidth", copy_bandwidth, section)
    for num_streams in section.sizes.streams:
        section.attempt(f"{num_streams} streams", _measure, section, num_streams, bandwidth)


class Batch:
    """Streams that decode, in a cache of one layer."""

    def __init__(self, section: Section, num_streams: int) -> None:
        device = section.device
        self.heads, self.head_dim = (32, 128) if device.type == "cuda" else (4, 32)
        self.visible = section.sizes.visible
        blocks, window = blocks_of(self.visible), window_of(self.visible)
        assert window.window_size is not None
        cache_shape = (num_streams * blocks, self.heads, BLOCK_SIZE, self.head_dim)
        self.k_cache, self.v_cache = (
            torch.empty(cache_shape, device=device, dtype=torch.bfloat16).normal_()
            for _ in range(2)
        )
        shape = (num_streams, self.heads, self.head_dim)
        self.query, self.sink_query = (
            torch.randn(shape, device=device).to(torch.bfloat16) for _ in range(2)
        )
        generator = torch.Generator().manual_seed(0)
        table = torch.randperm(num_streams * blocks, generator=generator).view(num_streams, blocks)
        ring = blocks - window.num_sink_blocks(BLOCK_SIZE)
        sinks, sizes, rings = (
            torch.full((num_streams,), value, dtype=torch.int32)
            for value in (window.num_sink_tokens, window.window_size, ring)
        )
        positions = torch.full((num_streams,), _POSITION)
        host = BatchTensors(
            token_ids=torch.zeros_like(positions),
            positions=positions,
            sink_positions=torch.full_like(positions, window.sink_position(_POSITION)),
            slot_mapping=torch.full_like(positions, -1),
            block_table=table.int(),
            query_start_loc=torch.arange(num_streams + 1, dtype=torch.int32),
            seq_lens=positions + 1,
            num_sink_tokens=sinks,
            window_size=sizes,
            window_floor=torch.zeros_like(positions),
            ring_blocks=rings,
        )
        self.tensors = BatchTensors(*(tensor.to(device) for tensor in host))
        self.step = ForwardBatch(tensors=self.tensors, has_gap=True, host=host)
        row = 2 * self.heads * self.head_dim
        self.num_bytes = num_streams * (2 * self.visible * row + 3 * row)

    def run(self, backend) -> torch.Tensor:
        return backend.forward(
            self.query,
            self.sink_query,
            self.k_cache,
            self.v_cache,
            self.step,
            Scoring(self.head_dim**-0.5),
        )


def _measure(section: Section, num_streams: int, bandwidth: float | None) -> None:
    batch = Batch(section, num_streams)
    native = NativeBackend()
    candidates: dict[str, Callable[[], torch.Tensor]] = {"native": lambda: batch.run(native)}
    makers = {"xformers": _xformers, "flashinfer": _flashinfer}
    for name, make in makers.items():
        label = f"{name}, {num_streams} streams"
        if section.device.type != "cuda" or importlib.util.find_spec(name) is None:
            section.record(label, skipped="it is not installed, or this is no CUDA device")
        elif (run := section.attempt(label, make, batch)) is not None:
            candidates[name] = run
    expected = batch.run(native).float()
    seconds: dict[str, float] = {}
    for name, run in candidates.items():
        label = f"{name}, {num_streams} streams of {batch.visible} keys"
        measured = section.attempt(
            label,
            lambda run=run: device_seconds(
                section.device, run, repeats=section.sizes.repeats, runs=4
            ),
        )
        if measured is None:
            continue
        seconds[name] = measured
        row = {"value": measured * 1e6, "unit": "us"}
        if bandwidth:
            row |= {"share": batch.num_bytes / measured / bandwidth, "of": "copy bandwidth"}
        if name == "native":
            row["wanted"] = "85%"
        section.record(label, **row)
        if name == "xformers":
            error = float((run().float() - expected).norm() / expected.norm())
            section.record(f"{label}: equals native", ok=error < 1e-2, error=f"{error:.2e}")
    for name in seconds.keys() - {"native"}:
        section.record(
            f"native over {name}, {num_streams} streams",
            value=seconds[name] / seconds["native"],
            unit="x",
            wanted=">= 1",
        )


def _xformers(batch: Batch) -> Callable[[], torch.Tensor]:
    from paged_stream.attention.xformers import XformersBackend

    backend = XformersBackend()
    batch.run(backend)
    return lambda: batch.run(backend)


def _flashinfer(batch: Batch) -> Callable[[], torch.Tensor]:
    """Its paged decode, which rotates queries and keys as it reads them: no sinks of their own."""
    import flashinfer

    device, count = batch.k_cache.device, len(batch.query)
    pages = -(-batch.visible // BLOCK_SIZE)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        torch.empty(256 << 20, dtype=torch.uint8, device=device), kv_layout="HND"
    )
    wrapper.plan(
        torch.arange(count + 1, dtype=torch.int32, device=device) * pages,
        batch.tensors.block_table[:, :pages].flatten().contiguous(),
        torch.full(
            (count,), batch.visible - (pages - 1) * BLOCK_SIZE, dtype=torch.int32, device=device
        ),
        batch.heads,
        batch.heads,
        batch.head_dim,
        BLOCK_SIZE,
        pos_encoding_mode="ROPE_LLAMA",
        q_data_type=torch.bfloat16,
        kv_data_type=torch.bfloat16,
    )
    wrapper.run(batch.query, (batch.k_cache, batch.v_cache))
    return lambda: wrapper.run(batch.query, (batch.k_cache, batch.v_cache))
