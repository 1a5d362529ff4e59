"""Attention alone: this engine's kernels, and those of others on the same keys.

Bytes are those of the visible K and V, queries and outputs, each once. Blocks lie shuffled in the
cache for the kernels that read blocks; torch's own attention is given K and V in one piece, which
is less than what a paged cache needs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from itertools import cycle

import torch

from benchmarks.gpu.models import BLOCK_SIZE, blocks_of, window_of
from benchmarks.gpu.sections import Case, Section
from benchmarks.gpu.timing import BANDWIDTH, MATRIX_RATE, device_seconds, share
from paged_stream.attention.forward_batch import ForwardBatch
from paged_stream.attention.native import NativeBackend
from paged_stream.ops import BatchTensors, Scoring

BF16, INT8, FP8 = torch.bfloat16, torch.int8, torch.float8_e4m3fn
_POSITION = 1_000_000
_UNCACHED_BYTES, _MOST_SETS = 256 << 20, 16
_WANTED = {1: "85%", 4: "80%"}  # of the copy bandwidth from 32 streams on, by the queries of a head
Run = Callable[[], torch.Tensor]


class Streams:
    """Streams in a cache of one layer, each with the same number of new tokens.

    Args:
        heads: KV heads, and query heads of each.
        visible: keys that the last token of each stream sees.
        chunk: new tokens of each; more than one of them are the whole stream so far.
        cache_dtype: of K and V; queries are bfloat16.
    """

    def __init__(
        self,
        device: torch.device,
        heads: tuple[int, int],
        head_dim: int,
        num_streams: int,
        visible: int,
        *,
        chunk: int = 1,
        cache_dtype: torch.dtype = BF16,
    ) -> None:
        self.num_kv_heads, self.group = heads
        self.num_heads = self.num_kv_heads * self.group
        self.head_dim, self.num_streams = head_dim, num_streams
        self.visible, self.chunk = visible, chunk
        position = _POSITION if chunk == 1 else chunk - 1  # of the last token
        width = blocks_of(visible, chunk)
        self.k_cache, self.v_cache = (
            _random_cache((num_streams * width, self.num_kv_heads), head_dim, cache_dtype, device)
            for _ in range(2)
        )
        shape = (num_streams * chunk, self.num_heads, head_dim)
        self.query, self.sink_query = (torch.randn(shape, device=device).to(BF16) for _ in range(2))
        host = _batch_tensors(num_streams, visible, chunk, position, width)
        self.tensors = BatchTensors(*(tensor.to(device) for tensor in host))
        self.step = ForwardBatch(tensors=self.tensors, has_gap=True, host=host)
        row_bytes = self.k_cache.shape[3] * self.k_cache.element_size()
        self.num_bytes = num_streams * 2 * visible * self.num_kv_heads * row_bytes
        self.num_bytes += 3 * self.query.nbytes

    def run(self, backend) -> torch.Tensor:
        caches = self.k_cache, self.v_cache
        scoring = Scoring(self.head_dim**-0.5)
        return backend.forward(self.query, self.sink_query, *caches, self.step, scoring)


def _random_cache(
    shape: tuple[int, int], head_dim: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Blocks [num_blocks, num_kv_heads, BLOCK_SIZE, row] of random numbers."""
    if dtype != INT8:
        blocks = torch.empty(*shape, BLOCK_SIZE, head_dim, dtype=BF16, device=device).normal_()
        return blocks.to(dtype)
    blocks = torch.randint(-127, 128, (*shape, BLOCK_SIZE, head_dim + 4), dtype=INT8, device=device)
    scale = torch.tensor([0.02]).view(INT8).to(device)
    blocks[..., head_dim:] = scale
    return blocks


