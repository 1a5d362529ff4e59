"""Policy, one promise per test: order, budget, limits, recycling."""

from __future__ import annotations

import subprocess
import sys
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paged_stream.scheduler.output import ModelOutput
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.scheduler.sink_window import SinkWindow
from tests.scheduler.builders import SMALL, add, chunks, generate, make_scheduler, run, step, stream


def test_decodes_run_beside_prompt_chunks_within_the_budget():
    scheduler = make_scheduler()
    add(scheduler, 0, 3)
    step(scheduler)
    add(scheduler, 1, 40)
    output, _ = step(scheduler)
    assert chunks(output) == {0: 1, 1: 15}
    output, _ = step(scheduler)
    assert chunks(output) == {0: 1, 1: 15}


def test_decodes_go_before_a_prompt_of_higher_priority():
    scheduler = make_scheduler()
    add(scheduler, 0, 3, priority=1)
    step(scheduler)
    add(scheduler, 1, 40, priority=0)
    for _ in range(2):
        assert chunks(step(scheduler)[0]) == {0: 1, 1: 15}


def test_chunks_of_a_fixed_size_may_be_the_whole_budget():
    scheduler = make_scheduler(max_num_seqs=1, max_num_batched_tokens=8, chunk_size=8)
    add(scheduler, 0, 21, max_tokens=2)
    assert [chunks(output)[0] for output in run(scheduler)] == [8, 8, 5, 1]


def test_only_penalties_ask_for_the_visible_tokens():
    scheduler = make_scheduler(max_num_batched_tokens=4)
    for seq_id, params in enumerate(({}, {"repetition_penalty": 1.1})):
        scheduler.open(seq_id, SMALL)
        scheduler.append(seq_id, range(40, 43))
        generate(scheduler, seq_id, max_tokens=30, **params)
    outputs = [step(scheduler)[0] for _ in range(30)]
    histories = [{s.seq_id: list(s.history) for s in output.sequences} for output in outputs]
    # The first chunk of the second is not its last: it samples nothing.
    assert histories[:2] == [{0: [], 1: []}, {0: [], 1: [40, 41, 42]}]
    assert histories[-1] == {0: [], 1: [40, 41, 42, *[8] * 17]}, "sinks and window"


def test_a_sequence_that_waits_takes_more_before_its_turn():
    scheduler = make_scheduler()
    sequence = scheduler.open(0, SMALL, is_stream=True)
    for token_id in (1, 2, 3):
        scheduler.append(0, [token_id] * 4)
    assert scheduler.num_waiting == 1
    scheduler.check_integrity()
    assert [chunks(output) for output in run(scheduler)] == [{0: 11}]
    assert list(sequence.last_token_ids(12)) == [1] * 4 + [2] * 4 + [3] * 4


def test_priority_goes_before_arrival():
    scheduler = make_scheduler(max_num_seqs=1)
    for seq_id, priority in ((0, 1), (1, 1), (2, 0)):
        add(scheduler, seq_id, 2, priority=priority, max_tokens=1)
    assert [next(iter(chunks(step(scheduler)[0]))) for _ in range(3)] == [2, 0, 1]


@pytest.mark.parametrize(
    ("priority", "comes_first", "order"),
    [(0, False, [0, 1]), (0, True, [1, 0]), (1, True, [0, 1]), (-1, False, [1, 0])],
)
def test_priority_and_arrival_count_whoever_has_blocks_already(priority, comes_first, order):
    """A stream that comes back has them, a new request has not."""
    scheduler = make_scheduler(max_num_seqs=1)
    stream(scheduler, 0, range(30))
    if comes_first:
        add(scheduler, 1, 2, priority=priority, max_tokens=1)
    scheduler.append(0, [5])
    if not comes_first:
        add(scheduler, 1, 2, priority=priority, max_tokens=1)
    assert [next(iter(chunks(step(scheduler)[0]))) for _ in range(2)] == order


def test_waiting_is_in_order_even_if_a_later_one_would_fit():
    scheduler = make_scheduler(num_blocks=8)
    add(scheduler, 0, 20, window=SinkWindow(0, 25), max_tokens=9)
    step(scheduler)
    add(scheduler, 1, 20, window=SinkWindow(0, 25), max_tokens=9)
    add(scheduler, 2, 2, window=SinkWindow(0, 1), max_tokens=1)
    assert list(chunks(step(scheduler)[0])) == [0]
    started = [seq_id for output in run(scheduler) for seq_id in chunks(output)]
    assert started.index(1) < started.index(2)


