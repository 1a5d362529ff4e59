"""Blocks found by content: which are found, which must not be, and what sharing them costs."""

from __future__ import annotations

import pytest

from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.scheduler.sink_window import SinkWindow
from tests.scheduler.builders import SMALL, add, generate, make_scheduler, run, step, stream

A = list(range(100, 121))  # five full blocks and one token that is never computed


def num_hit(scheduler, token_ids, *, window=SMALL, **params) -> int:
    """Tokens that a new request with this prompt need not compute."""
    seq_id = max(scheduler.sequences, default=0) + 1
    scheduler.open(seq_id, window, max_tokens=len(token_ids) + 1)
    scheduler.append(seq_id, token_ids)
    scheduler.start_turn(seq_id, SamplingParams(max_tokens=1, **params))
    (scheduled,) = step(scheduler)[0].sequences
    run(scheduler)
    return scheduled.num_computed_tokens


def test_the_prefix_of_a_living_stream_is_found():
    scheduler = make_scheduler()
    stream(scheduler, 0, A)
    blocks = scheduler.kv[0].held
    scheduler.open(1, SMALL, is_stream=True)
    scheduler.append(1, [*A, 1])
    (scheduled,) = step(scheduler)[0].sequences
    assert scheduled.num_computed_tokens == 20
    assert scheduler.kv[1].held[:5] == blocks[:5]
    assert (scheduler.num_prefix_hits, scheduler.num_prefix_queries) == (20, 21 + 22)
    counts = [(s.num_prefix_hits, s.num_prefix_queries) for s in scheduler.sequences.values()]
    assert counts == [(0, 21), (20, 22)]


def test_the_prefix_of_a_closed_stream_is_found():
    scheduler = make_scheduler()
    stream(scheduler, 0, A)
    scheduler.close(0)
    assert scheduler.kv.pool.num_free == 64
    assert num_hit(scheduler, A) == 20


def test_the_end_of_a_prefix_is_lost_before_its_beginning():
    scheduler = make_scheduler(num_blocks=8, max_num_batched_tokens=32)
    stream(scheduler, 0, A)
    scheduler.close(0)
    add(scheduler, 1, 16)  # takes the three blocks without a hash, then two more
    run(scheduler)
    assert num_hit(scheduler, A) == 12


@pytest.mark.parametrize(("length", "hit"), [(19, 16), (20, 16), (21, 20)])
def test_one_token_stays_to_be_computed(length, hit):
    scheduler = make_scheduler()
    stream(scheduler, 0, A)
    assert num_hit(scheduler, A[:length]) == hit


def test_a_prompt_whose_logprobs_are_asked_for_is_computed():
    scheduler = make_scheduler()
    stream(scheduler, 0, A)
    assert num_hit(scheduler, A, prompt_logprobs=0) == 0
    assert scheduler.num_prefix_queries == 21, "nobody looked for the second prompt"


def test_nothing_is_found_when_prefix_caching_is_off():
    scheduler = make_scheduler(enable_prefix_caching=False)
    stream(scheduler, 0, A)
    assert num_hit(scheduler, A) == 0
    assert scheduler.num_prefix_queries == 0


def test_less_than_a_block_is_not_looked_for():
    scheduler = make_scheduler()
    stream(scheduler, 0, A)
    assert num_hit(scheduler, A[:4]) == 0
    assert scheduler.num_prefix_queries == 21


def test_beyond_the_window_only_sinks_and_the_last_window_are_needed():
    scheduler = make_scheduler()
    long = list(range(1000, 1101))
    stream(scheduler, 0, long)
    live = set(scheduler.kv[0].held)
    while scheduler.kv.pool.num_free > 0:  # what has left the window is overwritten
        scheduler.kv.pool.allocate(overwrites=True)
    for block_id in set(range(64)) - live:
        scheduler.kv.pool.release(block_id, overwrites=True)
    assert num_hit(scheduler, long) == 100
    assert num_hit(scheduler, long[:61]) == 4, "the window that this one needs is gone"


def test_a_long_prompt_is_found_again_up_to_where_another_parts_from_it():
    """While a request's prompt is computed, its ring leaves blocks that can be found alone."""
    scheduler = make_scheduler()
    long = list(range(1000, 1101))
    assert num_hit(scheduler, long) == 0
    assert num_hit(scheduler, long[:61]) == 60
    scheduler.kv.check_integrity()


def test_a_long_prompt_takes_no_blocks_from_content_that_can_be_found():
    scheduler = make_scheduler(num_blocks=18)
    stream(scheduler, 0, A)
    scheduler.close(0)
    assert num_hit(scheduler, range(1000, 1101)) == 0
    assert num_hit(scheduler, A) == 20