def _batch_tensors(
    num_streams: int, visible: int, chunk: int, position: int, width: int
) -> BatchTensors:
    """What a step is told of the streams, on the host."""
    window = window_of(visible)
    assert window.window_size is not None
    generator = torch.Generator().manual_seed(0)
    table = torch.randperm(num_streams * width, generator=generator).view(num_streams, width)
    positions = torch.arange(position - chunk + 1, position + 1).repeat(num_streams)
    sink_positions = torch.tensor([window.sink_position(p) for p in positions.tolist()])
    sinks, sizes, rings = (
        torch.full((num_streams,), value, dtype=torch.int32)
        for value in (
            window.num_sink_tokens,
            window.window_size,
            width - window.num_sink_blocks(BLOCK_SIZE),
        )
    )
    seq_lens = torch.full((num_streams,), position + 1)
    return BatchTensors(
        token_ids=torch.zeros_like(positions),
        positions=positions,
        sink_positions=sink_positions,
        slot_mapping=torch.full_like(positions, -1),
        block_table=table.int(),
        query_start_loc=chunk * torch.arange(num_streams + 1, dtype=torch.int32),
        seq_lens=seq_lens,
        num_sink_tokens=sinks,
        window_size=sizes,
        window_floor=torch.zeros_like(seq_lens),
        ring_blocks=rings,
    )


def decode_cases(section: Section) -> list[Case]:
    """One token of each stream: multi-head and grouped, each cache, each kernel that is there."""
    cases = []
    for heads in section.sizes.heads:
        for count in section.sizes.streams:
            for dtype in (BF16,) if count == 1 else (BF16, INT8, FP8):
                name = f"{_heads(heads)}, {count} x {section.sizes.visible} keys"
                name += "" if dtype == BF16 else f", cache {'int8' if dtype == INT8 else 'fp8'}"
                run = partial(_decode, name=name, heads=heads, count=count, dtype=dtype)
                cases.append(Case(name, run))
    return cases


def prefill_cases(section: Section) -> list[Case]:
    """A prompt in one chunk, each token of which sees all before it."""
    return [
        Case(name, partial(_prefill, name=name, heads=heads))
        for heads in section.sizes.heads
        for name in [f"prefill kernel, {_heads(heads)}, {_prompt(section)} tokens"]
    ]


def _heads(heads: tuple[int, int]) -> str:
    return f"{heads[0]} KV heads x {heads[1]}"


def _prompt(section: Section) -> int:
    return min(4096, section.sizes.prompt)


