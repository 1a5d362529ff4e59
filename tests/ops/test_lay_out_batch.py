"""Where tokens go, by the scheduler's formulas; angles, by torch's float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paged_stream import ops
from paged_stream.scheduler.sink_window import SinkWindow

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
    """The rows that the sequences have, end to end, and what the op makes of them."""
    total = sum(length for _, _, length, _, _ in batch)
    rows = torch.arange(sum(width for *_, width in batch), dtype=torch.int32)
    windows = [window for window, *_ in batch]
    columns = ops.SequenceColumns(
        lengths=[length for _, _, length, _, _ in batch],
        starts=[start for _, start, *_ in batch],
        num_sink_tokens=[w.num_sink_tokens if w.window_size else 0 for w in windows],
        window_size=[w.window_size or ops.FULL_ATTENTION for w in windows],
        window_floor=[w.window_floor for w in windows],
        ring_blocks=[ring for *_, ring, _ in batch],
        row_lengths=[width for *_, width in batch],
    )
    token_ids = torch.arange(total, dtype=torch.int32)
    return rows, *ops.lay_out_batch(token_ids, rows, columns, BLOCK_SIZE)


@settings(max_examples=200)
@given(st.lists(sequences(), min_size=1, max_size=4))
def test_tokens_go_where_the_scheduler_says(batch):
    rows, layout, has_gap = lay_out(batch)
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
    assert has_gap == (positions != sink_positions)
    assert layout.seq_lens.tolist() == [start + length for _, start, length, _, _ in batch]
    lengths = torch.tensor([length for _, _, length, _, _ in batch])
    assert layout.query_start_loc.tolist() == [0, *lengths.cumsum(0).tolist()]
    windows = [window for window, *_ in batch]
    sinks = [w.num_sink_tokens if w.window_size else 0 for w in windows]
    assert layout.num_sink_tokens.tolist() == sinks
    sizes = [w.window_size or ops.FULL_ATTENTION for w in windows]
    assert layout.window_size.tolist() == sizes
    assert layout.window_floor.tolist() == [w.window_floor for w in windows]
    assert layout.ring_blocks.tolist() == [ring for *_, ring, _ in batch]


def test_a_row_that_is_too_short():
    with pytest.raises(
        RuntimeError, match="position 12 needs column 3, but the block-table row has only 2 columns"
    ):
        lay_out([(SinkWindow(0, None), 12, 1, 9, 2)])


def test_chunks_and_rows_of_other_lengths():
    ids, rows = torch.zeros(2, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    one = ops.SequenceColumns([1], [0], [0], [ops.FULL_ATTENTION], [0], [3], [3])
    with pytest.raises(RuntimeError, match=r"token_ids must have shape \[sum of lengths\] = \[1\]"):
        ops.lay_out_batch(ids, rows, one, BLOCK_SIZE)
    with pytest.raises(RuntimeError, match=r"block_rows must have shape .* = \[4\], got \[3\]"):
        ops.lay_out_batch(ids[:1], rows, one._replace(row_lengths=[4]), BLOCK_SIZE)
    with pytest.raises(RuntimeError, match=r"ring_blocks of sequence 0 must be in \[1, .*, got 0"):
        ops.lay_out_batch(ids[:1], rows, one._replace(ring_blocks=[0]), BLOCK_SIZE)


@pytest.mark.parametrize(
    "field, values, message",
    [
        # Sums that wrap around to the lengths of the arrays.
        ("lengths", [2**62, 2**62, 2**62, 2**62 + 4], "length of sequence 0 must be in"),
        ("row_lengths", [2**62, 2**62, 2**62, 2**62 + 12], "row_length of sequence 0 must be in"),
        ("lengths", [2**31 - 1, 1, 1, 1], "the sum of lengths must be in"),
        ("lengths", [1, 1, 1, -1], "length of sequence 3 must be in .*, got -1"),
        ("row_lengths", [3, 3, 3, 0], "row_length of sequence 3 must be in .*, got 0"),
        ("starts", [2**63 - 2] * 4, "start of sequence 0 must be in .*, got 9223372036854775806"),
        ("starts", [0, 0, -1, 0], "start of sequence 2 must be in .*, got -1"),
        ("num_sink_tokens", [0, -(10**5), 0, 0], "num_sink_tokens of sequence 1 must be in"),
        ("num_sink_tokens", [2**63 - 1] * 4, "num_sink_tokens of sequence 0 must be in"),
        ("window_size", [8, 8, 8, 0], "window_size of sequence 3 must be in .*, got 0"),
        ("window_size", [2**31, 8, 8, 8], "window_size of sequence 0 must be in"),
        ("window_floor", [-1, 0, 0, 0], "window_floor of sequence 0 must be 0, or at least 0"),
        ("window_floor", [0, 2**62, 0, 0], "window_floor of sequence 1 must be .* at most .* 0"),
        ("ring_blocks", [3, 2**32, 3, 3], "ring_blocks of sequence 1 must be in"),
    ],
)
def test_numbers_out_of_range_are_named(field, values, message):
    ids, rows = torch.zeros(4, dtype=torch.int32), torch.zeros(12, dtype=torch.int32)
    four = ops.SequenceColumns([1] * 4, [0] * 4, [0] * 4, [8] * 4, [0] * 4, [3] * 4, [3] * 4)
    with pytest.raises(RuntimeError, match="lay_out_batch: " + message):
        ops.lay_out_batch(ids, rows, four._replace(**{field: values}), BLOCK_SIZE)


@pytest.mark.parametrize("block_size", [0, -4, 2**31, 2**63 - 1])
def test_block_sizes_out_of_range(block_size):
    one = ops.SequenceColumns([1], [0], [0], [8], [0], [3], [3])
    ids, rows = torch.zeros(1, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=rf"block_size must be in \[1, .*, got {block_size}"):
        ops.lay_out_batch(ids, rows, one, block_size)


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
