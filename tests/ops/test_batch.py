"""Where tokens go, by the scheduler's formulas; angles, by torch's float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paged_stream import ops
from paged_stream.scheduler.sink_window import SinkWindow

FULL = 2**31 - 1
BLOCK_SIZE = 4


@st.composite
def sequences(draw):
    """(sink_window, start, length, row) of a chunk that fits its ring."""
    start, length = draw(st.integers(0, 10**12)), draw(st.integers(1, 9))
    if draw(st.booleans()):
        window = SinkWindow(draw(st.integers(0, 9)), None)
        start %= 50
        columns = -(-(start + length) // BLOCK_SIZE)
        return window, start, length, columns, columns
    sinks, size = draw(st.integers(0, 9)), draw(st.integers(1, 20))
    floor = draw(st.sampled_from([0, start]))
    window = SinkWindow(sinks, size, floor if floor > sinks else 0)
    ring = window.ring_blocks(length, BLOCK_SIZE)
    return window, start, length, ring, window.num_sink_blocks(BLOCK_SIZE) + ring


def lay_out(batch):
    total = sum(length for _, _, length, _, _ in batch)
    rows = torch.arange(sum(width for *_, width in batch), dtype=torch.int32)
    windows = [window for window, *_ in batch]
    return rows, ops.lay_out_batch(
        torch.arange(total, dtype=torch.int32),
        rows,
        BLOCK_SIZE,
        lengths=[length for _, _, length, _, _ in batch],
        starts=[start for _, start, *_ in batch],
        num_sink_tokens=[w.num_sink_tokens if w.window_size else 0 for w in windows],
        window_size=[w.window_size or FULL for w in windows],
        window_floor=[w.window_floor for w in windows],
        ring_blocks=[ring for *_, ring, _ in batch],
        row_lengths=[width for *_, width in batch],
    )


@settings(max_examples=200)
@given(st.lists(sequences(), min_size=1, max_size=4))
def test_tokens_go_where_the_scheduler_says(batch):
    rows, layout = lay_out(batch)
    positions, sink_positions, slots, taken = [], [], [], 0
    for index, (window, start, length, ring, width) in enumerate(batch):
        row = rows[taken : taken + width].tolist()
        taken += width
        padding = [-1] * (layout.block_table.shape[1] - width)
        assert layout.block_table[index].tolist() == row + padding
        for position in range(start, start + length):
            column = window.column(position // BLOCK_SIZE, ring, BLOCK_SIZE)
            positions.append(position)
            sink_positions.append(window.sink_position(position))
            slots.append(row[column] * BLOCK_SIZE + position % BLOCK_SIZE)
    assert layout.token_ids.tolist() == list(range(len(positions)))
    assert layout.positions.tolist() == positions
    assert layout.sink_positions.tolist() == sink_positions
    assert layout.slot_mapping.tolist() == slots
    assert layout.has_gap == (positions != sink_positions)
    assert layout.seq_lens.tolist() == [start + length for _, start, length, _, _ in batch]
    lengths = torch.tensor([length for _, _, length, _, _ in batch])
    assert layout.query_start_loc.tolist() == [0, *lengths.cumsum(0).tolist()]


def test_a_row_that_is_too_short():
    with pytest.raises(RuntimeError, match="position 12 is in column 3 of a row of 2"):
        lay_out([(SinkWindow(0, None), 12, 1, 9, 2)])


def test_lists_of_different_lengths():
    row = torch.zeros(2, dtype=torch.int32)
    lists = dict.fromkeys(
        ("num_sink_tokens", "window_size", "window_floor", "ring_blocks", "row_lengths"), [1, 1]
    )
    with pytest.raises(RuntimeError, match="all lists must have the length of lengths"):
        ops.lay_out_batch(row, row, 4, lengths=[1, 1], starts=[0], **lists)


@pytest.mark.parametrize("scaling", [1.0, 1.3])
def test_rotary_table(scaling):
    positions = torch.tensor([0, 1, 77, 4_000_000, 2**40])
    inv_freq = (1e5 ** -(torch.arange(0, 64, 2) / 64)).double()
    angles = positions.double()[:, None] * inv_freq
    table = (torch.cat((angles.cos(), angles.sin()), dim=1) * scaling).float()
    # The last bit of a float64 sine may round the other way.
    torch.testing.assert_close(
        ops.rotary_table(positions, inv_freq, scaling), table, rtol=2e-7, atol=0
    )
    assert ops.rotary_table(positions, inv_freq[:0], scaling).shape == (5, 0)
