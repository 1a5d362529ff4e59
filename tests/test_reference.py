"""The oracles agree with each other, with transformers, and depend on what they should."""

from __future__ import annotations

import pytest
import torch

from tests.reference import (
    PublishedStream,
    dense_logits,
    published_greedy,
    published_logits,
    random_ids,
    tiny_llama,
    token_logprobs,
)

SHAPES = {
    "gqa3": {},
    "mha": {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8},
    "mqa": {"num_attention_heads": 4, "num_key_value_heads": 1, "attention_bias": True},
    "tied": {"tie_word_embeddings": True, "mlp_bias": True, "num_hidden_layers": 3},
    "linear_rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}},
}
# (S, W): ordinary, no sinks, window of one token, both, more sinks than window
SINKS_AND_WINDOWS = [(4, 12), (1, 7), (0, 9), (3, 1), (0, 1), (11, 5)]


def hf_logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("num_sink_tokens", "window_size"), SINKS_AND_WINDOWS)
def test_dense_equals_published(shape, num_sink_tokens, window_size):
    model = tiny_llama(1, **SHAPES[shape])
    ids = random_ids(model, max(6 * window_size, 3 * (num_sink_tokens + window_size)))
    dense = dense_logits(model, ids, num_sink_tokens, window_size)
    published = published_logits(model, ids, num_sink_tokens, window_size)
    assert dense.dtype == torch.float64
    torch.testing.assert_close(dense, published, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_oracles_equal_transformers_until_eviction(shape):
    model = tiny_llama(2, **SHAPES[shape])
    ids = random_ids(model, 40)
    expected = hf_logits(model, ids).double()
    torch.testing.assert_close(dense_logits(model, ids, 0, None), expected, rtol=0, atol=1e-4)
    for logits in (dense_logits(model, ids, 4, 36), published_logits(model, ids, 4, 36)):
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    # One token past S + W, something has been evicted, and it shows from there on only.
    evicted = (dense_logits(model, ids, 4, 35) - expected).abs().amax(-1)
    assert evicted[:39].max() < 1e-4 < 1e-2 < evicted[39]


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_depend_on_sinks_window_and_clamping(shape):
    """The models are such that a wrong S, W or sink distance cannot hide below the tolerance."""
    model = tiny_llama(3, **SHAPES[shape])
    ids = random_ids(model, 96)

    def logprobs(*args, **kwargs):
        return dense_logits(model, ids, *args, **kwargs)[17:].log_softmax(-1)

    base = logprobs(4, 12)
    for other in (
        logprobs(3, 12),
        logprobs(5, 12),
        logprobs(4, 11),
        logprobs(4, 13),
        logprobs(0, 16),
        logprobs(4, 12, clamp_sinks=False),
    ):
        difference = (base - other).abs().amax(-1)
        assert difference.median() > 0.02  # 200 times the tolerance of the engine's tests
        assert difference.max() > 0.2


def test_query_chunk_changes_nothing():
    model = tiny_llama(4)
    ids = random_ids(model, 70)
    whole = dense_logits(model, ids, 3, 10, query_chunk=70)
    torch.testing.assert_close(
        whole, dense_logits(model, ids, 3, 10, query_chunk=7), rtol=0, atol=1e-12
    )


def test_greedy_follows_the_logits_past_the_window():
    model = tiny_llama(5)
    prompt = random_ids(model, 10)
    tokens = published_greedy(model, prompt, 60, 2, 9)
    logits = dense_logits(model, prompt + tokens, 2, 9)
    assert tokens == logits[len(prompt) - 1 : -1].argmax(-1).tolist()
    generated = model.generate(torch.tensor([prompt]), max_new_tokens=60, do_sample=False)[0, 10:]
    assert published_greedy(model, prompt, 60, 4, 80) == generated.tolist()
    assert tokens != generated.tolist()


def feed(stream, ids):
    return torch.stack([stream.step(token) for token in ids])


@pytest.mark.parametrize("length", [2, 9, 40])
def test_cutting_nothing_changes_nothing(length):
    model = tiny_llama(7).double()
    ids = random_ids(model, length + 30)
    stream = PublishedStream(model, 3, 12)
    feed(stream, ids[:length])
    for position in range(max(3, length - 11), length + 1):
        stream.cut(position, position)
    stream.rewind(0)
    assert torch.equal(feed(stream, ids[length:]), published_logits(model, ids, 3, 12)[length:])


@pytest.mark.parametrize("length, dropped", [(14, 5), (14, 13), (8, 8), (14, 0)])
def test_rewound_before_eviction_it_says_the_same_again(length, dropped):
    model = tiny_llama(8).double()
    ids = random_ids(model, 50)
    stream = PublishedStream(model, 3, 12)
    feed(stream, ids[:length])
    stream.rewind(dropped)
    assert stream.position == length - dropped
    expected = published_logits(model, ids, 3, 12)[length - dropped :]
    assert torch.equal(feed(stream, ids[length - dropped :]), expected)


@pytest.mark.parametrize("length, dropped", [(15, 4), (40, 4), (40, 10), (40, 11)])
def test_rewound_after_eviction_it_lacks_what_was_evicted(length, dropped):
    model = tiny_llama(9).double()
    ids, start = random_ids(model, 70), length - dropped
    stream = PublishedStream(model, 3, 12)
    feed(stream, ids[:length])
    stream.rewind(dropped)
    floors = torch.zeros(70, dtype=torch.int64)
    floors[start:] = length - 11
    expected = dense_logits(model, ids, 3, 12, window_floors=floors)[start:]
    again = feed(stream, ids[start:])
    torch.testing.assert_close(again, expected, rtol=0, atol=1e-9)
    difference = (again - dense_logits(model, ids, 3, 12)[start:]).abs().amax(-1)
    assert difference[0] > 1e-2


@pytest.mark.parametrize("start, end", [(3, 6), (5, 12), (10, 14), (3, 14)])
def test_a_cut_leaves_what_keys_and_values_have_read_but_no_gap(start, end):
    """In a single layer they have read nothing but their own tokens, so there the span is gone."""
    for num_layers in (1, 2):
        model = tiny_llama(10, num_hidden_layers=num_layers).double()
        ids = random_ids(model, 60)
        stream = PublishedStream(model, 3, 12)
        feed(stream, ids[:14])
        stream.cut(start, end)
        assert stream.position == 14
        without = published_logits(model, ids[:start] + ids[end:], 3, 12)[14 - (end - start) :]
        difference = (feed(stream, ids[14:]) - without).abs().amax(-1)
        # What was cut at the very end has been read by nobody.
        unread = num_layers == 1 or end == 14
        assert difference.max() < 1e-9 if unread else difference[0] > 1e-2


def test_cuts_name_positions_as_the_engine_counts_them():
    """Three cuts in a stream far past its window, by position and by hand in its cache."""
    model = tiny_llama(11).double()
    ids, places = random_ids(model, 80), list(range(3)) + list(range(39, 50))
    stream, cache = PublishedStream(model, 3, 12), PublishedStream(model, 3, 12)
    feed(stream, ids[:50]), feed(cache, ids[:50])
    for start, end in [(41, 43), (45, 46), (43, 47)]:
        stream.cut(start, end)
        begin = places.index(start)
        cache._remove(begin, begin + end - start)
        kept = places[:begin] + places[begin + end - start :]
        places = kept[:3] + list(range(50 - len(kept) + 3, 50))
    assert torch.equal(feed(stream, ids[50:]), feed(cache, ids[50:]))


def test_token_logprobs():
    model = tiny_llama(6)
    ids = random_ids(model, 12)
    logits = dense_logits(model, ids, 0, None)
    logprobs = token_logprobs(logits, ids)
    assert logprobs.shape == (11,)
    assert logprobs[3] == logits[3].log_softmax(-1)[ids[4]]
