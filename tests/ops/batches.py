"""Builds paged batches whose every slot that must not be read holds NaN."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paged_stream import ops
from paged_stream.ops import BatchTensors, Scoring
from paged_stream.scheduler.sink_window import SinkWindow
from tests.ops import ops_reference as reference

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@dataclass
class Batch:
    """Arguments of `paged_attention`, with the dense sequences that they stand for."""

    sequences: list[reference.Sequence]
    query: Tensor
    sink_query: Tensor | None
    k_cache: Tensor
    v_cache: Tensor
    block_table: Tensor
    scale: float
    alibi_slopes: Tensor | None
    softcap: float | None
    local_window: int | None

    def tensors(self) -> BatchTensors:
        """The batch as ops take it; which tokens these are does not matter."""
        block_size = self.k_cache.shape[2]
        rings = [s.ring_blocks(block_size) for s in self.sequences]
        positions, sink_positions, slots = [], [], []
        for row, s, ring in zip(self.block_table.tolist(), self.sequences, rings, strict=True):
            for position in range(s.seq_len - s.chunk, s.seq_len):
                block, offset = divmod(position, block_size)
                positions.append(position)
                sink_positions.append(s.window.sink_position(position))
                slots.append(row[s.window.column(block, ring, block_size)] * block_size + offset)
        sinks, windows = zip(*(s.sizes() for s in self.sequences), strict=True)
        chunks = torch.tensor([0] + [s.chunk for s in self.sequences])
        return BatchTensors(
            token_ids=torch.zeros(len(positions), dtype=torch.int64),
            positions=torch.tensor(positions, dtype=torch.int64),
            sink_positions=torch.tensor(sink_positions, dtype=torch.int64),
            slot_mapping=torch.tensor(slots, dtype=torch.int64),
            block_table=self.block_table,
            query_start_loc=chunks.cumsum(0).int(),
            seq_lens=torch.tensor([s.seq_len for s in self.sequences], dtype=torch.int64),
            num_sink_tokens=torch.tensor(sinks, dtype=torch.int32),
            window_size=torch.tensor(windows, dtype=torch.int32),
            window_floor=torch.tensor(
                [s.window.window_floor for s in self.sequences], dtype=torch.int64
            ),
            ring_blocks=torch.tensor(rings, dtype=torch.int32),
        )

    def scoring(self) -> Scoring:
        return Scoring(self.scale, self.alibi_slopes, self.softcap, self.local_window)

    def arguments(self) -> tuple:
        caches = self.k_cache, self.v_cache
        return self.query, self.sink_query, *caches, self.tensors(), self.scoring()

    def expected(self) -> Tensor:
        sink_query = self.query if self.sink_query is None else self.sink_query
        return reference.paged_attention(
            self.query,
            sink_query,
            self.sequences,
            self.scale,
            self.alibi_slopes,
            self.softcap,
            self.local_window,
        )

    def arguments_on(self, device: str | torch.device) -> tuple:
        """The arguments on another device, rows of queries strided as they are here."""

        def moved(x: Any) -> Any:
            if isinstance(x, tuple):
                return type(x)(*map(moved, x))
            if not isinstance(x, Tensor):
                return x
            to = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)
            return to.copy_(x)

        return tuple(moved(x) for x in self.arguments())

    def check(self, device: str = "cpu") -> Tensor:
        arguments = self.arguments() if device == "cpu" else self.arguments_on(device)
        out = ops.paged_attention(*arguments).cpu()
        assert out.dtype == self.query.dtype and out.is_contiguous()
        tolerance = TOLERANCE[out.dtype]
        torch.testing.assert_close(out.double(), self.expected(), atol=tolerance, rtol=tolerance)
        return out


def empty_cache(*shape_and_dtype) -> Tensor:
    """A cache of the given sizes, the last head_dim, and dtype. Whatever is read of it is NaN."""
    *shape, head_dim, dtype = shape_and_dtype
    if dtype == torch.int8:  # four bytes of -1 are the float32 of a scale that is NaN
        return torch.full((*shape, head_dim + 4), -1, dtype=dtype)
    return torch.full((*shape, head_dim), math.nan).to(dtype)


def _stored(rows: Tensor, cache_dtype: torch.dtype | None) -> Tensor:
    """Rows [..., head_dim] as a cache of the dtype holds them."""
    if cache_dtype is None:
        return rows
    return reference.quantize(rows) if cache_dtype == torch.int8 else rows.to(cache_dtype)


def _restored(rows: Tensor, cache_dtype: torch.dtype | None) -> Tensor:
    """Rows as attention is to see them after they were stored."""
    if cache_dtype is None:
        return rows
    stored = _stored(rows, cache_dtype)
    return reference.dequantize(stored) if cache_dtype == torch.int8 else stored.double()


def make_batch(
    sequences: list[reference.Sequence],
    *,
    num_kv_heads: int = 2,
    group: int = 3,
    head_dim: int = 64,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    cache_dtype: torch.dtype | None = None,
    with_sink_query: bool = True,
    with_alibi: bool = False,
    softcap: float | None = None,
    local_window: int | None = None,
    seed: int = 0,
) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    num_heads = num_kv_heads * group
    width = max(s.window.num_sink_blocks(block_size) + s.ring_blocks(block_size) for s in sequences)
    num_blocks = len(sequences) * width + 2
    kv_cache = empty_cache(2, num_blocks, num_kv_heads, block_size, head_dim, cache_dtype or dtype)
    free = torch.randperm(num_blocks, generator=generator).tolist()
    block_table = torch.full((len(sequences), width), -1, dtype=torch.int32)
    for row, sequence in enumerate(sequences):
        positions = torch.tensor(sequence.live_positions(), dtype=torch.int64)
        sequence.keys = randn(len(positions), num_kv_heads, head_dim)
        sequence.values = randn(len(positions), num_kv_heads, head_dim)
        ring = sequence.ring_blocks(block_size)
        # What lives for other layers' sake, but nobody here sees, is NaN too.
        seen = sequence.visible(local_window).any(0)
        for block in (positions // block_size).unique().tolist():
            column = sequence.window.column(block, ring, block_size)
            assert block_table[row, column] < 0, "two live blocks in one column"
            block_table[row, column] = free.pop()
            inside = seen & (positions // block_size == block)
            slots = positions[inside] % block_size
            for cache, rows in zip(kv_cache, (sequence.keys, sequence.values), strict=True):
                stored = _stored(rows[inside], cache_dtype).transpose(0, 1)
                # As bytes: torch cannot assign float8 by index.
                to = cache[block_table[row, column]].view(torch.uint8)
                to[:, slots] = stored.contiguous().view(torch.uint8)
        sequence.keys = _restored(sequence.keys, cache_dtype)
        sequence.values = _restored(sequence.values, cache_dtype)
    num_tokens = sum(s.chunk for s in sequences)
    # Queries are views of a fused projection: rows are strided.
    fused = randn(num_tokens, num_heads + 2 * num_kv_heads, head_dim)
    return Batch(
        sequences=sequences,
        query=fused[:, :num_heads],
        sink_query=randn(num_tokens, num_heads, head_dim) if with_sink_query else None,
        k_cache=kv_cache[0],
        v_cache=kv_cache[1],
        block_table=block_table,
        scale=head_dim**-0.5,
        alibi_slopes=0.5 ** torch.arange(1, num_heads + 1) if with_alibi else None,
        softcap=softcap,
        local_window=local_window,
    )


def sequence(
    sinks: int, window: int | None, seq_len: int, chunk: int, extra_ring: int = 0, floor: int = 0
) -> reference.Sequence:
    return reference.Sequence(SinkWindow(sinks, window, floor), seq_len, chunk, extra_ring)
