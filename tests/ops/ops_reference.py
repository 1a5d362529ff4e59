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

    def live_positions(self) -> list[int]:
        if not self.chunk:
            return []
        first, last = self.query_positions()[0], self.seq_len - 1
        sinks = range(min(self.window.num_sink_tokens, self.seq_len))
        start = self.window.window_start(first)
        return sorted(set(sinks) | set(range(start, last + 1)))

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
) -> Tensor:
    """Attention of ``query`` [T, num_heads, head_dim] over the sequences' dense keys."""
    outputs, begin = [], 0
    for sequence in sequences:
        rows = slice(begin, begin := begin + sequence.chunk)
        if sequence.chunk:
            outputs.append(_attend(query[rows], sink_query[rows], sequence, scale, alibi_slopes))
    return torch.cat(outputs) if outputs else query.double()


def _attend(query, sink_query, sequence, scale, alibi_slopes) -> Tensor:
    full = sequence.window.window_size is None
    num_sinks = 0 if full else sequence.window.num_sink_tokens
    window_size = FULL_ATTENTION if full else sequence.window.window_size
    j = torch.tensor(sequence.live_positions())
    p = torch.tensor(sequence.query_positions())[:, None]
    visible = (j <= p) & ((j < num_sinks) | (j > p - window_size))
    keys, values = (
        x.double().repeat_interleave(query.shape[1] // x.shape[1], dim=1)
        for x in (sequence.keys, sequence.values)
    )
    scores, sink_scores = (
        torch.einsum("phd,jhd->hpj", q.double(), keys) * scale for q in (query, sink_query)
    )
    scores = torch.where(j < num_sinks, sink_scores, scores)
    if alibi_slopes is not None:
        clamped = p.clamp(max=num_sinks + window_size - 1)
        distance = torch.where(j < num_sinks, clamped, p) - j
        scores = scores - distance * alibi_slopes.double()[:, None, None]
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return torch.einsum("hpj,jhd->phd", weights, values)


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