def _decode(
    section: Section, *, name: str, heads: tuple[int, int], count: int, dtype: torch.dtype
) -> None:
    head_dim, visible = section.sizes.head_dim, section.sizes.visible
    streams = Streams(section.device, heads, head_dim, count, visible, cache_dtype=dtype)
    # So many caches by turns that none is found in the device's own from the time before.
    num_sets = min(_MOST_SETS, -(-_UNCACHED_BYTES // streams.num_bytes))
    sets = [streams]
    for _ in range(num_sets - 1):
        sets.append(Streams(section.device, heads, head_dim, count, visible, cache_dtype=dtype))
    bandwidth = section.ceiling(BANDWIDTH)
    makers: dict[str, Callable[[Streams], Run | None]] = {"native": _native}
    if dtype == BF16:
        makers |= {"torch sdpa": _sdpa, "xformers": _xformers, "flashinfer": _flashinfer}

    def measure(kernel: str) -> float | None:
        runs = [run for streams in sets if (run := makers[kernel](streams)) is not None]
        if not runs:
            section.skip(f"{kernel}, {name}", "it is not installed")
            return None
        turns = cycle(runs)
        seconds = device_seconds(
            lambda: next(turns)(), repeats=section.sizes.repeats, runs=max(4, num_sets)
        )
        wanted = {"wanted": _WANTED[heads[1]]} if kernel == "native" and count >= 32 else {}
        section.record(
            f"{kernel}, {name}",
            value=seconds * 1e6,
            unit="us",
            share=share(streams.num_bytes, seconds, bandwidth),
            of=BANDWIDTH,
            **wanted,
        )
        return seconds

    _compare(section, name, makers, measure)


def _prefill(section: Section, *, name: str, heads: tuple[int, int]) -> None:
    num_tokens = _prompt(section)
    streams = Streams(
        section.device, heads, section.sizes.head_dim, 1, num_tokens, chunk=num_tokens
    )
    rate = section.ceiling(MATRIX_RATE)
    # Two products of each pair of a query and a key that it sees.
    flops = 4 * streams.num_heads * streams.head_dim * num_tokens * (num_tokens + 1) / 2
    makers: dict[str, Callable[[Streams], Run | None]] = {"native": _native, "torch sdpa": _sdpa}

    def measure(kernel: str) -> float:
        run = makers[kernel](streams)
        assert run is not None
        seconds = device_seconds(run, repeats=section.sizes.repeats, runs=2)
        section.record(
            f"{kernel}, {name}",
            value=flops / seconds / 1e12,
            unit="TFLOP/s",
            share=share(flops, seconds, rate),
            of=MATRIX_RATE,
        )
        return seconds

    _compare(section, name, makers, measure)


def _compare(
    section: Section,
    name: str,
    kernels: dict[str, Callable[[Streams], Run | None]],
    measure: Callable[[str], float | None],
) -> None:
    """Measure the kernels; the engine's own first, and how many times as long the others take."""
    seconds = {kernel: section.attempt(f"{kernel}, {name}", measure, kernel) for kernel in kernels}
    for kernel in list(kernels)[1:]:
        both = seconds["native"], seconds[kernel]
        if both[0] and both[1]:
            ratio = both[1] / both[0]
            section.record(f"{kernel} over native, {name}", value=ratio, unit="x", wanted=">= 1")


def _native(streams: Streams) -> Run:
    backend = NativeBackend()
    return lambda: streams.run(backend)


def _sdpa(streams: Streams) -> Run:
    """torch's attention on K and V in one piece, without sinks of their own."""
    shape = (streams.num_streams, streams.num_kv_heads, streams.visible, streams.head_dim)
    key, value = (
        torch.empty(shape, dtype=BF16, device=streams.query.device).normal_() for _ in range(2)
    )
    query = streams.query.unflatten(0, (streams.num_streams, streams.chunk)).transpose(1, 2)
    attend = partial(
        torch.nn.functional.scaled_dot_product_attention,
        is_causal=streams.chunk > 1,
        enable_gqa=streams.group > 1,
    )
    return lambda: attend(query, key, value)


def _xformers(streams: Streams) -> Run | None:
    """The engine's other backend, which has to give the same."""
    if importlib.util.find_spec("xformers") is None:
        return None
    from paged_stream.attention.xformers import XformersBackend

    backend = XformersBackend()
    expected = streams.run(NativeBackend()).float()
    error = float((streams.run(backend).float() - expected).norm() / expected.norm())
    if not error < 1e-2:
        raise ArithmeticError(f"it differs from the native kernel by {error:.2e}")
    return lambda: streams.run(backend)


def _flashinfer(streams: Streams) -> Run | None:
    """Its paged decode, which rotates queries and keys as it reads them: no sinks of their own."""
    if importlib.util.find_spec("flashinfer") is None:
        return None
    import flashinfer

    device, count = streams.k_cache.device, streams.num_streams
    pages = -(-streams.visible // BLOCK_SIZE)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        torch.empty(256 << 20, dtype=torch.uint8, device=device), kv_layout="HND"
    )
    last = streams.visible - (pages - 1) * BLOCK_SIZE
    wrapper.plan(
        torch.arange(count + 1, dtype=torch.int32, device=device) * pages,
        streams.tensors.block_table[:, :pages].flatten().contiguous(),
        torch.full((count,), last, dtype=torch.int32, device=device),
        streams.num_heads,
        streams.num_kv_heads,
        streams.head_dim,
        BLOCK_SIZE,
        pos_encoding_mode="ROPE_LLAMA",
        q_data_type=BF16,
        kv_data_type=BF16,
    )
    return lambda: wrapper.run(streams.query, (streams.k_cache, streams.v_cache))