def test_a_prompt_that_waits_is_not_looked_for_at_every_step(monkeypatch):
    scheduler = make_scheduler(num_blocks=11)
    stream(scheduler, 0, A)
    generate(scheduler, 0, max_tokens=None)
    add(scheduler, 1, 400)
    step(scheduler)
    looked_for, hashed = [], []
    find, extend = scheduler.kv.pool.find, list(scheduler.sequences[1].block_hashes)
    monkeypatch.setattr(scheduler.kv.pool, "find", lambda h: (looked_for.append(h), find(h))[1])
    hash_block = "paged_stream.scheduler.sequence.hash_block"
    monkeypatch.setattr(hash_block, lambda *args: hashed.append(args))
    for _ in range(10):
        step(scheduler)
    assert scheduler.num_waiting == 1 and extend
    assert len(looked_for) <= 2 * 10 and not hashed, "no more than the pure sink blocks"


def test_a_missing_sink_block_ends_the_search():
    scheduler = make_scheduler()
    stream(scheduler, 0, A)
    block_id = scheduler.kv[0].row[0]
    scheduler.close(0)
    scheduler.kv.pool.forget(block_id)
    assert num_hit(scheduler, A) == 0


@pytest.mark.parametrize("window", [SinkWindow(3, 16), SinkWindow(4, 17), SinkWindow(4, None)])
def test_other_sinks_or_windows_share_nothing(window):
    scheduler = make_scheduler()
    stream(scheduler, 0, A)
    assert num_hit(scheduler, A, window=window) == 0


def test_equal_pins_cost_their_pure_sink_blocks_once():
    pinned = SinkWindow(9, 4)  # two pure sink blocks, a mixed one and a ring of two
    for caching, num_streams in ((True, 4), (False, 2)):
        scheduler = make_scheduler(num_blocks=2 + 4 * 3, enable_prefix_caching=caching)
        for seq_id in range(4):
            stream(scheduler, seq_id, [*A[:9], *[seq_id] * 10], pinned)
        assert len(scheduler.idle_streams()) == num_streams


def test_a_mixed_sink_block_is_shared_but_paid_for():
    scheduler = make_scheduler()
    for seq_id in range(2):
        stream(scheduler, seq_id, A, SinkWindow(6, 8))
    pool = scheduler.kv.pool
    shared = [block_id for block_id in scheduler.kv[0].held if pool.num_refs(block_id) == 2]
    assert scheduler.kv[0].row[1] in shared
    assert pool.num_owed == len(shared) - 1, "all but the pure sink block"


B = list(range(200, 204))


def rewind(scheduler):
    scheduler.rewind(0, 10)
    return A[:10]


def cut(scheduler):
    scheduler.cut(0, 8, 12)  # moves [5, 8) to [9, 12), into the third block
    return A[:8] + A[12:]


def park(scheduler):
    scheduler.park(0)
    return A


@pytest.mark.parametrize(("edit", "hit"), [(rewind, 8), (cut, 8), (park, 20)])
def test_what_follows_an_edit_is_not_entered_into_the_index(edit, hit):
    scheduler = make_scheduler()
    stream(scheduler, 0, A)
    kept = edit(scheduler)
    scheduler.append(0, B)
    run(scheduler)
    assert num_hit(scheduler, [*kept, *B, *B]) == hit, "the new tokens"
    scheduler = make_scheduler()
    stream(scheduler, 0, A)
    edit(scheduler)
    scheduler.append(0, B)
    run(scheduler)
    assert num_hit(scheduler, [*A, *A]) == hit, "the old tokens"


def test_a_fork_goes_on_with_the_chain_of_its_parent():
    scheduler = make_scheduler()
    stream(scheduler, 0, A)
    scheduler.fork(0, 1)
    scheduler.append(1, B)
    run(scheduler)
    assert num_hit(scheduler, [*A, *B]) == 24


def test_hashes_of_a_turn_that_was_given_up_do_not_leave_nothing_to_compute():
    scheduler = make_scheduler(num_blocks=7)
    scheduler.open(0, SMALL, max_tokens=40)
    scheduler.append(0, A[:9])
    scheduler.start_turn(0, SamplingParams())
    step(scheduler)
    scheduler.open(1, SMALL, is_stream=True)
    scheduler.append(1, A[:9])
    scheduler.start_turn(1, SamplingParams())  # would compute nine tokens, but has to wait
    step(scheduler)
    scheduler.end_turn(1)  # eight will do
    scheduler.close(0)
    (scheduled,) = step(scheduler)[0].sequences
    assert (scheduled.num_computed_tokens, scheduled.num_tokens) == (4, 8)