def test_idle_streams_keep_nobody_waiting():
    scheduler = make_scheduler(num_blocks=7)
    stream(scheduler, 0, range(30))
    add(scheduler, 1, 20, max_tokens=9)
    assert list(chunks(step(scheduler)[0])) == [1]
    assert scheduler.sequences[0].is_parked


def test_idle_streams_make_room_for_large_chunks():
    scheduler = make_scheduler(num_blocks=12, max_num_batched_tokens=12)
    for seq_id in (0, 1):
        stream(scheduler, seq_id, [seq_id] * 30)
    scheduler.append(1, [1] * 24)
    assert [chunks(output) for output in run(scheduler)] == [{1: 12}, {1: 12}]
    assert scheduler.sequences[0].is_parked


def test_finish_reasons():
    scheduler = make_scheduler()
    add(scheduler, 0, 2, max_tokens=2)
    add(scheduler, 1, 2, max_tokens=9)
    assert [u.finish_reason for u in step(scheduler)[1]] == [None, None]
    assert [u.finish_reason for u in step(scheduler)[1]] == ["length", None]
    assert [u.finish_reason for u in step(scheduler, token_id=9)[1]] == ["stop"]
    assert not scheduler.has_unfinished() and not scheduler.sequences


def test_min_tokens_bars_the_stop_token():
    scheduler = make_scheduler()
    scheduler.open(0, SMALL)
    scheduler.append(0, [1])
    generate(scheduler, 0, min_tokens=2, max_tokens=9)
    reasons = [step(scheduler, token_id=9)[1][0].finish_reason for _ in range(3)]
    assert reasons == [None, None, "stop"]


def test_full_attention_ends_at_the_model_length():
    scheduler = make_scheduler(max_model_len=10)
    scheduler.open(0, SinkWindow(0, None))
    scheduler.append(0, [1] * 8)
    generate(scheduler, 0, max_tokens=None)
    assert [step(scheduler)[1][0].finish_reason for _ in range(2)] == [None, "length"]


def test_steady_state_changes_nothing_on_the_host():
    scheduler = make_scheduler()
    scheduler.open(0, SMALL)
    scheduler.append(0, [1] * 50)
    generate(scheduler, 0, max_tokens=None)
    while scheduler.sequences[0].num_computed_tokens < 100:
        step(scheduler)
    row = scheduler.kv[0].row
    before, free = list(row), scheduler.kv.pool.num_free
    for _ in range(200):
        step(scheduler)
    assert scheduler.kv[0].row is row and list(row) == before
    assert scheduler.kv.pool.num_free == free


@pytest.mark.parametrize("num_decode_steps", [1, 4])
def test_a_row_that_was_handed_out_never_changes(num_decode_steps):
    scheduler = make_scheduler(num_decode_steps=num_decode_steps)
    stream(scheduler, 0, [1] * 50)
    scheduler.fork(0, 1)
    handed_out = []
    for seq_id in (0, 1, 0):
        scheduler.append(seq_id, [2] * 30)
        generate(scheduler, seq_id, max_tokens=12)
        while scheduler.has_unfinished():
            output, _ = step(scheduler)
            handed_out += [(s.block_row, list(s.block_row)) for s in output.sequences]
    assert len({tuple(row) for row, _ in handed_out}) > 3, "no row has changed at all"
    assert all(list(row) == as_it_was for row, as_it_was in handed_out)


def test_prefill_ring_is_given_back_when_decoding_starts():
    scheduler = make_scheduler(max_num_batched_tokens=64)
    scheduler.open(0, SMALL)
    scheduler.append(0, [1] * 300)
    generate(scheduler, 0, max_tokens=None)
    assert chunks(step(scheduler)[0]) == {0: 64}
    widths = []
    while scheduler.sequences[0].num_pending_tokens > 1:
        step(scheduler)
        widths.append(len(scheduler.kv[0].row))
    step(scheduler)
    smallest = 1 + SMALL.ring_blocks(1, 4)
    assert max(widths) > smallest == len(scheduler.kv[0].row)
    assert scheduler.kv.num_unreserved_blocks == 64 - smallest


