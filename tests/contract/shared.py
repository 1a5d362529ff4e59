"""What tests of the contract share."""

from __future__ import annotations

import pytest

from paged_stream import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
SHORT = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
RANDOM = SamplingParams(temperature=1.5, max_tokens=10, ignore_eos=True)
ENDLESS = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
PROMPT = [i % 90 + 2 for i in range(50)]
MESSAGES = [{"role": "user", "content": "hello"}]


def ids(deltas) -> list[int]:
    return [token_id for delta in deltas for token_id in delta.delta_token_ids]


def answers(outputs) -> list[tuple]:
    return [(each.text, each.token_ids, each.finish_reason) for o in outputs for each in o.outputs]


def same_turn(stream, twin, params=GREEDY) -> None:
    assert ids(stream.generate(params)) == ids(twin.generate(params))
    assert stream.position == twin.position


def refuses(message: str):
    return pytest.raises(ValueError, match=message)


# Replicas import this module; a test's own is none that they could find.
def letters(text: str) -> list[int]:
    """Token ids of a text, in the vocabulary of `save_tokenizer`."""
    return [ord(letter) - 30 for letter in text]


def likely(text: str, bias: float = 100.0) -> dict[int, float]:
    return dict.fromkeys(letters(text), bias)
