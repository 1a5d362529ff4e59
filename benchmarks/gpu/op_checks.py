"""Every op on a device against references in float64, on fresh random inputs.

The references and batches are the tests' own. Memory that an op is likely to get for its output is
filled with NaN before, and what it must not read or write holds NaN as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.gpu.sections import Section
from paged_stream import ops
from tests.ops import batches

FP8 = torch.float8_e4m3fn
# Largest relative error, ||out - reference|| / ||reference||, by the dtype that is computed in.
LIMITS = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
DECODE = [(4, 100, 4_000_037, 1), (4, 100, 60, 1), (0, 50, 777, 1), (0, None, 1300, 1)]
CHUNKS = [(4, 100, 30, 30), (7, 60, 5000, 45), (20, 30, 12, 12), (0, 50, 77, 0), (0, None, 70, 40)]
FLOORED = [(20, 60, 5000, 1, 0, 4970), (20, 60, 5000, 45, 1, 4955), (20, 60, 26, 1, 0, 25)]
LONG = [(4, 4092, 10_000, 1), (4, 4092, 5000, 300), (130, 2000, 4_000_000, 7)]


def dtypes(device: torch.device) -> list[torch.dtype]:
    """What the device's kernels compute in."""
    return list(LIMITS) if device.type == "cuda" else [torch.float32, torch.bfloat16]


def cache_dtypes(device: torch.device) -> list[torch.dtype | None]:
    return [None, torch.int8, FP8] if device.type == "cuda" else [None, torch.int8]


def compare(
    section: Section, name: str, actual: torch.Tensor, expected: torch.Tensor, limit: float
) -> None:
    """Record whether two tensors agree in norm, with nothing left unwritten."""
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    error = float((actual - expected).norm() / expected.norm().clamp(min=1e-30))
    is_finite = bool(actual.isfinite().all())
    section.record(name, ok=is_finite and error <= limit, error=f"{error:.2e}", limit=limit)


def compare_rows(
    section: Section, name: str, actual: torch.Tensor, expected: torch.Tensor, limit: float
) -> None:
    """Record whether each row of a head agrees in norm: the worst one decides."""
    error = batches.worst_row_error(actual, expected)
    section.record(name, ok=error <= limit, worst_row=f"{error:.2e}", limit=limit)


def same(section: Section, name: str, actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Record whether two tensors are equal to the bit."""
    one, other = (x.detach().cpu().contiguous().view(torch.uint8) for x in (actual, expected))
    section.record(name, ok=torch.equal(one, other))


def poisoned(device: torch.device, num_bytes: int, run: Callable[[], Any]) -> Any:
    """Run an op whose output probably lands where NaN was."""
    if num_bytes:
        torch.full((num_bytes // 4 + 1,), torch.nan, device=device)
    return run()


def check_attention(section: Section) -> None:
    device, tiny = section.device, section.sizes.repeats <= 2
    for dtype in dtypes(device):
        for cache_dtype in cache_dtypes(device):
            kinds: dict[str, list[tuple]] = {"decode": DECODE, "chunks": CHUNKS, "floors": FLOORED}
            if not tiny:
                kinds |= {"many": [*DECODE, *CHUNKS, *FLOORED] * 4}
                attend(section, "edges of long windows", LONG, dtype, cache_dtype, even=True)
            for kind, sequences in kinds.items():
                attend(section, kind, sequences, dtype, cache_dtype)
            check_edges(section, dtype, cache_dtype)
        for head_dim in (8, 40, 64) if tiny else (8, 16, 40, 64, 80, 96, 128, 192, 256):
            attend(section, f"head_dim {head_dim}", DECODE + CHUNKS, dtype, head_dim=head_dim)
        for heads, group in (
            ((1, 1), (2, 4)) if tiny else ((1, 1), (32, 1), (8, 4), (1, 8), (1, 71))
        ):
            attend(
                section,
                f"{heads} KV heads of {group}",
                DECODE + CHUNKS,
                dtype,
                num_kv_heads=heads,
                group=group,
            )
        for block_size in (8,) if tiny else (1, 8, 32, 64):
            attend(section, f"blocks of {block_size}", DECODE, dtype, block_size=block_size)
        for name, options in (
            ("ALiBi", {"with_alibi": True}),
            ("soft cap", {"softcap": 20.0}),
            ("local window", {"local_window": 20}),
            ("one rotation", {"with_sink_query": False}),
        ):
            attend(section, name, DECODE + CHUNKS + FLOORED, dtype, **options)


def check_edges(section: Section, dtype: torch.dtype, cache_dtype: torch.dtype | None) -> None:
    """Batches in which a key that is missing at any boundary changes a row visibly."""
    for kind, sequences in batches.EDGES.items():
        for local_window in (None, 102):
            name = f"edges of {kind}, {'no' if local_window is None else 'a'} local window"
            options = {"local_window": local_window, "even": True}
            attend(section, name, sequences, dtype, cache_dtype, **options)


def attend(
    section: Section,
    name: str,
    sequences: Sequence[tuple],
    dtype: torch.dtype,
    cache_dtype: torch.dtype | None = None,
    **options: Any,
) -> None:
    in_fp8 = cache_dtype is FP8
    batch = batches.make_batch(
        [batches.sequence(*arguments) for arguments in sequences],
        dtype=dtype,
        cache_dtype=None if in_fp8 else cache_dtype,
        seed=len(name),
        **options,
    )
    if in_fp8:
        for one in batch.sequences:
            assert one.keys is not None and one.values is not None
            one.keys, one.values = (x.to(FP8).to(dtype) for x in (one.keys, one.values))
        batch.k_cache, batch.v_cache = batch.k_cache.to(FP8), batch.v_cache.to(FP8)
    expected = batch.expected()
    arguments = batch.arguments_on(section.device)
    label = f"attention {name}, {short(dtype)}"
    if cache_dtype is not None:
        label += f", cache {short(cache_dtype)}"

    def run() -> None:
        output = poisoned(
            section.device, expected.numel() * 4, lambda: ops.paged_attention(*arguments)
        )
        compare_rows(section, label, output, expected, LIMITS[dtype])

    section.attempt(label, run)


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
