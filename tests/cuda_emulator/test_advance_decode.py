"""The advance_decode kernel leaves the same tensors as the CPU op."""

from __future__ import annotations

import pytest
import torch

from paged_stream import ops

BLOCK_SIZE, WIDTH, MAX_GENERATED, NUM_STOPS = 4, 5, 3, 2


def arguments(rows: int) -> list[torch.Tensor | ops.BatchTensors]:
    """Arguments of the op for sequences that continue, stop, end or have ended."""
    generator = torch.Generator().manual_seed(rows)

    def draw(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, (rows, *shape), generator=generator)

    sampled, generated = draw(0, 6), torch.full((rows, MAX_GENERATED), -1)
    num_generated, num_left = draw(0, MAX_GENERATED), draw(0, 4)
    positions, window = draw(0, 2**40), draw(2, 9)
    ring = (window - 1 + BLOCK_SIZE - 1) // BLOCK_SIZE + 1
    batch = ops.BatchTensors(
        token_ids=draw(0, 99),
        positions=positions,
        sink_positions=positions.clone(),
        slot_mapping=draw(0, 99),
        block_table=draw(-1, 30, WIDTH).int(),
        query_start_loc=torch.arange(rows + 1, dtype=torch.int32),
        seq_lens=positions + 1,
        num_sink_tokens=draw(0, 5).int(),
        window_size=window.int(),
        window_floor=torch.zeros(rows).long(),
        ring_blocks=ring.int(),
    )
    return [sampled, generated, num_generated, num_left, draw(-1, 6, NUM_STOPS), batch]


def run(emulator, sampled, generated, num_generated, num_left, stops, batch) -> None:
    rows = len(sampled)
    sizes = rows, rows, WIDTH, MAX_GENERATED, NUM_STOPS, BLOCK_SIZE
    emulator.call(
        "advance_decode", sampled, generated, num_generated, num_left, stops, *batch, *sizes
    )


def copied(given: list) -> list:
    return [
        ops.BatchTensors(*map(torch.clone, x)) if isinstance(x, tuple) else x.clone() for x in given
    ]


def flattened(given: list) -> list[torch.Tensor]:
    return [*given[:-1], *given[-1]]


def test_leaves_what_the_cpus_op_leaves(emulator):
    for rows in (1, 130):
        mine = arguments(rows)
        cpus = copied(mine)
        run(emulator, *mine)
        ops.advance_decode(*cpus, BLOCK_SIZE)
        assert all(map(torch.equal, flattened(mine), flattened(cpus)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_generated", MAX_GENERATED),
        ("num_generated", -1),
        ("positions", -1),
        ("positions", 2**63 - 1),
        ("num_sink_tokens", -(2**31)),
        ("ring_blocks", 0),
    ],
)
def test_a_row_without_a_place_stays(emulator, name, value):
    mine = arguments(4)
    mine[3][:] = 2  # all rows are running
    changed = mine[2] if name == "num_generated" else getattr(mine[5], name)
    changed[:] = value
    before = copied(mine)
    run(emulator, *mine)
    assert all(map(torch.equal, flattened(mine), flattened(before)))
