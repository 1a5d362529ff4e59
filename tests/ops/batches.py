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

# Absolute and relative, of an element; and relative, of a row in norm.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
# Sequences with a boundary of every kind. Batches of `even` weights show a key that is missing at
# any of them, and what must not be read beside it is NaN.
EDGES: dict[str, list[tuple]] = {
    # Keys are split in two to four, of which one ends a key before a multiple of 16. Sinks end with
    # a step of 64 keys, one key earlier or one later, and so does a list of keys.
    "splits": [
        *((4, 570, 4_000_037, 1), (63, 500, 9000, 1), (64, 480, 9000, 1), (65, 60, 9000, 1)),
        *((0, None, 1100, 1), (0, None, 65, 1), (20, 30, 12, 1)),
    ],
    # Chunks of several tiles, with windows that fill, move and begin among the sinks. With groups
    # of three, the keys that all of the first tile's rows see are [65, 191) of its list.
    "tiles": [(44, 147, 5000, 45), (20, 30, 50, 50), (65, 90, 400, 23), (0, None, 70, 40)],
    "floors": [(20, 60, 5000, 1, 0, 4970), (20, 60, 5000, 30, 1, 4955), (20, 60, 41, 10, 0, 25)],
}


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


def worst_row_error(actual: Tensor, expected: Tensor) -> float:
    """The largest relative error, in norm, of a token's row of a head; NaN if any is NaN."""
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    return float(((actual - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


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
    even: bool = False,
    seed: int = 0,
) -> Batch:
    """A batch of random numbers.

    Args:
        even: every key counts. Queries are so small that weights hardly differ, and in a long list
            of keys, values next to boundaries are large. So the loss of a key, or a neighbour in
            its place, changes a row by more than rounding does. Scores are negative, so that a
            row of zeros, which stands for no key, would weigh more than any key.
    """
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
        if even:
            sequence.keys -= _EVEN_KEY_SHIFT
            sequence.values[_planted(sequence, local_window)] *= _PLANTED_SIZE
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
    sink_query = randn(num_tokens, num_heads, head_dim) if with_sink_query else None
    for query in (fused, sink_query):
        if even and query is not None:
            query += 1
            query *= _EVEN_QUERY_SIZE
    return Batch(
        sequences=sequences,
        query=fused[:, :num_heads],
        sink_query=sink_query,
        k_cache=kv_cache[0],
        v_cache=kv_cache[1],
        block_table=block_table,
        scale=head_dim**-0.5,
        alibi_slopes=0.5 ** torch.arange(1, num_heads + 1) if with_alibi else None,
        softcap=softcap,
        local_window=local_window,
    )


_EVEN_QUERY_SIZE, _EVEN_KEY_SHIFT, _PLANTED_SIZE = 0.25, 2.0, 8.0
_FEW_KEYS = 1500  # without large values among them, a missing one is still seen


def _planted(sequence: reference.Sequence, local_window: int | None) -> Tensor:
    """Which of live_positions() have large values, bool [positions]."""
    visible = sequence.visible(local_window)
    is_sink = torch.tensor(sequence.live_positions()) < sequence.sizes()[0]
    planted = torch.zeros(visible.shape[1], dtype=torch.bool)
    if len(planted) <= _FEW_KEYS:
        return planted
    for row, keys in enumerate(visible):
        seen = keys.nonzero().flatten()
        num_sinks, last = int(is_sink[seen].sum()), len(seen) - 1
        # Both ends of the sinks and of the window.
        marks = [0, max(num_sinks - 1, 0), min(num_sinks, last), last]
        if row == 0:  # both sides of each edge of a step or split, in a tile that starts here
            counts = {max(1, min(32, len(seen) // least)) for least in (256, 512)}
            edges = set(range(64, len(seen), 64))
            edges |= {len(seen) * i // count for count in counts for i in range(1, count)}
            marks += [edge - side for edge in edges for side in (0, 1)]
        planted[seen[marks]] = True
    return planted


def sequence(
    sinks: int, window: int | None, seq_len: int, chunk: int, extra_ring: int = 0, floor: int = 0
) -> reference.Sequence:
    return reference.Sequence(SinkWindow(sinks, window, floor), seq_len, chunk, extra_ring)
