"""What is guessed, and how much at once."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paged_stream.scheduler.output import ModelOutput
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.scheduler.sink_window import SinkWindow
from paged_stream.scheduler.speculation import MAX_STEP_TOKENS, Pace, PromptLookup
from tests.scheduler.builders import SMALL, make_scheduler

TOKENS = st.lists(st.integers(0, 3) | st.integers(250, 260), min_size=1, max_size=60)


def follows_longest_match(seen: list[int], count: int, least: int, most: int) -> list[int]:
    """By its definition: the latest among the longest matches, and the text goes round."""
    for length in range(min(most, len(seen) - 1), least - 1, -1):
        for start in range(len(seen) - length - 1, -1, -1):
            if seen[start : start + length] == seen[len(seen) - length :]:
                text = list(seen)
                for _ in range(count):
                    text.append(text[start + length])
                    start += 1
                return text[len(seen) :]
    return []


@given(TOKENS, st.integers(1, 9), st.integers(1, 3), st.integers(0, 3))
def test_lookup_is_what_followed_the_longest_and_latest_match(seen, count, least, more):
    lookup = PromptLookup(num_tokens=count, max_ngram=least + more, min_ngram=least)
    expected = follows_longest_match(seen, count, least, least + more)
    assert lookup.look_up(array("i", seen), count).tolist() == expected


def test_bytes_that_only_look_like_the_tokens_are_no_match():
    # In memory, 1 and 256 are 1 0 0 0 0 1 0 0: shifted by a byte, 0 0 0 0 | 1 0 0 ... is no token.
    seen = array("i", [0x01000000, 0x00000100, 7, 0x00010000])
    lookup = PromptLookup(num_tokens=2, max_ngram=1, min_ngram=1)
    assert not lookup.look_up(seen, 2)


def test_pace_grows_with_right_guesses_and_rests_after_wrong_ones():
    pace = Pace(length=8)
    pace.note(8, 3, most=8)
    assert (pace.length, pace.rest) == (4, 0)
    pace.note(4, 4, most=8)
    assert (pace.length, pace.rest) == (8, 0)
    rests = []
    for _ in range(6):
        pace.note(pace.length, 0, most=8)
        rests.append(pace.rest)
    assert pace.length == 1 and rests == [0, 2, 6, 14, 16, 16]
    pace.note(1, 1, most=8)
    assert (pace.length, pace.rest) == (2, 0)


LOOKUP = PromptLookup(num_tokens=8, max_ngram=3, min_ngram=1)
ROUND = [1, 2, 3, 4, 5, 6, 7]


def decoding(scheduler, seq_id, *, prompt=3 * ROUND, window=SMALL, **params):
    """A sequence that has computed its prompt, and whose last token is the round's first."""
    scheduler.open(seq_id, window, is_stream=True)
    scheduler.append(seq_id, prompt)
    scheduler.start_turn(seq_id, SamplingParams(temperature=0.0, **params))
    while scheduler.sequences[seq_id].num_pending_tokens > 1:
        take(scheduler, lambda share: [ROUND[0]])
    return scheduler.sequences[seq_id]


def take(scheduler, sample):
    """One step, in which ``sample`` tells what is sampled for each share that samples."""
    output = scheduler.schedule()
    tokens = [sample(share) if share.samples else [] for share in output.sequences]
    count = len(tokens)
    result = ModelOutput(tokens, [None] * count, [[] for _ in tokens], [None] * count)
    updates = scheduler.update(output, result)
    scheduler.check_integrity()
    return output, updates


def right(count):
    """Samples the first ``count`` guesses, and something else instead of the next."""

    def sample(share):
        guesses = share.token_ids[share.num_known_tokens :].tolist()
        return [*guesses[:count], 90]

    return sample


@pytest.mark.parametrize("num_right", range(6))
def test_right_guesses_are_computed_and_wrong_ones_are_not(num_right):
    scheduler = make_scheduler(guesser=LOOKUP)
    sequence = decoding(scheduler, 1, max_tokens=50)
    start = sequence.num_tokens
    output, (update,) = take(scheduler, right(num_right))
    (share,) = output.sequences
    assert share.token_ids.tolist() == [*ROUND, 1, 2] and share.num_draft_tokens == 8
    assert update.token_ids == [*ROUND[1 : 1 + num_right], 90]
    assert update.num_computed_tokens == start + num_right
    assert sequence.num_pending_tokens == 1
    assert scheduler.num_draft_tokens == 8
    assert scheduler.num_accepted_tokens == num_right
    assert sequence.visible_token_ids().tolist()[-num_right - 2 :] == [*ROUND[: 1 + num_right], 90]


