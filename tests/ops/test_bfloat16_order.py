"""Products with bfloat16 weights add in one order, whatever the instruction set, to the last bit.

The oracle adds in the form of an AMX tile step: two sums per group, one of the first and one of the
second elements of pairs of inputs.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paged_stream import ops

_GROUP = 32
_SMALLEST = 2.0**-126  # normal float32
# Range of exponent bits: of everything, of products near the smallest and the largest number.
EXPONENTS = {
    "ordinary": range(117, 137),
    "any, infinities, NaN": range(256),
    "tiny": range(50, 80),
    "denormal": [0, 0, 60, 70],
    "huge": range(185, 194),
}


def numbers(rows: int, columns: int, exponents, generator: torch.Generator) -> torch.Tensor:
    """Random bfloat16 numbers; of those with the highest exponent, few: they spoil whole sums."""

    def draw(end: int) -> torch.Tensor:
        return torch.randint(end, (rows, columns), generator=generator)

    exponent = torch.tensor(exponents)[draw(len(exponents))]
    exponent = torch.where((exponent == 255) & (draw(64) > 0), 254, exponent)
    bits = draw(2) << 15 | exponent << 7 | draw(128)
    return bits.to(torch.uint16).view(torch.bfloat16)


def without_denormals(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x.abs() < _SMALLEST, x * 0.0, x)


def rounded(exact: torch.Tensor) -> torch.Tensor:
    """float64 to the nearest float32, as float64; what would round to a denormal becomes zero."""
    return torch.where(exact.abs() < _SMALLEST - 2.0**-151, exact * 0.0, exact.float().double())


def tile_step(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The sum of a group: x and weight are [rows, columns, k] in the order in which they are packed
    for a tile, pairs of first and second elements.

    A product of bfloat16 numbers is exact in float64, and its sum with a float32 number rounds to
    float32 as if it were exact, so a step here is a fused multiply-add.
    """
    first = second = torch.zeros(x.shape[0], weight.shape[0], dtype=torch.float64)
    for k in range(0, x.shape[1], 2):
        first = rounded(first + x[:, None, k] * weight[None, :, k])
        second = rounded(second + x[:, None, k + 1] * weight[None, :, k + 1])
    return rounded(first + second)


def packed_for_tiles(group: torch.Tensor, padding: float) -> torch.Tensor:
    """A group's inputs [rows, up to 32], paired as an AMX tile would need them."""
    pairs = group.unflatten(1, (-1, 2)).flip(2)
    if pairs.shape[1] % 2:
        pairs = torch.cat([pairs, torch.full_like(pairs[:, :1], padding)], 1)
    return torch.stack([pairs[:, 0::2].flatten(1), pairs[:, 1::2].flatten(1)], 2).flatten(1)


def oracle(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x, weight = without_denormals(x.double()), without_denormals(weight.double())
    total = torch.zeros(len(x), len(weight), dtype=torch.float64)
    for k in range(0, x.shape[1], _GROUP):
        # Adding a product of -0 changes nothing, not even the sign of a zero.
        group = packed_for_tiles(x[:, k : k + _GROUP], -0.0)
        weights = packed_for_tiles(weight[:, k : k + _GROUP], 0.0)
        total = rounded(total + tile_step(group, weights))
    return total.float()


def bits(x: torch.Tensor) -> torch.Tensor:
    """The bits of float32 numbers, the same for every NaN."""
    return torch.where(x.isnan(), torch.nan, x).view(torch.int32)


@pytest.mark.parametrize("exponents", EXPONENTS.values(), ids=EXPONENTS)
@settings(max_examples=15)
@given(
    rows=st.integers(1, 30),
    pairs=st.integers(1, 60),
    out_features=st.integers(1, 70),
    seed=st.integers(0, 2**32),
)
def test_every_instruction_set_adds_in_the_order_of_a_tile(
    isa, exponents, rows, pairs, out_features, seed
):
    generator = torch.Generator().manual_seed(seed)
    x = numbers(rows, 2 * pairs, exponents, generator)
    weight = numbers(out_features, 2 * pairs, exponents, generator)
    result = ops.linear(x, ops.pack_linear_weight(weight), None, out_features, True)
    assert torch.equal(bits(result), bits(oracle(x, weight)))


def test_denormal_numbers_remain_what_they_are_elsewhere(isa):
    x = torch.ones(1, 2, dtype=torch.bfloat16)
    ops.linear(x, ops.pack_linear_weight(x), None, 1)
    smallest = torch.tensor([2.0**-140])
    assert ops.linear(smallest[None], ops.pack_linear_weight(torch.ones(1, 1)), None, 1).item()
    assert (smallest * 0.5).item() == 2.0**-141
