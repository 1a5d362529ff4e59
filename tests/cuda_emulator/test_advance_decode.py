"""The kernel between two decode steps leaves what the CPU's op leaves."""

from __future__ import annotations

import torch

from paged_stream import ops  # noqa: F401  (registers the op)

BLOCK_SIZE, WIDTH, MAX_GENERATED, NUM_STOPS = 4, 5, 3, 2


def batch(rows: int) -> list[torch.Tensor]:
    """Arguments of the op for sequences of every kind: that go on, stop, end and have ended."""
    generator = torch.Generator().manual_seed(rows)

    def draw(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, (rows, *shape), generator=generator)

    positions, num_sinks = draw(0, 2**40), draw(0, 5)
    window = draw(2, 9)
    ring = (window - 1 + BLOCK_SIZE - 1) // BLOCK_SIZE + 1
    return [
        *(draw(0, 6), torch.full((rows, MAX_GENERATED), -1), draw(0, MAX_GENERATED), draw(0, 4)),
        *(draw(-1, 6, NUM_STOPS), draw(0, 99), positions, positions.clone(), positions + 1),
        *(draw(0, 99), draw(-1, 30, WIDTH).int(), num_sinks.int(), window.int()),
        *(torch.zeros(rows).long(), ring.int()),
    ]


def test_leaves_what_the_cpus_op_leaves(emulator):
    for rows in (1, 130):
        mine = batch(rows)
        cpus = [tensor.clone() for tensor in mine]
        sizes = (MAX_GENERATED, NUM_STOPS, WIDTH, BLOCK_SIZE)
        emulator.call("advance_decode", *mine, *sizes, rows)
        torch.ops.paged_stream.advance_decode.default(*cpus, BLOCK_SIZE)
        for tensor, expected in zip(mine, cpus, strict=True):
            assert torch.equal(tensor, expected)


def test_a_row_without_a_place_stays(emulator):
    arguments = batch(4)
    arguments[2][:] = MAX_GENERATED
    before = [tensor.clone() for tensor in arguments]
    emulator.call("advance_decode", *arguments, MAX_GENERATED, NUM_STOPS, WIDTH, BLOCK_SIZE, 4)
    assert all(map(torch.equal, arguments, before))
