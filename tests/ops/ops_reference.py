"""Dense references of every op, in float64 and loops: slow, obvious, independent of the kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paged_stream.scheduler.sink_window import SinkWindow

FULL_ATTENTION = 2**31 - 1


def rotate(x: Tensor, rotary: Tensor, interleaved: bool) -> Tensor:
    """Rotate ``x`` [N, heads, head_dim] by ``rotary`` [N, rotary_dim]; float64 result."""
    out = x.double().clone()
    half = rotary.shape[1] // 2
    cos, sin = rotary.double()[:, None, :half], rotary.double()[:, None, half:]
    first = slice(0, 2 * half, 2) if interleaved else slice(0, half)
    second = slice(1, 2 * half, 2) if interleaved else slice(half, 2 * half)
    a, b = out[..., first].clone(), out[..., second].clone()
    out[..., first] = a * cos - b * sin
    out[..., second] = b * cos + a * sin
    return out


def quantize(x: Tensor) -> Tensor:
    """Rows [..., head_dim] as those of an int8 cache, [..., head_dim + 4]."""
    largest = x.float().abs().amax(-1, keepdim=True)
    elements = (x.double() / largest.double().clamp(min=1e-300) * 127).round().to(torch.int8)
    scale = largest.div_(127)  # in place, because the quotient of an empty tensor has no view
    return torch.cat([elements, scale.view(torch.int8)], dim=-1)


def scales(rows: Tensor) -> Tensor:
    """Scales [..., 1] of the rows of an int8 cache, float64."""
    return rows[..., -4:].contiguous().view(torch.float32).double()


def dequantize(rows: Tensor) -> Tensor:
    """Elements [..., head_dim] of the rows of an int8 cache, float64."""
    return rows[..., :-4].double() * scales(rows)


@dataclass
class Sequence:
    """One sequence of a batch: its last ``chunk`` of ``seq_len`` tokens are computed."""

    window: SinkWindow
    seq_len: int
    chunk: int
    extra_ring: int = 0  # columns beyond what the chunk needs
    keys: Tensor | None = None  # of live_positions(), [positions, num_kv_heads, head_dim]
    values: Tensor | None = None

    def query_positions(self) -> range:
        return range(self.seq_len - self.chunk, self.seq_len)

    def sizes(self) -> tuple[int, int]:
        """num_sink_tokens and window_size as the ops take them."""
        if self.window.window_size is None:
            return 0, FULL_ATTENTION
        return self.window.num_sink_tokens, self.window.window_size

    def live_positions(self) -> list[int]:
        if not self.chunk:
            return []
        first, last = self.query_positions()[0], self.seq_len - 1
        sinks = range(min(self.window.num_sink_tokens, self.seq_len))
        start = self.window.window_start(first)
        return sorted(set(sinks) | set(range(start, last + 1)))

    def visible(self, local_window: int | None = None) -> Tensor:
        """Which of live_positions() each token of the chunk sees, bool [chunk, positions]."""
        num_sinks, window_size = self.sizes()
        j = torch.tensor(self.live_positions(), dtype=torch.int64)
        p = torch.tensor(self.query_positions(), dtype=torch.int64)[:, None]
        in_window = (j > p - window_size) & (j >= self.window.window_floor)
        visible = (j <= p) & ((j < num_sinks) | in_window)
        if local_window is not None:
            # Places in a cache that holds the visible keys alone, as the published algorithm sees.
            place = visible.cumsum(1)
            visible &= place > visible.sum(1, keepdim=True) - local_window
        return visible

    def ring_blocks(self, block_size: int) -> int:
        if self.window.window_size is None:
            return max(1, -(-self.seq_len // block_size)) + self.extra_ring
        return self.window.ring_blocks(max(self.chunk, 1), block_size) + self.extra_ring


def paged_attention(
    query: Tensor,
    sink_query: Tensor,
    sequences: list[Sequence],
    scale: float,
    alibi_slopes: Tensor | None = None,
    softcap: float | None = None,
    local_window: int | None = None,
) -> Tensor:
    """Attention of ``query`` [T, num_heads, head_dim] over the sequences' dense keys."""
    outputs, begin = [], 0
    for sequence in sequences:
        rows = slice(begin, begin := begin + sequence.chunk)
        if sequence.chunk:
            visible = sequence.visible(local_window)
            scores = _scores(query[rows], sink_query[rows], sequence, scale, alibi_slopes, softcap)
            weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
            assert sequence.values is not None
            values = _repeat_heads(sequence.values, query.shape[1])
            outputs.append(torch.einsum("hpj,jhd->phd", weights, values))
    return torch.cat(outputs) if outputs else query.double()


def _repeat_heads(x: Tensor, num_heads: int) -> Tensor:
    return x.double().repeat_interleave(num_heads // x.shape[1], dim=1)


def _scores(query, sink_query, sequence, scale, alibi_slopes, softcap) -> Tensor:
    num_sinks, _ = sequence.sizes()
    j = torch.tensor(sequence.live_positions())
    p = torch.tensor(sequence.query_positions())[:, None]
    keys = _repeat_heads(sequence.keys, query.shape[1])
    scores, sink_scores = (
        torch.einsum("phd,jhd->hpj", q.double(), keys) * scale for q in (query, sink_query)
    )
    scores = torch.where(j < num_sinks, sink_scores, scores)
    if alibi_slopes is not None:
        place = sequence.visible().sum(1, keepdim=True) - 1  # in a cache of what it sees
        distance = torch.where(j < num_sinks, place, p) - j
        scores = scores - distance * alibi_slopes.double()[:, None, None]
    return scores if softcap is None else softcap * (scores / softcap).tanh()


def gather_blocks(
    k_cache: Tensor, v_cache: Tensor, slots: Tensor, rotary: Tensor | None, interleaved: bool
) -> tuple[Tensor, Tensor]:
    block_size = k_cache.shape[2]
    shape = (len(slots), k_cache.shape[1], k_cache.shape[3])
    key, value = torch.zeros(shape).double(), torch.zeros(shape).double()
    for i, slot in enumerate(slots.tolist()):
        if slot >= 0:
            key[i] = k_cache[slot // block_size, :, slot % block_size]
            value[i] = v_cache[slot // block_size, :, slot % block_size]
    return (key if rotary is None else rotate(key, rotary, interleaved)), value


def scatter(cache: Tensor, rows: Tensor, slots: Tensor) -> Tensor:
    """A copy of ``cache`` with ``rows`` [N, heads, head_dim] at the slots, rounded once."""
    out, block_size = cache.clone(), cache.shape[2]
    for i, slot in enumerate(slots.tolist()):
        if slot >= 0:
            out[slot // block_size, :, slot % block_size] = rows[i].to(cache.dtype)
    return out
