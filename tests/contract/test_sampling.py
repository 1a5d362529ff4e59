"""What every engine and stream samples, as far as parameters decide it."""

from __future__ import annotations

import re
from typing import Any
from unittest.mock import ANY

from paged_stream import SamplingParams, StructuredOutputsParams
from tests.contract.shared import (
    GREEDY,
    MESSAGES,
    PROMPT,
    answers,
    ids,
    letters,
    likely,
    refuses,
    same_turn,
)


def ways_to_sample() -> list[SamplingParams]:
    """One for each field that says more than how to draw."""

    def counts(token_ids, logits):  # within this function, so that Ray sends the code along
        logits[letters("0")[0] + len(token_ids)] += 1000
        return logits

    base: dict[str, Any] = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}
    return [
        SamplingParams(**base, allowed_token_ids=letters("ab"), logit_bias=likely("bc")),
        SamplingParams(**base, logit_bias=likely("b") | likely("a", 50.0), bad_words=["bb", "aa"]),
        SamplingParams(**base, logits_processors=counts),
        SamplingParams(**base, logits_processors=counts, stop=["23", "45"], min_tokens=4),
        SamplingParams(
            **base, logits_processors=counts, stop="23", include_stop_str_in_output=True
        ),
        SamplingParams(**base, logits_processors=counts, stop_token_ids=letters("2")),
        SamplingParams(
            **base,
            logits_processors=counts,
            stop_token_ids=letters("2"),
            include_stop_str_in_output=True,
        ),
        SamplingParams(**base, logits_processors=counts, detokenize=False),
        SamplingParams(**base, logit_bias={0: 100.0}, skip_special_tokens=False, stop="s>"),
        SamplingParams(**base, logit_bias={0: 100.0}, stop="</s>"),
        SamplingParams(temperature=0, logit_bias={0: 100.0}),
        SamplingParams(**base, structured_outputs=StructuredOutputsParams(choice=["cab"])),
        SamplingParams(**base, structured_outputs=StructuredOutputsParams(regex="[0-9]{9}")),
    ]


SAMPLED = [  # text, number of tokens, why it ended
    ("bbbbbb", 6, "length", None),
    ("bababa", 6, "length", None),
    ("012345", 6, "length", None),
    ("0123", 6, "stop", "45"),
    ("0123", 4, "stop", "23"),
    ("01", 3, "stop", letters("2")[0]),
    ("012", 3, "stop", letters("2")[0]),
    ("", 6, "length", None),
    ("</", 1, "stop", "s>"),
    ("", 1, "stop", "</s>"),
    ("", 1, "stop", None),
    ("cab", 3, "stop", None),
    (ANY, 6, "length", None),
]


def test_every_way_to_sample(engine, stream):
    params = ways_to_sample()
    outputs = engine.generate([PROMPT] * len(params), params, use_tqdm=False)
    completions = [output.outputs[0] for output in outputs]
    assert SAMPLED == [
        (each.text, len(each.token_ids), each.finish_reason, each.stop_reason)
        for each in completions
    ]
    for each, expected in zip(params, SAMPLED, strict=True):
        deltas = list(stream.complete(PROMPT, each))
        text, last = "".join(delta.delta_text for delta in deltas), deltas[-1]
        assert (text, len(ids(deltas)), last.finish_reason, last.stop_reason) == expected


NO_EXPRESSION = SamplingParams(structured_outputs=StructuredOutputsParams(regex="a("))


def test_structures_that_cannot_be_are_refused_at_once(engine, stream):
    for refused in (
        lambda: engine.generate(PROMPT, NO_EXPRESSION, use_tqdm=False),
        lambda: engine.chat(MESSAGES, NO_EXPRESSION, use_tqdm=False),
        lambda: list(stream.complete(PROMPT, NO_EXPRESSION)),
        lambda: list(stream.chat("hello", NO_EXPRESSION)),
    ):
        with refuses("structured_outputs: regex cannot be used: .*unclosed group"):
            refused()
    assert stream.position == 0
    stream.append(PROMPT)
    with refuses("structured_outputs: regex"):
        list(stream.generate(NO_EXPRESSION))
    assert len(ids(stream.generate(GREEDY))) == 10


def test_a_structure_is_of_one_turn(engine, stream, twin):
    params = SamplingParams(
        seed=1, max_tokens=50, structured_outputs=StructuredOutputsParams(regex="(ab?){8}[0-9]{8}")
    )
    for _ in range(3):  # the window is smaller than two of these
        text = "".join(delta.delta_text for delta in stream.complete(PROMPT, params))
        assert re.fullmatch("(ab?){8}[0-9]{8}", text)
        assert "".join(delta.delta_text for delta in twin.complete(PROMPT, params)) == text
        same_turn(stream, twin)


def test_a_function_that_fails_ends_its_request(engine, stream, reference):
    def fails(token_ids, logits):
        return logits if len(token_ids) < 3 else None

    failing = SamplingParams(temperature=0, max_tokens=10, logits_processors=fails, ignore_eos=True)
    bad, good = engine.generate([PROMPT] * 2, [failing, GREEDY], use_tqdm=False)
    assert answers([good]) == answers(reference.generate(PROMPT, GREEDY, use_tqdm=False))
    assert bad.outputs[0].finish_reason == "error" and "fails" in bad.outputs[0].error
    assert bad.outputs[0].token_ids == good.outputs[0].token_ids[:3]
    deltas = list(stream.complete(PROMPT, failing))
    assert len(ids(deltas)) == 3 and deltas[-1].finish_reason == "error"
    assert len(ids(stream.generate(GREEDY))) == 10
