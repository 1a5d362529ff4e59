"""What adapters add to a product: their sums in float64, rounded, whoever else is in the batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paged_stream import ops
from paged_stream.layers.low_rank import LoadedAdapter, StepAdapters

IN, OUT = 37, 70
PLACE = (2, ops.Projection.UP)


def part(rank, first, columns, dtype, scaling=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, IN, generator=generator).to(dtype)
    up = torch.randn(rank, columns, generator=generator).to(dtype)
    return ops.LowRank(*PLACE, first, down, up, scaling)


def problem(dtype, rows=9):
    parts = [
        [part(16, 0, OUT, dtype, seed=1)],
        [part(1, 3, 5, dtype, seed=2), part(7, 8, 62, dtype, 2.0, seed=3)],
        [part(130, 69, 1, dtype, seed=4)],
    ]
    torch.manual_seed(5)
    hidden, product = torch.randn(rows, IN).to(dtype), torch.randn(rows, OUT).to(dtype)
    return parts, hidden, product, torch.randint(-1, 3, (rows,), dtype=torch.int32)


def lay_out(parts, dtype):
    return [ops.Adapter(each, 4, dtype) for each in parts]


def expected(parts, hidden, product, choice):
    result = product.double()
    for row, index in enumerate(choice.tolist()):
        for each in parts[index] if index >= 0 else []:
            columns = slice(each.first_column, each.first_column + each.up.shape[1])
            inner = each.down.double() @ hidden[row].double()
            result[row, columns] += each.scaling * (inner @ each.up.double())
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_in_float64(dtype):
    parts, hidden, product, choice = problem(dtype)
    wanted = expected(parts, hidden, product, choice)
    ops.add_adapters(product, hidden, lay_out(parts, dtype), choice, *PLACE)
    rounding = {torch.float32: 1e-6, torch.bfloat16: 2**-8}[dtype]
    assert ((product - wanted).abs() <= rounding * wanted.abs() + 1e-4).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_does_the_same_where_there_is_no_op(dtype):
    parts, hidden, product, choice = problem(dtype)
    wanted = expected(parts, hidden, product, choice)
    loaded = [LoadedAdapter(each, 4, dtype) for each in parts]
    rows = [(choice == index).nonzero()[:, 0] for index in range(3)]
    StepAdapters(loaded, choice, rows).add(product, hidden, *PLACE)
    rounding = {torch.float32: 1e-5, torch.bfloat16: 2**-5}[dtype]
    assert ((product - wanted).abs() <= rounding * (wanted.abs() + 10)).all()


@given(st.permutations(range(9)), st.integers(1, 9), st.sampled_from([1, 2]))
def test_a_row_is_the_same_in_every_batch(order, count, threads):
    parts, hidden, product, choice = problem(torch.bfloat16)
    adapters, whole, some = lay_out(parts, torch.bfloat16), product.clone(), order[:count]
    ops.add_adapters(whole, hidden, adapters, choice, *PLACE)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        few = product[some].clone()
        ops.add_adapters(few, hidden[some], adapters, choice[some], *PLACE)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(few, whole[some])


def test_other_products_are_left_alone():
    parts, hidden, product, choice = problem(torch.float32)
    before, adapters = product.clone(), lay_out(parts, torch.float32)
    ops.add_adapters(product, hidden, adapters, choice, 2, ops.Projection.DOWN)
    ops.add_adapters(product, hidden, adapters, choice, 3, ops.Projection.UP)
    assert torch.equal(product, before)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"out": torch.zeros(9, 69)}, "maps 37 features to columns 0 to 70 of a product that maps"),
        ({"input": torch.zeros(9, 36)}, "of a product that maps 36 to 70"),
        ({"input": torch.zeros(8, IN)}, r"input must have shape .* = \[9, \*\], got \[8, 37\]"),
        ({"input": torch.zeros(9, IN).bfloat16()}, "input must be Float, got BFloat16"),
        ({"row_adapters": torch.full((9,), 3).int()}, r"must be in \[-1, 2\], got 3"),
        ({"row_adapters": torch.full((9,), -2).int()}, r"must be in \[-1, 2\], got -2"),
        ({"row_adapters": torch.zeros(9)}, "row_adapters must be Int, got Float"),
        ({"row_adapters": torch.zeros(8).int()}, r"row_adapters must have shape"),
        ({"layer": 4}, "an adapter has 4 layers, and none 4"),
        ({"projection": 4}, r"projection must be in \[0, 3\], got 4"),
    ],
)
def test_what_does_not_fit(change, told):
    parts, hidden, product, choice = problem(torch.float32)
    arguments = {"out": product, "input": hidden, "row_adapters": choice}
    arguments |= dict(zip(("layer", "projection"), PLACE, strict=True)) | change
    with pytest.raises(RuntimeError, match=f"add_adapters: .*{told}"):
        ops.add_adapters(adapters=lay_out(parts, torch.float32), **arguments)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"up": torch.zeros(3, 5)}, r"up must have shape .* = \[2, \*\], got \[3, 5\]"),
        ({"down": torch.zeros(2, IN).bfloat16()}, "must be Float, got BFloat16"),
        ({"down": torch.zeros(IN, 2).T}, "a weight must be contiguous"),
        ({"layer": 4}, r"layer must be in \[0, 3\], got 4"),
        ({"first_column": -1}, "first column must be in"),
    ],
)
def test_what_is_no_adapter(change, told):
    wrong = part(2, 0, 5, torch.float32)._replace(**change)
    with pytest.raises(RuntimeError, match=f"lay_out_adapter: .*{told}"):
        ops.Adapter([wrong], 4, torch.float32)
