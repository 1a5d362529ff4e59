"""Ops that write and move K and V, and those between them, against references in float64."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.gpu.op_checks import (
    LIMITS,
    cache_dtypes,
    compare,
    dtypes,
    poisoned,
    same,
    short,
)
from benchmarks.gpu.sections import Section
from paged_stream import ops
from tests.ops import ops_reference as reference

HEADS, BLOCK_SIZE, BLOCKS = 3, 8, 9
# Rounding to 8 bits may go the other way where the exact value is near the middle.
_LIMITS_8BIT = 1e-2


def check_rotary_and_cache(section: Section) -> None:
    for dtype in dtypes(section.device):
        for cache_dtype in cache_dtypes(section.device):
            for head_dim, rotary_dim, interleaved in (
                (64, 64, False),
                (80, 20, False),
                (128, 64, True),
                (32, 0, False),
            ):
                kind = dtype, cache_dtype or dtype, head_dim, rotary_dim, interleaved
                label = (
                    f"rotary_and_cache {short(dtype)}, cache {short(kind[1])}, head_dim "
                    f"{head_dim}, rotary {rotary_dim}{' interleaved' * interleaved}"
                )
                section.attempt(label, _rotary_and_cache, section, label, *kind)


def _rotary_and_cache(
    section: Section,
    label: str,
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    head_dim: int,
    rotary_dim: int,
    interleaved: bool,
) -> None:
    num_tokens, group = 37, 2
    fused = torch.randn(num_tokens, HEADS * (group + 2), head_dim).to(dtype)
    heads = [HEADS * group, HEADS, HEADS]
    query, key, value = fused.double().split(heads, dim=1)
    tables = [_angles(num_tokens, rotary_dim) for _ in range(2)]
    slots = torch.randperm(BLOCKS * BLOCK_SIZE)[:num_tokens]
    slots[::5] = -1
    caches = [_cache(cache_dtype, head_dim) for _ in range(2)]
    on_device = fused.to(section.device)
    moved = [cache.to(section.device) for cache in caches]
    new_query, new_key, new_value = on_device.split(heads, dim=1)
    sink_query = torch.full_like(new_query, torch.nan).contiguous()
    ops.rotary_and_cache(
        new_query,
        sink_query,
        new_key,
        new_value,
        moved[0],
        moved[1],
        tables[0].to(section.device),
        tables[1].to(section.device),
        slots.to(section.device),
        interleaved,
    )
    limit = max(LIMITS[dtype], _LIMITS_8BIT if cache_dtype != dtype else 0.0)
    pairs = (
        ("query", new_query, reference.rotate(query, tables[0], interleaved), LIMITS[dtype]),
        ("sink query", sink_query, reference.rotate(query, tables[1], interleaved), LIMITS[dtype]),
        (
            "keys",
            _values(moved[0]),
            _written(caches[0], reference.rotate(key, tables[0], interleaved), slots),
            limit,
        ),
        ("values", _values(moved[1]), _written(caches[1], value, slots), limit),
    )
    for name, actual, expected, allowed in pairs:
        compare(section, f"{label}: {name}", actual, expected, allowed)


def check_moves(section: Section) -> None:
    """Gathering, scattering, turning and copying; what only moves is the same to the bit."""
    device = section.device
    for dtype in dict.fromkeys([*dtypes(device), *filter(None, cache_dtypes(device))]):
        for work in (_copied, _gathered, _turned):
            section.attempt(f"{work.__name__[1:]} {short(dtype)}", work, section, dtype)


def _slots() -> torch.Tensor:
    slots = torch.randperm(BLOCKS * BLOCK_SIZE)[:40]
    slots[3] = -1
    return slots


def _gathered(section: Section, dtype: torch.dtype) -> None:
    device = section.device
    k_cache, v_cache = (_cache(dtype, 64) for _ in range(2))
    slots = _slots()
    on_device = [x.to(device) for x in (k_cache, v_cache, slots)]
    size = 40 * HEADS * 64 * 4
    gathered = poisoned(
        device, size, partial(ops.gather_blocks, on_device[0], on_device[1], on_device[2])
    )
    for name, cache, rows in zip(("keys", "values"), (k_cache, v_cache), gathered, strict=True):
        same(section, f"gather_blocks {short(dtype)}: {name}", rows, _rows(cache, slots))
    targets = [_cache(dtype, 64) for _ in range(2)]
    moved = [target.to(device) for target in targets]
    ops.scatter_blocks(gathered[0], gathered[1], moved[0], moved[1], on_device[2])
    for target, actual, cache in zip(targets, moved, (k_cache, v_cache), strict=True):
        expected = _bytes(target).clone()
        kept = slots[slots >= 0]
        places = kept // BLOCK_SIZE, slice(None), kept % BLOCK_SIZE
        expected[places] = _bytes(cache)[places]
        same(section, f"scatter_blocks {short(dtype)}", _bytes(actual.cpu()), expected)


def _turned(section: Section, dtype: torch.dtype) -> None:
    k_cache, slots = _cache(dtype, 64), _slots()
    for interleaved in (False, True):
        table = _angles(len(slots), 32)
        actual = k_cache.clone().to(section.device)
        ops.rotary_reindex(actual, slots.to(section.device), table.to(section.device), interleaved)
        rows = reference.rotate(_values(_rows(k_cache, slots)), table, interleaved)
        limit = max(LIMITS.get(dtype, 0.0), 0.0 if dtype in LIMITS else _LIMITS_8BIT)
        compare(
            section,
            f"rotary_reindex {short(dtype)}{' interleaved' * interleaved}",
            _values(actual),
            _written(k_cache, rows, slots),
            limit,
        )


def _copied(section: Section, dtype: torch.dtype) -> None:
    whole = torch.stack([torch.stack([_cache(dtype, 16) for _ in range(2)]) for _ in range(3)])
    mapping = torch.tensor([[0, 4], [0, 5], [7, 2]])
    actual = whole.to(section.device)
    ops.copy_blocks(actual, mapping.to(section.device))
    expected = _bytes(whole).clone()
    expected[:, :, mapping[:, 1]] = expected[:, :, mapping[:, 0]]
    same(section, f"copy_blocks {short(dtype)}", _bytes(actual.cpu()), expected)


def check_elementwise(section: Section) -> None:
    for dtype in dtypes(section.device):
        for rows, size in ((1, 576), (37, 4096), (5, 48), (300, 5120)):
            for work in (_silu_and_mul, _add_rms_norm):
                label = f"{work.__name__[1:]} {short(dtype)} [{rows}, {size}]"
                section.attempt(label, work, section, label, dtype, rows, size)


def _silu_and_mul(section: Section, label: str, dtype: torch.dtype, rows: int, size: int) -> None:
    gate_up = torch.randn(rows, 2 * size).to(dtype)
    gate, up = gate_up.double().chunk(2, dim=1)
    run = partial(ops.silu_and_mul, gate_up.to(section.device))
    output = poisoned(section.device, gate_up.nbytes // 2, run)
    compare(section, label, output, torch.nn.functional.silu(gate) * up, LIMITS[dtype])


def _add_rms_norm(section: Section, label: str, dtype: torch.dtype, rows: int, size: int) -> None:
    device = section.device
    x, delta = (torch.randn(rows, size).to(dtype) for _ in range(2))
    weight = torch.randn(size)
    total = (x.double() + delta.double()).to(dtype).double()
    for add, source in ((None, x.double()), (delta.to(device), total)):
        residual = x.to(device, copy=True)
        run = partial(ops.add_rms_norm, residual, add, weight.to(device), 1e-6)
        normed = poisoned(device, residual.nbytes, run)
        expected = source * (source.square().mean(1, keepdim=True) + 1e-6).rsqrt() * weight
        compare(section, label, normed, expected, LIMITS[dtype])
        compare(section, f"{label}: residual", residual, source, LIMITS[dtype])


def check_rotary_table(section: Section) -> None:
    positions = torch.tensor([0, 1, 4095, 10_000, 4_000_000, 2**33 + 1])
    frequencies = 500_000.0 ** (-torch.arange(0, 64, dtype=torch.float64) / 64)
    angles = positions[:, None].double() * frequencies
    expected = torch.cat([angles.cos(), angles.sin()], dim=1) * 0.5
    table = poisoned(
        section.device,
        expected.numel() * 4,
        lambda: ops.rotary_table(positions.to(section.device), frequencies.to(section.device), 0.5),
    )
    compare(section, "rotary_table up to position 2^33", table, expected, 1e-6)


def _angles(count: int, rotary_dim: int) -> torch.Tensor:
    angles = torch.rand(count, rotary_dim // 2, dtype=torch.float64) * 6.28
    return torch.cat([angles.cos(), angles.sin()], dim=1).float()


def _cache(dtype: torch.dtype, head_dim: int) -> torch.Tensor:
    rows = torch.randn(BLOCKS, HEADS, BLOCK_SIZE, head_dim)
    return reference.quantize(rows) if dtype == torch.int8 else rows.to(dtype)


def _values(cache: torch.Tensor) -> torch.Tensor:
    """What rows of a cache stand for, float64."""
    cache = cache.cpu()
    return reference.dequantize(cache) if cache.dtype == torch.int8 else cache.float().double()


def _written(cache: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """What a cache stands for once ``rows``, float64, are written to it, rounded as it rounds."""
    if cache.dtype == torch.int8:
        rows = reference.dequantize(reference.quantize(rows))
    else:
        rows = rows.to(cache.dtype).float().double()
    values, kept = _values(cache), slots >= 0
    values[slots[kept] // BLOCK_SIZE, :, slots[kept] % BLOCK_SIZE] = rows[kept]
    return values


def _rows(cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Rows of a cache as they are, [N, heads, row_size]; zeros for slot -1."""
    rows = _bytes(cache)[slots.clamp(min=0) // BLOCK_SIZE, :, slots.clamp(min=0) % BLOCK_SIZE]
    rows[slots < 0] = 0
    return rows.view(cache.dtype)


def _bytes(cache: torch.Tensor) -> torch.Tensor:
    """A view as bytes: torch indexes few dtypes of 8 bits."""
    return cache.view(torch.uint8)
