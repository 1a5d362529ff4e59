"""What was sampled becomes the next step's input, as the scheduler would lay it out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paged_stream import ops
from tests.ops.test_lay_out_batch import BLOCK_SIZE, lay_out, sequences

STATE = ("token_ids", "positions", "sink_positions", "seq_lens", "slot_mapping")


def decode_arguments(**replaced) -> dict:
    """Two sequences with a sink block and a ring of three; the first has token 7 among its stop
    tokens, the second has one token left. Fields of the batch are replaced by name too."""
    arguments: dict[str, Any] = {
        "sampled": torch.tensor([3, 8]),
        "generated": torch.full((2, 3), -1),
        "num_generated": torch.tensor([0, 1]),
        "num_left": torch.tensor([3, 1]),
        "stop_token_ids": torch.tensor([[9, 7], [-1, -1]]),
        "batch": ops.BatchTensors(
            token_ids=torch.tensor([5, 6]),
            positions=torch.tensor([19, 4]),
            sink_positions=torch.tensor([11, 4]),
            slot_mapping=torch.tensor([7, 20]),
            block_table=torch.tensor([[0, 1, 2, 3], [4, 5, 6, -1]], dtype=torch.int32),
            query_start_loc=torch.tensor([0, 1, 2], dtype=torch.int32),
            seq_lens=torch.tensor([20, 5]),
            num_sink_tokens=torch.tensor([4, 4], dtype=torch.int32),
            window_size=torch.tensor([8, 8], dtype=torch.int32),
            window_floor=torch.tensor([0, 0]),
            ring_blocks=torch.tensor([3, 3], dtype=torch.int32),
        ),
        "block_size": 4,
    }
    for name, value in replaced.items():
        if name in arguments:
            arguments[name] = value
        else:
            arguments["batch"] = arguments["batch"]._replace(**{name: value})
    return arguments


def state_of(batch: ops.BatchTensors) -> dict[str, torch.Tensor]:
    """Copies of what a step changes."""
    return {name: getattr(batch, name).clone() for name in STATE}


def test_running_and_last_token():
    arguments = decode_arguments()
    before = state_of(arguments["batch"])
    ops.advance_decode(**arguments)
    assert arguments["generated"].tolist() == [[3, -1, -1], [-1, 8, -1]]
    assert arguments["num_generated"].tolist() == [1, 2]
    assert arguments["num_left"].tolist() == [2, 0]
    # Position 20 is in the ring's second column; the other one has no more to write.
    expected = {"token_ids": 3, "positions": 20, "sink_positions": 11, "seq_lens": 21}
    for name, value in (expected | {"slot_mapping": 8}).items():
        last = -1 if name == "slot_mapping" else before[name][1].item()
        assert getattr(arguments["batch"], name).tolist() == [value, last], name


def test_a_stop_token_ends_a_row_for_good():
    arguments = decode_arguments(sampled=torch.tensor([7, 7]), num_left=torch.tensor([3, 3]))
    before = state_of(arguments["batch"])
    ops.advance_decode(**arguments)
    assert arguments["num_left"].tolist() == [0, 2]
    assert arguments["batch"].slot_mapping.tolist() == [-1, 21]
    ops.advance_decode(**arguments)
    assert arguments["generated"].tolist() == [[7, -1, -1], [-1, 7, 7]]
    assert arguments["num_left"].tolist() == [0, 1]
    for name in STATE[:-1]:
        assert getattr(arguments["batch"], name)[0] == before[name][0], name


def test_a_column_without_a_block_writes_nothing():
    arguments = decode_arguments(positions=torch.tensor([19, 11]), num_left=torch.tensor([2, 2]))
    ops.advance_decode(**arguments)
    assert arguments["batch"].slot_mapping.tolist() == [8, -1]


def test_blocks_of_one_token():
    arguments = decode_arguments(
        block_size=1,
        block_table=torch.arange(24, dtype=torch.int32).view(2, 12),
        ring_blocks=torch.tensor([8, 8], dtype=torch.int32),
        num_left=torch.tensor([2, 2]),
    )
    ops.advance_decode(**arguments)
    assert arguments["batch"].positions.tolist() == [20, 5]
    assert arguments["batch"].slot_mapping.tolist() == [4, 12 + 5]


@settings(max_examples=200)
@given(st.lists(st.tuples(sequences(), st.integers(0, 3)), min_size=1, max_size=4))
def test_the_next_step_is_laid_out_as_the_scheduler_would(batch):
    """``num_left`` of 0 and 1 end a row, more go on."""
    left = [min(left, 2) for _, left in batch]
    # The last token of each chunk, and the one after it, in the same rows.
    now = [(w, start + length - 1, 1, ring, width) for (w, start, length, ring, width), _ in batch]
    later = [(w, start + 1, 1, ring, width) for w, start, _, ring, width in now]
    fits = [not w.window_size and start // BLOCK_SIZE >= width for w, start, _, _, width in later]
    left = [min(n, 1) if too_far else n for n, too_far in zip(left, fits, strict=True)]
    _, layout, _ = lay_out(now)
    before = state_of(layout)
    count = len(batch)
    sampled = torch.arange(count) + 50
    num_left = torch.tensor(left)
    ops.advance_decode(
        sampled,
        torch.full((count, 1), -1),
        torch.zeros(count).long(),
        num_left,
        torch.empty(count, 0).long(),
        layout,
        BLOCK_SIZE,
    )
    state = state_of(layout)
    assert num_left.tolist() == [max(0, n - 1) for n in left]
    for row in range(count):
        if left[row] < 2:
            before["slot_mapping"][row] = -1 if left[row] else before["slot_mapping"][row]
            assert all(state[name][row] == before[name][row] for name in STATE)
            continue
        _, expected, _ = lay_out([later[row]])
        shift = int(layout.block_table[row, 0]) * BLOCK_SIZE  # rows alone are numbered from 0
        assert state["token_ids"][row] == sampled[row]
        assert state["slot_mapping"][row] == expected.slot_mapping[0] + shift
        for name in ("positions", "sink_positions", "seq_lens"):
            assert state[name][row] == getattr(expected, name)[0], name


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("sampled", lambda x: x.int(), "sampled must be Long, got Int"),
        ("generated", lambda x: x[:1], r"generated must have shape \[B, max_generated\] = \[2, \*"),
        (
            "num_generated",
            lambda x: x + 2,
            r"row 1 has no room in generated: num_generated must be in \[0, 3\), got 3",
        ),
        ("num_generated", lambda x: x.int(), "num_generated must be Long, got Int"),
        ("num_left", lambda x: x[:1], r"num_left must have shape \[B\] = \[2\], got \[1\]"),
        ("stop_token_ids", lambda x: x[0], r"stop_token_ids must have shape \[B, num_stops\]"),
        ("stop_token_ids", lambda x: x.t(), "stop_token_ids must be contiguous"),
        ("token_ids", lambda x: x.int(), "token_ids must be Long, got Int"),
        ("positions", lambda x: x[:1], r"positions must have shape \[T\] = \[2\], got \[1\]"),
        ("positions", lambda x: x - 20, r"positions\[0\] must be in \[0, \d+\], got -1"),
        ("sink_positions", lambda x: x.int(), "sink_positions must be Long, got Int"),
        ("seq_lens", lambda x: x[:1], "seq_lens must have shape"),
        ("slot_mapping", lambda x: x.int(), "slot_mapping must be Long, got Int"),
        ("block_table", lambda x: x.long(), "block_table must be Int, got Long"),
        ("block_table", lambda x: x.t(), "block_table must be contiguous from dimension 1"),
        (
            "block_table",
            lambda x: x[:, :2].contiguous(),
            "position 20 needs column 2, but the block-table row has only 2 col",
        ),
        ("num_sink_tokens", lambda x: x.long(), "num_sink_tokens must be Int, got Long"),
        ("window_size", lambda x: x[:1], "window_size must have shape"),
        ("window_floor", lambda x: x.int(), "window_floor must be Long, got Int"),
        ("ring_blocks", lambda x: x * 0, r"ring_blocks of sequence 0 must be in \[1, \d+\], got 0"),
        ("num_generated", lambda x: x - 2, r"row 0 has no room in generated: .* got -2"),
        ("positions", lambda x: x * 0 + 2**63 - 1, r"positions\[0\] must be in .*, got 92233"),
        ("num_sink_tokens", lambda x: x * 0 - 2**31, "num_sink_tokens of sequence 0 must be in"),
        ("window_size", lambda x: x * 0, "window_size of sequence 0 must be in"),
        ("window_floor", lambda x: x + 2**62, "window_floor of sequence 0 must be 0, or"),
        ("block_size", lambda x: 2**62, r"block_size must be in \[1, \d+\], got 46"),
        ("block_size", lambda x: 0, r"block_size must be in \[1, \d+\], got 0"),
    ],
)
def test_bad_arguments_are_named(name, change, message):
    arguments = decode_arguments()
    value = arguments[name] if name in arguments else getattr(arguments["batch"], name)
    with pytest.raises(RuntimeError, match="advance_decode: " + message):
        ops.advance_decode(**decode_arguments(**{name: change(value)}))


def test_what_is_refused_is_left_alone():
    """The second row has no room, so the first one stays too."""
    arguments = decode_arguments(num_generated=torch.tensor([0, 3]))
    before, generated = state_of(arguments["batch"]), arguments["generated"].clone()
    with pytest.raises(RuntimeError, match="row 1 has no room"):
        ops.advance_decode(**arguments)
    assert all(map(torch.equal, state_of(arguments["batch"]).values(), before.values()))
    assert torch.equal(arguments["generated"], generated)


def test_arguments_in_the_same_memory_write_nowhere_else():
    """The counts of later rows become tokens while earlier ones are written."""
    counts = torch.tensor([0, 0])
    arguments = decode_arguments(
        sampled=torch.tensor([2**40, 2**40]),
        generated=counts.view(2, 1),
        num_generated=counts,
        num_left=torch.tensor([3, 3]),
    )
    ops.advance_decode(**arguments)
    assert arguments["batch"].positions.tolist() == [20, 5]


def test_a_batch_has_one_token_of_each_sequence():
    per_sequence = ops.BatchTensors._fields[4:]
    batch = decode_arguments()["batch"]
    shorter = {name: getattr(batch, name)[:-1] for name in per_sequence}
    with pytest.raises(RuntimeError, match="block_table must have a row for each of the 2 tokens"):
        ops.advance_decode(**decode_arguments(**shorter))


def test_a_row_for_which_no_token_was_drawn_ends():
    """Even if none of its stop tokens is as many as another row has, and so there is no padding."""
    arguments = decode_arguments(
        sampled=torch.tensor([ops.NO_TOKEN, 7]),
        num_left=torch.tensor([3, 3]),
        stop_token_ids=torch.empty(2, 0).long(),
    )
    before = state_of(arguments["batch"])
    ops.advance_decode(**arguments)
    assert arguments["num_left"].tolist() == [0, 2]
    assert arguments["batch"].slot_mapping.tolist() == [-1, 21]
    for name in STATE[:-1]:
        assert getattr(arguments["batch"], name)[0] == before[name][0], name
