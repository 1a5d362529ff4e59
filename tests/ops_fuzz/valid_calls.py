"""Valid calls of every op, small and fast to make. Batches are made by the real `lay_out_batch`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from paged_stream import ops
from paged_stream.layers.blocks import BLOCK_FORMATS, Blocks, pack_blocks, packed_bytes
from paged_stream.scheduler.sink_window import SinkWindow

OPS = torch.ops.paged_stream
Draw = Callable[[st.SearchStrategy], Any]
# Sizes of all models here. Quantised weights need multiples of 32.
HEADS, KV_HEADS, HEAD_DIM, DIM = 4, 2, 8, 32
QKV_SIZE = (HEADS + 2 * KV_HEADS) * HEAD_DIM
DTYPES = (torch.float32, torch.bfloat16)
KINDS = ("plain", *(name for name, kind in BLOCK_FORMATS.items() if kind.size == 32))


def uniform(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape).to(dtype)


def packed(out_features: int, in_features: int, kind: str, dtype: torch.dtype) -> Tensor:
    if kind == "plain":
        return OPS.pack_linear_weight(uniform(out_features, in_features, dtype=dtype))
    return pack_blocks([Blocks(kind, groups(out_features, in_features, kind))])


def groups(out_features: int, in_features: int, kind: str) -> Tensor:
    """The bytes of a quantised weight. Scales and mins are small numbers."""
    size, num_bytes, scales = BLOCK_FORMATS[kind]
    raw = torch.randint(0, 256, (out_features, in_features // size, num_bytes), dtype=torch.uint8)
    halves = torch.rand(*raw.shape[:2], (scales.stop - scales.start) // 2).half()
    raw[..., scales] = halves.view(torch.uint8)
    return raw.flatten(1)


class Step:
    """A step of a few sequences: its batch, its caches and its rotary tables."""

    def __init__(self, draw: Draw, *, chunks: bool = True) -> None:
        self.dtype = draw(st.sampled_from(DTYPES))
        self.cache_dtype = draw(st.sampled_from((self.dtype, torch.int8)))
        self.block_size = draw(st.sampled_from((1, 4, 16)))
        drawn = [self._sequence(draw, chunks) for _ in range(draw(st.integers(1, 3)))]
        self.columns = ops.SequenceColumns(*(list(x) for x in zip(*drawn, strict=True)))
        widths = self.columns.row_lengths
        self.num_blocks = sum(widths) + 1
        self.block_rows = torch.randperm(self.num_blocks, dtype=torch.int32)[: sum(widths)]
        self.num_tokens = sum(self.columns.lengths)
        self.token_ids = torch.randint(0, 99, (self.num_tokens,), dtype=torch.int32)

    def _sequence(self, draw: Draw, chunks: bool) -> tuple[int, ...]:
        length = draw(st.integers(1, 9 if chunks else 1))
        if draw(st.booleans()):
            start = draw(st.integers(0, 40))
            width = -(-(start + length + 1) // self.block_size)
            return length, start, 0, ops.FULL_ATTENTION, 0, width, width
        start = draw(st.sampled_from((0, 3, 17, 10**6, 2**40)))
        sinks, size = draw(st.integers(0, 5)), draw(st.integers(1, 20))
        floor = draw(st.sampled_from((0, start)))
        window = SinkWindow(sinks, size, floor if floor > sinks else 0)
        ring = window.ring_blocks(length + 1, self.block_size)
        width = window.num_sink_blocks(self.block_size) + ring
        return length, start, sinks, size, window.window_floor, ring, width

    def table(self) -> Tensor:
        return torch.tensor(self.columns)

    def batch(self) -> list[Tensor]:
        arguments = self.token_ids, self.block_rows, self.table(), self.block_size
        return OPS.lay_out_batch(*arguments)[0]

    def cache(self) -> Tensor:
        shape = self.num_blocks, KV_HEADS, self.block_size
        if self.cache_dtype != torch.int8:
            return uniform(*shape, HEAD_DIM, dtype=self.cache_dtype)
        rows = torch.randint(-127, 128, (*shape, HEAD_DIM + 4), dtype=torch.int8)
        rows[..., HEAD_DIM:] = uniform(*shape, 1).view(torch.int8)
        return rows

    def rows(self, *shape: int) -> Tensor:
        return uniform(self.num_tokens, *shape, dtype=self.dtype)

    def rotary(self) -> Tensor:
        return uniform(self.num_tokens, HEAD_DIM)


class Made:
    """What was laid out for a call, to be freed after it."""

    def __init__(self) -> None:
        self._frees: list[Callable[[], None]] = []

    def attention_layer(self, draw: Draw, dtype: torch.dtype) -> int:
        return self._kept("attention_layer", attention_layer_arguments(draw, dtype))

    def gated_mlp(self, draw: Draw, dtype: torch.dtype) -> int:
        return self._kept("gated_mlp", gated_mlp_arguments(draw, dtype))

    def decoder_layers(self, draw: Draw, dtype: torch.dtype) -> int:
        return self._kept("decoder_layers", decoder_layers_arguments(draw, self, dtype))

    def adapter(self, draw: Draw, dtype: torch.dtype) -> int:
        return self._kept("adapter", adapter_arguments(draw, dtype))

    def _kept(self, name: str, arguments: list) -> int:
        handle = getattr(OPS, f"lay_out_{name}")(*arguments)
        self.free_later(name, handle)
        return handle

    def free_later(self, name: str, handle: int) -> None:
        self._frees.append(lambda: getattr(OPS, f"free_{name}")(handle))

    def free(self) -> None:
        for free in self._frees:
            free()


def attention_layer_arguments(draw: Draw, dtype: torch.dtype) -> list:
    kind, with_bias = draw(st.sampled_from(KINDS)), draw(st.booleans())
    bias = [uniform(size, dtype=dtype) if with_bias else None for size in (QKV_SIZE, DIM)]
    slopes, softcap = draw(st.sampled_from(((None, 0.0), (uniform(HEADS), 0.0), (None, 5.0))))
    weights = [
        *(uniform(DIM), packed(QKV_SIZE, DIM, kind, dtype), bias[0]),
        *(packed(DIM, HEADS * HEAD_DIM, kind, dtype), bias[1], slopes),
    ]
    heads = [HEADS, KV_HEADS, HEAD_DIM]
    local_window = draw(st.sampled_from((0, 3)))
    return [weights, heads, 1e-5, False, 0.3, softcap, local_window, dtype == torch.bfloat16]


def gated_mlp_arguments(draw: Draw, dtype: torch.dtype) -> list:
    kind, with_bias = draw(st.sampled_from(KINDS)), draw(st.booleans())
    bias = [uniform(size, dtype=dtype) if with_bias else None for size in (64, DIM)]
    up, down = packed(64, DIM, kind, dtype), packed(DIM, 32, kind, dtype)
    return [[uniform(DIM), up, bias[0], down, bias[1]], 1e-5, dtype == torch.bfloat16]


def adapter_arguments(draw: Draw, dtype: torch.dtype) -> list:
    """For the two layers of `decoder_layers_arguments`."""
    sizes = [(DIM, QKV_SIZE), (HEADS * HEAD_DIM, DIM), (DIM, 64), (32, DIM)]
    weights, places = [], []
    for _ in range(draw(st.integers(1, 4))):
        layer, projection = draw(st.integers(0, 1)), draw(st.integers(0, 3))
        rank, (in_features, out_features) = draw(st.integers(1, 9)), sizes[projection]
        first = draw(st.integers(0, out_features - 1))
        columns = draw(st.integers(1, out_features - first))
        weights += [uniform(rank, in_features, dtype=dtype), uniform(rank, columns, dtype=dtype)]
        places += [layer, projection, first]
    return [weights, places, uniform(len(places) // 3), 2, dtype == torch.bfloat16]


def row_adapters(draw: Draw, count: int, rows: int) -> Tensor:
    return torch.randint(-1, count, (rows,), dtype=torch.int32)


def decoder_layers_arguments(draw: Draw, made: Made, dtype: torch.dtype) -> list:
    attention = [made.attention_layer(draw, dtype) for _ in range(2)]
    return [attention, [made.gated_mlp(draw, dtype) for _ in range(2)], [0, 1]]


def rotary_and_cache(draw: Draw, made: Made) -> list:
    step = Step(draw)
    qkv = step.rows(HEADS + 2 * KV_HEADS, HEAD_DIM)
    query, key, value = qkv.split([HEADS, KV_HEADS, KV_HEADS], dim=1)
    sinks = (step.rows(HEADS, HEAD_DIM), step.rotary()) if draw(st.booleans()) else (None, None)
    caches, slots = (step.cache(), step.cache()), step.batch()[3]
    return [query, sinks[0], key, value, *caches, step.rotary(), sinks[1], slots, False]


def paged_attention(draw: Draw, made: Made) -> list:
    step = Step(draw)
    sinks = step.rows(HEADS, HEAD_DIM) if draw(st.booleans()) else None
    slopes, softcap = draw(st.sampled_from(((None, 0.0), (uniform(HEADS), 0.0), (None, 5.0))))
    query, caches = step.rows(HEADS, HEAD_DIM), (step.cache(), step.cache())
    local_window = draw(st.sampled_from((0, 3)))
    return [query, sinks, *caches, step.batch(), 0.3, slopes, softcap, local_window]


def gather_blocks(draw: Draw, made: Made) -> list:
    step = Step(draw)
    rotary = step.rotary() if draw(st.booleans()) else None
    return [step.cache(), step.cache(), step.batch()[3], rotary, draw(st.booleans())]


def scatter_blocks(draw: Draw, made: Made) -> list:
    step = Step(draw)
    shape = step.num_tokens, KV_HEADS, HEAD_DIM + 4 * (step.cache_dtype == torch.int8)
    key, value = (torch.ones(shape, dtype=step.cache_dtype) for _ in range(2))
    rotary = step.rotary() if draw(st.booleans()) else None
    return [key, value, step.cache(), step.cache(), step.batch()[3], rotary, False]


def rotary_reindex(draw: Draw, made: Made) -> list:
    step = Step(draw)
    return [step.cache(), step.batch()[3], step.rotary(), draw(st.booleans())]


def copy_blocks(draw: Draw, made: Made) -> list:
    cache = uniform(2, 2, 5, 1, 4, 8, dtype=draw(st.sampled_from(DTYPES)))
    return [cache, torch.tensor([[0, 1], [2, 3], [0, 4]])]


def pack_linear_weight(draw: Draw, made: Made) -> list:
    return [uniform(draw(st.integers(1, 40)), 32, dtype=draw(st.sampled_from(DTYPES)))]


def quantized_parts(draw: Draw) -> list[Blocks]:
    """A weight of 256 columns, in one part or two."""
    kinds = draw(st.lists(st.sampled_from(sorted(BLOCK_FORMATS)), min_size=1, max_size=2))
    rows = [16] * (len(kinds) - 1) + [draw(st.integers(1, 40))]
    return [Blocks(k, groups(count, 256, k)) for k, count in zip(kinds, rows, strict=True)]


def quantized_weight_bytes(draw: Draw, made: Made) -> list:
    parts = quantized_parts(draw)
    return [[len(part.data) for part in parts], 256, ",".join(part.format for part in parts)]


def pack_quantized_weight(draw: Draw, made: Made) -> list:
    parts = quantized_parts(draw)
    size = packed_bytes([(part.format, len(part.data)) for part in parts], 256)
    out = torch.empty(size, dtype=torch.uint8)
    rows, formats = [len(part.data) for part in parts], ",".join(part.format for part in parts)
    index = draw(st.integers(0, len(parts) - 1))
    return [out, parts[index].data, 16 * index, rows, 256, formats]


def embedding_rows(draw: Draw, made: Made) -> list:
    parts = quantized_parts(draw)
    rows = sum(len(part.data) for part in parts)
    return [torch.randint(0, rows, (5,)), pack_blocks(parts), 256, draw(st.booleans())]


def linear(draw: Draw, made: Made) -> list:
    dtype, kind = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(KINDS))
    out_features, rows = draw(st.integers(1, 40)), draw(st.integers(0, 20))
    bias = uniform(out_features, dtype=dtype) if draw(st.booleans()) else None
    weight = packed(out_features, DIM, kind, dtype)
    return [uniform(rows, DIM, dtype=dtype), weight, bias, out_features, draw(st.booleans())]


def add_rms_norm(draw: Draw, made: Made) -> list:
    step = Step(draw)
    return [step.rows(DIM), step.rows(DIM) if draw(st.booleans()) else None, uniform(DIM), 1e-5]


def silu_and_mul(draw: Draw, made: Made) -> list:
    return [Step(draw).rows(2 * draw(st.integers(1, 40)))]


def lay_out_attention_layer(draw: Draw, made: Made) -> list:
    return attention_layer_arguments(draw, draw(st.sampled_from(DTYPES)))


def lay_out_gated_mlp(draw: Draw, made: Made) -> list:
    return gated_mlp_arguments(draw, draw(st.sampled_from(DTYPES)))


def lay_out_decoder_layers(draw: Draw, made: Made) -> list:
    return decoder_layers_arguments(draw, made, draw(st.sampled_from(DTYPES)))


def attention_layer(draw: Draw, made: Made) -> list:
    step = Step(draw)
    delta = step.rows(DIM) if draw(st.booleans()) else None
    sinks = step.rotary() if draw(st.booleans()) else None
    layer = made.attention_layer(draw, step.dtype)
    caches = step.cache(), step.cache()
    return [step.rows(DIM), delta, layer, step.rotary(), sinks, *caches, step.batch()]


def gated_mlp(draw: Draw, made: Made) -> list:
    step = Step(draw)
    delta = step.rows(DIM) if draw(st.booleans()) else None
    return [step.rows(DIM), delta, made.gated_mlp(draw, step.dtype)]


def decoder_layers(draw: Draw, made: Made) -> list:
    step = Step(draw)
    layers = made.decoder_layers(draw, step.dtype)
    sinks = [step.rotary(), step.rotary()] if draw(st.booleans()) else []
    k_caches, v_caches = ([step.cache(), step.cache()] for _ in range(2))
    rotary = [step.rotary(), step.rotary()]
    adapters = [made.adapter(draw, step.dtype) for _ in range(draw(st.integers(0, 2)))]
    rows = row_adapters(draw, len(adapters), step.num_tokens) if adapters else None
    caches = k_caches, v_caches
    return [step.rows(DIM), layers, rotary, sinks, *caches, step.batch(), adapters, rows]


def lay_out_adapter(draw: Draw, made: Made) -> list:
    return adapter_arguments(draw, draw(st.sampled_from(DTYPES)))


def free_adapter(draw: Draw, made: Made) -> list:
    return [made.adapter(draw, torch.float32)]


def add_adapters(draw: Draw, made: Made) -> list:
    rows, dtype = draw(st.integers(0, 5)), draw(st.sampled_from(DTYPES))
    adapters = [made.adapter(draw, dtype) for _ in range(draw(st.integers(0, 3)))]
    out, hidden = uniform(rows, QKV_SIZE, dtype=dtype), uniform(rows, DIM, dtype=dtype)
    return [out, hidden, adapters, row_adapters(draw, len(adapters), rows), 1, 0]


def lay_out_batch(draw: Draw, made: Made) -> list:
    step = Step(draw)
    return [step.token_ids, step.block_rows, step.table(), step.block_size]


def rotary_table(draw: Draw, made: Made) -> list:
    return [torch.tensor([0, 5, 2**40]), torch.rand(draw(st.integers(0, 8))).double(), 1.0]


def sample_tokens(draw: Draw, made: Made) -> list:
    rows = draw(st.integers(1, 3))

    def numbers(*allowed: float) -> Tensor:
        drawn = [draw(st.sampled_from(allowed)) for _ in range(rows)]
        return torch.tensor(drawn, dtype=torch.float64)

    top_k = [draw(st.sampled_from((-1, 0, 1, 7, 2**62))) for _ in range(rows)]
    sampling = [
        *(numbers(0.0, 0.7, 1e-5, 1e30), numbers(0.0, 0.2, 1.0), torch.tensor(top_k)),
        *(numbers(1e-9, 0.5, 1.0), torch.arange(rows)),
    ]
    logits = 10 * torch.randn(rows, draw(st.sampled_from((1, 63, 64, 200))))
    return [logits, sampling, torch.arange(rows)]


def advance_decode(draw: Draw, made: Made) -> list:
    step = Step(draw, chunks=False)
    rows = step.num_tokens
    left = torch.tensor([draw(st.integers(0, 3)) for _ in range(rows)])
    counts = torch.tensor([draw(st.integers(0, 2)) for _ in range(rows)])
    stops = torch.randint(-1, 6, (rows, 2))
    generated, sampled = torch.full((rows, 3), -1), torch.randint(0, 6, (rows,))
    return [sampled, generated, counts, left, stops, step.batch(), step.block_size]


def free_attention_layer(draw: Draw, made: Made) -> list:
    return [made.attention_layer(draw, torch.float32)]


def free_gated_mlp(draw: Draw, made: Made) -> list:
    return [made.gated_mlp(draw, torch.float32)]


def free_decoder_layers(draw: Draw, made: Made) -> list:
    return [made.decoder_layers(draw, torch.float32)]


def build_version(draw: Draw, made: Made) -> list:
    return []


def cpu_isa(draw: Draw, made: Made) -> list:
    return []


def set_cpu_isa(draw: Draw, made: Made) -> list:
    return [draw(st.sampled_from([OPS.cpu_isa(), "generic"]))]


MAKERS: dict[str, Callable[[Draw, Made], list]] = {
    maker.__name__: maker
    for maker in (
        *(rotary_and_cache, paged_attention, gather_blocks, scatter_blocks, rotary_reindex),
        *(copy_blocks, pack_linear_weight, pack_quantized_weight, linear, add_rms_norm),
        *(quantized_weight_bytes, embedding_rows),
        *(silu_and_mul, lay_out_attention_layer, free_attention_layer, attention_layer),
        *(lay_out_gated_mlp, free_gated_mlp, gated_mlp, lay_out_decoder_layers),
        *(free_decoder_layers, decoder_layers, lay_out_batch, rotary_table, sample_tokens),
        *(advance_decode, build_version, cpu_isa, set_cpu_isa),
        *(lay_out_adapter, free_adapter, add_adapters),
    )
}