def test_a_prompt_goes_on_in_large_chunks_while_another_waits_for_memory():
    scheduler = make_scheduler(num_blocks=11)
    add(scheduler, 0, 200)
    step(scheduler)
    add(scheduler, 1, 40)
    for _ in range(11):
        assert chunks(step(scheduler)[0]) == {0: 16}
    # It gives the blocks back with the last chunk, but needs the small ring to decode.
    started = [seq_id for output in run(scheduler) for seq_id in chunks(output)]
    assert set(started) == {0, 1}


def test_what_larger_chunks_take_keeps_nobody_out():
    """Two streams that are always busy with prompts, and room for one more without their loans."""
    scheduler = make_scheduler(num_blocks=18, max_num_batched_tokens=24)
    for seq_id in range(2):
        stream(scheduler, seq_id, [seq_id] * 30)
        generate(scheduler, seq_id, max_tokens=3)
    lent = []
    for number in range(300):
        if number == 20:
            add(scheduler, 2, 200)
        for seq_id in range(2):
            if not scheduler.sequences[seq_id].generates:
                scheduler.append(seq_id, [seq_id] * 60)
                generate(scheduler, seq_id, max_tokens=3)
        step(scheduler)
        lent.append(scheduler.kv.num_lent(0) + scheduler.kv.num_lent(1))
        if number >= 20 and 2 not in scheduler.sequences:
            break
    assert lent[19] > 0 and 2 not in scheduler.sequences


def test_what_larger_chunks_take_does_not_save_an_idle_stream_from_parking():
    scheduler = make_scheduler(num_blocks=16)
    for seq_id in range(2):
        stream(scheduler, seq_id, [seq_id] * 30)
    scheduler.append(0, [0] * 60)
    add(scheduler, 2, 40, window=SinkWindow(4, 32))  # fits into ten blocks
    assert chunks(step(scheduler)[0])[2] > 0
    assert scheduler.sequences[1].is_parked


def test_a_turn_that_only_scores_computes_all_but_the_last_token():
    scheduler = make_scheduler()
    scheduler.open(0, SMALL, max_tokens=6)
    scheduler.append(0, range(6))
    scheduler.start_turn(0, SamplingParams(prompt_logprobs=0), generates=False)
    output, updates = step(scheduler)
    assert chunks(output) == {0: 5} and output.sequences[0].next_token_id == 5
    assert [(u.token_ids, u.finish_reason) for u in updates] == [([], "length")]
    assert not scheduler.sequences


def test_a_turn_that_embeds_computes_all_tokens_and_samples_none():
    scheduler = make_scheduler(max_num_batched_tokens=4)
    scheduler.open(0, SMALL, max_tokens=6)
    scheduler.append(0, range(6))
    scheduler.start_turn(0, SamplingParams(), embeds=True)
    for size, is_last in ((4, False), (2, True)):
        output = scheduler.schedule()
        [share] = output.sequences
        assert chunks(output) == {0: size} and share.embeds == is_last and not share.samples
        vector = {0: array("f", [1.0])} if is_last else {}
        [update] = scheduler.update(output, ModelOutput([[]], [None], [[]], [None], vector))
        assert update.embedding == vector.get(0)
        assert update.finish_reason == ("length" if is_last else None)
    assert not scheduler.sequences
    scheduler.check_integrity()


def test_a_cache_that_is_too_small_is_refused_at_once():
    scheduler = make_scheduler(num_blocks=4)
    with pytest.raises(ValueError, match="need 6 blocks of 4 tokens, the whole cache has 4"):
        scheduler.open(0, SMALL)
    assert not scheduler.sequences
    make_scheduler(num_blocks=6).open(0, SMALL)


def test_budget_below_sequences_is_refused():
    with pytest.raises(ValueError, match="max_num_batched_tokens must be >= max_num_seqs"):
        make_scheduler(max_num_batched_tokens=3)


@given(st.integers(0, 20), st.integers(1, 60), st.integers(1, 9), st.integers(1, 40))
def test_ring_is_large_enough_and_no_larger(sinks, window, block_size, chunk):
    pattern = SinkWindow(sinks, window)
    ring = pattern.ring_blocks(chunk, block_size)
    assert pattern.max_chunk(ring, block_size) >= chunk
    assert ring == 1 or pattern.max_chunk(ring - 1, block_size) < chunk
    touched = [
        (start + chunk - 1) // block_size - pattern.window_start(start) // block_size + 1
        for start in range(window, window + 2 * block_size)
    ]
    assert max(touched) == ring


def test_scheduler_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['numpy'] = None\n"
        "import paged_stream.scheduler.scheduler"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