def test_a_guess_fits_the_ring_the_turn_and_the_step():
    scheduler = make_scheduler(guesser=LOOKUP)
    decoding(scheduler, 1, max_tokens=50)
    (share,) = scheduler.schedule().sequences
    assert len(share.token_ids) == 9 <= SMALL.max_chunk(share.ring_blocks, 4)
    scheduler = make_scheduler(guesser=LOOKUP)
    decoding(scheduler, 1, max_tokens=4)  # one of which it has
    assert len(scheduler.schedule().sequences[0].token_ids) == 3
    scheduler = make_scheduler(guesser=LOOKUP, max_num_batched_tokens=4)
    decoding(scheduler, 1, max_tokens=50)
    assert len(scheduler.schedule().sequences[0].token_ids) == 4
    scheduler = make_scheduler(guesser=LOOKUP)
    decoding(scheduler, 1, max_tokens=50, window=SinkWindow(4, None))
    assert len(scheduler.schedule().sequences[0].token_ids) == 9


def test_nobody_is_guessed_for_whose_logits_the_host_changes_or_wants():
    for params in ({"logprobs": 1}, {"presence_penalty": 0.5}, {"min_tokens": 9}):
        scheduler = make_scheduler(guesser=LOOKUP)
        decoding(scheduler, 1, max_tokens=50, **params)
        assert scheduler.schedule().sequences[0].num_draft_tokens == 0


def test_a_large_step_has_no_room_for_guesses():
    settings = {"num_blocks": 512, "max_num_seqs": 32, "max_num_batched_tokens": 512}
    for count, guessed in ((1, 8), (2, 7), (4, 3), (8, 1), (9, 0), (20, 0)):
        scheduler = make_scheduler(guesser=LOOKUP, **settings)
        for seq_id in range(count):
            scheduler.open(seq_id, SMALL, is_stream=True)
            scheduler.append(seq_id, 3 * ROUND)
            scheduler.start_turn(seq_id, SamplingParams(temperature=0.0, max_tokens=50))
        take(scheduler, lambda share: [ROUND[0]])
        output = scheduler.schedule()
        assert [share.num_draft_tokens for share in output.sequences] == [guessed] * count
        assert sum(len(share.token_ids) for share in output.sequences) <= max(
            MAX_STEP_TOKENS, count
        )


def test_steps_go_together_while_nothing_is_guessed():
    scheduler = make_scheduler(guesser=LOOKUP, num_decode_steps=4)
    decoding(scheduler, 1, max_tokens=50)
    sizes, guessed = [], []
    for _ in range(9):
        output = scheduler.schedule()
        tokens = [[90] * output.num_steps]  # which no guess is, until it has been seen
        scheduler.update(output, ModelOutput(tokens, [None], [[]], [None]))
        sizes.append(output.num_steps)
        guessed.append(output.sequences[0].num_draft_tokens)
        if guessed[-1]:
            assert sizes[-1] == 1
    assert guessed[0] > 0 and max(sizes) > 1


def test_large_batches_go_on_in_groups():
    scheduler = make_scheduler(
        guesser=LOOKUP,
        num_decode_steps=4,
        num_blocks=512,
        max_num_seqs=9,
        max_num_batched_tokens=512,
    )
    for seq_id in range(9):
        scheduler.open(seq_id, SMALL, is_stream=True)
        scheduler.append(seq_id, 3 * ROUND)
        scheduler.start_turn(seq_id, SamplingParams(temperature=0.0, max_tokens=50))
    take(scheduler, lambda share: [ROUND[0]])
    assert scheduler.schedule().num_steps == 4


def test_a_sequence_that_is_gone_is_forgotten():
    scheduler = make_scheduler(guesser=LOOKUP)
    decoding(scheduler, 1, max_tokens=50)
    take(scheduler, right(0))
    scheduler.close(1)
    assert not scheduler._speculator._paces
