"""Likelihoods of continuations are sums of scores, however the work is cut."""

from __future__ import annotations

import pytest

from paged_stream import LLM, SamplingParams
from paged_stream.evaluation import likelihoods
from paged_stream.evaluation.likelihoods import Pair, batches, continuation_likelihoods
from tests.contract.engines import SETTINGS

CONTEXT = [i % 90 + 2 for i in range(40)]  # longer than the window
PAIRS = [Pair(CONTEXT, [5]), Pair([7], CONTEXT[:9]), Pair(CONTEXT[:3], [4, 4, 4])]


@pytest.fixture(scope="module")
def llm(folder):
    with LLM(str(folder), **SETTINGS) as llm:
        yield llm


def scored(llm, context, continuation):
    scores = llm.score(context + continuation, use_tqdm=False)
    return sum(score for score in scores[len(context) :] if score is not None)


@pytest.mark.parametrize("at_once", [1 << 20, 45, 1])
def test_they_are_sums_of_scores(llm, monkeypatch, at_once):
    monkeypatch.setattr(likelihoods, "_TOKENS_AT_ONCE", at_once)
    found = list(continuation_likelihoods(llm, PAIRS))
    for pair, likelihood in zip(PAIRS, found, strict=True):
        assert likelihood.logprob == pytest.approx(scored(llm, *pair), abs=1e-5)


def test_what_the_model_would_say_is_greedy(llm):
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    [output] = llm.generate([CONTEXT], params, use_tqdm=False)
    answer = output.outputs[0].token_ids
    other = [*answer[:-1], (answer[-1] + 1) % 90]
    found = continuation_likelihoods(llm, [Pair(CONTEXT, answer), Pair(CONTEXT, other)])
    assert [each.is_greedy for each in found] == [True, False]


def test_contexts_lose_their_beginnings_where_there_is_a_limit(llm):
    [limited, alone] = continuation_likelihoods(llm, [Pair(CONTEXT, [5, 6]), PAIRS[1]], 10)
    assert limited.logprob == pytest.approx(scored(llm, CONTEXT[-9:], [5, 6]), abs=1e-5)
    assert alone.logprob == pytest.approx(scored(llm, *PAIRS[1]), abs=1e-5)
    with pytest.raises(ValueError, match="at most max_length=4 tokens, got 9"):
        next(continuation_likelihoods(llm, PAIRS, 4))


def test_batches_end_where_they_are_full(monkeypatch):
    monkeypatch.setattr(likelihoods, "_TOKENS_AT_ONCE", 5)
    assert list(batches("abcde", [2, 3, 1, 9, 1])) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert list(batches([], [])) == []
