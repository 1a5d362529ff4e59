"""What a request changes in its logits: each field alone, and all in vLLM's order."""

from __future__ import annotations

import math
import pickle
from array import array
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from paged_stream.ops import NO_TOKEN
from paged_stream.scheduler.output import ScheduledSequence, TokenMask
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.scheduler.sink_window import SinkWindow
from paged_stream.scheduler.structured_outputs import StructuredOutputsParams
from paged_stream.worker.logits import NoTokenError, change_logits
from paged_stream.worker.sampler import prepare_draw, sample

VOCAB = 12
INF = math.inf


def sequence(params, *, generated=(), prompt=(1, 2, 3), bad_words=(), stop=(), mask=None):
    """The prompt and what was generated are visible, all of them."""
    history = [*prompt, *generated]
    return ScheduledSequence(
        seq_id=0,
        token_ids=array("i", history[-1:]),
        num_computed_tokens=len(history) - 1,
        num_prompt_tokens=len(prompt),
        next_token_id=-1,
        block_row=array("i"),
        ring_blocks=1,
        sink_window=SinkWindow(4, 32),
        sampling_params=params,
        stop_token_ids=stop,
        seed=0,
        max_new_tokens=1,
        history=array("i", history if params.needs_history else ()),
        bad_words=bad_words,
        mask=mask,
    )


def changed(params, **kwargs) -> list[float]:
    """Logits 0, 1, 2, ... after the changes."""
    row = torch.arange(VOCAB, dtype=torch.float32)
    asked = sequence(params, **kwargs)
    assert asked.changes_logits and not asked.decodes_alone
    change_logits(row, asked)
    return row.tolist()


def barred(row: list[float]) -> set[int]:
    return {token_id for token_id, value in enumerate(row) if value == -INF}


def test_requests_that_ask_for_nothing_change_nothing():
    assert not sequence(SamplingParams(temperature=0.5, top_p=0.5, seed=1)).changes_logits


def test_only_allowed_tokens():
    row = changed(SamplingParams(allowed_token_ids=[3, 5, 3]))
    assert barred(row) == set(range(VOCAB)) - {3, 5} and (row[3], row[5]) == (3, 5)


def test_biases_are_added():
    row = changed(SamplingParams(logit_bias={3: 2.5, 5: -100}))
    assert (row[2], row[3], row[4], row[5]) == (2, 5.5, 4, -95)


@pytest.mark.parametrize(
    ("generated", "expected"),
    [
        ([], {6}),
        ([7], {6, 8}),
        ([7, 8], {6, 9}),
        ([8, 7, 9], {6}),
        ([7, 8, 7], {6, 8}),
    ],
)
def test_what_would_complete_a_bad_word_is_barred(generated, expected):
    words = ((6,), (7, 8), (7, 8, 9), (VOCAB,))
    params = SamplingParams(bad_words=["words"])
    assert barred(changed(params, generated=generated, bad_words=words)) == expected


def test_the_prompt_is_no_part_of_a_bad_word():
    params = SamplingParams(bad_words=["words"])
    assert not barred(changed(params, prompt=(1, 7), bad_words=((7, 8),)))


def test_functions_see_what_was_generated_and_follow_each_other():
    seen = []

    def note(token_ids, logits):
        seen.append((token_ids, logits.tolist()))
        return logits * 2

    def last(token_ids, logits):
        seen.append((token_ids, logits.tolist()))
        logits[0] = 77  # in place
        return logits

    row = changed(SamplingParams(logits_processors=[note, last]), generated=[4, 5])
    plain = [float(i) for i in range(VOCAB)]
    doubled = [2 * value for value in plain]
    assert seen == [([4, 5], plain), ([4, 5], doubled)]
    assert row == [77, *doubled[1:]]


def test_the_order_is_that_of_vllm():
    """Allowed tokens, bad words, the bar on stop tokens, biases, functions, then penalties."""
    params = SamplingParams(
        allowed_token_ids=[4, 5, 6, 7, 8],
        bad_words=["words"],
        min_tokens=3,
        logit_bias={4: 1.0, 5: 1.0, 6: 1.0, 9: 1.0},
        logits_processors=lambda token_ids, logits: logits + 10,
        repetition_penalty=2.0,
        presence_penalty=1.0,
    )
    row = changed(params, generated=[4], bad_words=((5,),), stop=(6,))
    assert row == [-INF] * 4 + [(4 + 1 + 10) / 2 - 1, -INF, -INF, 17, 18] + [-INF] * 3


