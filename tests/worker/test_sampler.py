"""Each parameter does what it says, and nobody's neighbours matter."""

from __future__ import annotations

from array import array

import pytest
import torch

from paged_stream.scheduler.output import ScheduledSequence
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.scheduler.sink_window import SinkWindow
from paged_stream.worker import sampler
from paged_stream.worker.sampler import prepare_draw, token_logprobs

VOCAB = 50


def sequence(params, *, seed=0, history=(), num_output=0, position=100, stop=()):
    return ScheduledSequence(
        seq_id=0,
        token_ids=array("i", [0]),
        num_computed_tokens=position - 1,
        num_prompt_tokens=position - num_output,
        next_token_id=-1,
        block_row=array("i"),
        ring_blocks=1,
        sink_window=SinkWindow(4, 32),
        sampling_params=params,
        stop_token_ids=stop,
        seed=seed,
        max_new_tokens=1,
        history=array("i", history),
    )


def sample(logits, sequences):
    ends = range(1, 1 + len(sequences))
    return sampler.sample(logits, prepare_draw(sequences, ends, logits.device))


def draw(logits, params, count=4000, **kwargs):
    """Sample ``count`` times from one row of logits; return the frequencies."""
    rows = [sequence(params, seed=seed, **kwargs) for seed in range(count)]
    tokens, *_ = sample(logits.repeat(count, 1), rows)
    return torch.bincount(torch.tensor(tokens), minlength=len(logits)) / count


@pytest.fixture
def logits():
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(0)) * 2


def test_zero_temperature_takes_the_most_likely(logits):
    assert draw(logits, SamplingParams(temperature=0), 3)[logits.argmax()] == 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_softmax(logits, temperature):
    expected = torch.softmax(logits / temperature, dim=0)
    measured = draw(logits, SamplingParams(temperature=temperature), 20_000)
    assert (measured - expected).abs().max() < 0.015


def test_top_k(logits):
    kept = draw(logits, SamplingParams(top_k=3)).nonzero()[:, 0].tolist()
    assert sorted(kept) == sorted(logits.topk(3).indices.tolist())


def test_top_p(logits):
    probs, order = torch.softmax(logits, 0).sort(descending=True)
    count = int((probs.cumsum(0) < 0.6).sum()) + 1
    kept = draw(logits, SamplingParams(top_p=0.6), 20_000).nonzero()[:, 0].tolist()
    assert sorted(kept) == sorted(order[:count].tolist())


def test_tiny_top_p_keeps_one(logits):
    assert draw(logits, SamplingParams(top_p=1e-9), 50)[logits.argmax()] == 1


def test_min_p(logits):
    probs = torch.softmax(logits, 0)
    allowed = (probs >= 0.3 * probs.max()).nonzero()[:, 0].tolist()
    kept = draw(logits, SamplingParams(min_p=0.3)).nonzero()[:, 0].tolist()
    assert sorted(kept) == sorted(allowed)


def test_neighbours_do_not_matter(logits):
    params = [
        SamplingParams(temperature=1.3, top_p=0.9),
        SamplingParams(top_k=5),
        SamplingParams(temperature=0),
        SamplingParams(min_p=0.1, presence_penalty=1.0, logprobs=2),
    ]
    rows = [sequence(p, seed=i, history=[1, 2, 3], num_output=2) for i, p in enumerate(params)]
    generator = torch.Generator().manual_seed(1)
    batch = torch.randn(len(rows), VOCAB, generator=generator)
    together, *_ = sample(batch.clone(), rows)
    alone = [sample(batch[i : i + 1].clone(), [row])[0][0] for i, row in enumerate(rows)]
    assert together == alone


def test_position_and_seed_both_matter():
    logits = torch.zeros(VOCAB)
    params = SamplingParams()
    by_seed = {sample(logits[None].clone(), [sequence(params, seed=s)])[0][0] for s in range(30)}
    by_position = {
        sample(logits[None].clone(), [sequence(params, position=p)])[0][0] for p in range(50, 80)
    }
    assert len(by_seed) > 5 and len(by_position) > 5


def test_seeds_of_any_size(logits):
    rows = [sequence(SamplingParams(), seed=s) for s in (5, 2**64 + 5, -(2**64) + 5, -1, 2**64 - 1)]
    tokens, *_ = sample(logits.repeat(len(rows), 1), rows)
    assert tokens[0] == tokens[1] == tokens[2] and tokens[3] == tokens[4]


def test_penalties():
    history = [7, 7, 7, 8, 9, 9]  # the last three were generated
    params = SamplingParams(
        temperature=0, repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25
    )
    logits = torch.zeros(1, 10)
    logits[0, 7], logits[0, 8], logits[0, 9] = 4.0, -1.0, 3.0
    sample(logits, [sequence(params, history=history, num_output=3, position=6)])
    assert logits[0, 7] == 2.0  # seen in the prompt only: divided
    assert logits[0, 8] == -2.0 - 0.5 - 0.25  # negative: multiplied; generated once
    assert logits[0, 9] == 1.5 - 0.5 - 2 * 0.25
    assert logits[0, 0] == 0.0


@pytest.mark.parametrize(
    ("num_output", "expected"),
    [
        (50, {1: 0, 2: 0, 3: -1, 4: -31}),  # the whole window was generated, no sink was
        (97, {1: 0, 2: -1, 3: -1, 4: -31}),  # so was the last sink
        (2, {1: 0, 2: 0, 3: 0, 4: -2}),
    ],
)
def test_penalties_count_visible_output(num_output, expected):
    """4 sinks and a window of 32 at a length of 100."""
    params = SamplingParams(temperature=0, frequency_penalty=1.0)
    logits = torch.zeros(1, 10)
    history = [1, 1, 1, 2, 3] + [4] * 31
    sample(logits, [sequence(params, history=history, num_output=num_output)])
    assert {token: int(logits[0, token]) for token in expected} == expected


@pytest.mark.parametrize("params", [{"temperature": 1e-40}, {"top_p": 1e-46}])
def test_extreme_values_take_the_most_likely(logits, params):
    assert draw(logits, SamplingParams(**params), 3)[logits.argmax()] == 1


def test_stop_tokens_are_barred_until_min_tokens(logits):
    best = int(logits.argmax())
    params = SamplingParams(temperature=0, min_tokens=3)
    early = sequence(params, num_output=2, stop=(best,))
    late = sequence(params, num_output=3, stop=(best,))
    assert sample(logits[None].clone(), [early])[0][0] != best
    assert sample(logits[None].clone(), [late])[0][0] == best


def test_logprobs_are_of_the_raw_logits(logits):
    params = SamplingParams(temperature=0, logprobs=2, presence_penalty=2.0)
    best = int(logits.argmax())
    row = sequence(params, history=[best], num_output=1, position=1)
    (token,), (entry,), _ = sample(logits[None].clone(), [row])
    expected = torch.log_softmax(logits, 0)
    assert entry.token_id == token
    assert entry.logprob == pytest.approx(float(expected[token]), abs=1e-6)
    assert entry.top == pytest.approx(
        {int(i): float(expected[i]) for i in logits.topk(2).indices}, abs=1e-6
    )


def test_rank_and_top_of_known_tokens(logits):
    logprobs = torch.log_softmax(logits, 0)[None]
    order = logits.argsort(descending=True).tolist()
    for rank in (1, 2, 10):
        entries = token_logprobs(logprobs.expand(2, -1), [order[rank - 1], order[0]], [3, 1])
        assert [entry.rank for entry in entries] == [rank, 1]
        assert [list(entry.top) for entry in entries] == [order[:3], order[:1]]
