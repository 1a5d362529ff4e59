"""What `lay_out_batch` must return, by the scheduler's formulas in Python's unbounded integers."""

from __future__ import annotations

from torch import Tensor

from paged_stream import ops
from paged_stream.scheduler.sink_window import SinkWindow


def check_layout(
    token_ids: Tensor,
    block_rows: Tensor,
    table: Tensor,
    block_size: int,
    tensors: list[Tensor],
    has_gap: bool,
) -> None:
    """Compare the op's result with its arguments."""
    batch = ops.BatchTensors(*tensors)
    columns = ops.SequenceColumns(*table.tolist())
    positions, sink_positions, slots, taken = [], [], [], 0
    for index, (length, start, sinks, size, floor, ring, width) in enumerate(
        zip(*columns, strict=True)
    ):
        window = SinkWindow(sinks, None if size == ops.FULL_ATTENTION else size, floor)
        row = block_rows.tolist()[taken : taken + width]
        taken += width
        assert batch.block_table[index].tolist()[:width] == row
        assert set(batch.block_table[index].tolist()[width:]) <= {-1}
        for position in range(start, start + length):
            block = row[window.column(position // block_size, ring, block_size)]
            positions.append(position)
            sink_positions.append(window.sink_position(position))
            slots.append(-1 if block < 0 else block * block_size + position % block_size)
    assert batch.token_ids.tolist() == token_ids.tolist()
    assert batch.positions.tolist() == positions
    assert batch.sink_positions.tolist() == sink_positions
    assert batch.slot_mapping.tolist() == slots
    assert has_gap == (positions != sink_positions)
    ends = [start + length for length, start in zip(columns.lengths, columns.starts, strict=True)]
    assert batch.seq_lens.tolist() == ends
    starts = [sum(columns.lengths[:index]) for index in range(len(ends) + 1)]
    assert batch.query_start_loc.tolist() == starts
    for name in ("num_sink_tokens", "window_size", "window_floor", "ring_blocks"):
        assert getattr(batch, name).tolist() == getattr(columns, name), name