@pytest.mark.parametrize(
    "function",
    [
        lambda token_ids, logits: 1 / 0,
        lambda token_ids, logits: None,
        lambda token_ids, logits: logits[:1],
    ],
)
def test_a_function_that_fails_fails_alone(function):
    params = [SamplingParams(temperature=0, logits_processors=function, logprobs=1)]
    params += [SamplingParams(temperature=0, logit_bias={3: 100})]
    rows = [sequence(each) for each in params]
    with pytest.raises(NoTokenError):
        change_logits(torch.zeros(VOCAB), rows[0])
    logits = torch.zeros(2, VOCAB)
    tokens, logprobs, errors = sample(logits, prepare_draw(rows, [1, 2], logits.device))
    assert tokens == [NO_TOKEN, 3] and logprobs == [None, None]
    assert "logits processor" in errors[0] and errors[1] is None


STRUCTURE = StructuredOutputsParams(choice=["a"])


@pytest.fixture(scope="module")
def mask():
    """Makes masks of ids, which are worked out in another thread."""
    with ThreadPoolExecutor(1) as thread:

        def mask_of(*token_ids: int, num_bytes: int = 4) -> TokenMask:
            bits = sum(1 << token_id for token_id in token_ids)
            return TokenMask(thread.submit(bits.to_bytes, num_bytes, "little"))

        yield mask_of


def test_a_mask_comes_last(mask):
    params = SamplingParams(structured_outputs=STRUCTURE, logits_processors=lambda _, x: x + 10)
    row = changed(params, mask=mask(1, 7, 8, 11))
    assert row == [-INF, 11] + [-INF] * 5 + [17, 18, -INF, -INF, 21]
    assert changed(params, mask=pickle.loads(pickle.dumps(mask(1, 7, 8, 11)))) == row
    short = changed(params, mask=mask(1, 7, num_bytes=1))  # the head may have more rows
    assert barred(short) == set(range(VOCAB)) - {1, 7}


def test_other_wishes_count_as_far_as_a_mask_leaves_a_choice(mask):
    params = SamplingParams(structured_outputs=STRUCTURE, min_tokens=3, logit_bias={5: 1, 6: 2})
    assert barred(changed(params, stop=(6,), mask=mask(5, 6))) == set(range(VOCAB)) - {5}
    row = changed(params, stop=(6,), mask=mask(6))
    assert row == [-INF] * 6 + [6.0] + [-INF] * 5


def test_an_empty_mask_leaves_no_token(mask):
    params = SamplingParams(structured_outputs=STRUCTURE)
    with pytest.raises(NoTokenError, match="structured_outputs"):
        changed(params, mask=mask())


def plain(params=None, **kwargs):
    return sequence(params or SamplingParams(temperature=0), **kwargs)


@pytest.mark.parametrize("bad", [[math.nan], [INF], [-math.nan, INF], [-INF] * VOCAB])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0, logprobs=1),
        SamplingParams(temperature=1, seed=1),
        # Each of these hides the token whose logit is wrong.
        SamplingParams(temperature=0, allowed_token_ids=[5]),
        SamplingParams(temperature=0, logits_processors=lambda _, logits: logits * 0 + 1),
    ],
)
def test_logits_that_are_not_finite_are_an_error_of_that_row_alone(bad, params):
    rows = [plain(), plain(params), plain(SamplingParams(temperature=0, logprobs=0))]
    logits = torch.arange(VOCAB).float().repeat(3, 1)
    logits[1, : len(bad)] = torch.tensor(bad)
    tokens, logprobs, errors = sample(logits, prepare_draw(rows, [1, 2, 3], logits.device))
    assert tokens == [VOCAB - 1, NO_TOKEN, VOCAB - 1]
    assert errors == [None, "the model's logits for position 3 are not finite", None]
    assert logprobs[:2] == [None, None] and logprobs[2].token_id == VOCAB - 1


def test_tokens_that_are_impossible_are_no_error():
    logits = torch.arange(VOCAB).float()[None]
    logits[0, 3:] = -INF
    rows = [plain()]
    assert sample(logits, prepare_draw(rows, [1], logits.device)) == ([2], [None], [None])


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0, allowed_token_ids=[5], bad_words=["words"]),
        SamplingParams(temperature=0, logits_processors=lambda _, logits: logits - INF),
        SamplingParams(temperature=1, logits_processors=lambda _, logits: logits * math.nan),
    ],
)
def test_parameters_that_leave_no_token_say_so(params):
    logits = torch.zeros(1, VOCAB)
    rows = [plain(params, bad_words=((5,),))]
    tokens, _, errors = sample(logits, prepare_draw(rows, [1], logits.device))
    assert tokens == [NO_TOKEN] and "no token can be sampled: allowed_token_ids" in errors[0]
