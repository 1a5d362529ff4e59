"""Every field is checked where it enters, and the error names it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from paged_stream.scheduler.sampling_params import SamplingParams


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("n", 1025),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("top_k", 1.5),
        ("top_k", 2**63),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("presence_penalty", 3.0),
        ("frequency_penalty", -3.0),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 1e-40),
        ("temperature", 10**400),
        ("n", None),
        ("top_k", None),
        ("min_tokens", None),
        ("ignore_eos", "no"),
        ("max_tokens", 0),
        ("max_tokens", True),
        ("min_tokens", -1),
        ("min_tokens", 17),
        ("stop", ""),
        ("stop", ["a", 3]),
        ("stop", 5),
        ("stop_token_ids", 5),
        ("stop_token_ids", [True]),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", ["a"]),
        ("logprobs", -1),
        ("prompt_logprobs", -1),
        ("seed", "x"),
        ("include_stop_str_in_output", 1),
        ("bad_words", ""),
        ("bad_words", [3]),
        ("allowed_token_ids", []),
        ("allowed_token_ids", [-1]),
        ("allowed_token_ids", 5),
        ("logit_bias", [5]),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {"a": 1.0}),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", {1: "a lot"}),
        ("truncate_prompt_tokens", 0),
        ("truncate_prompt_tokens", -2),
        ("skip_special_tokens", None),
        ("spaces_between_special_tokens", "no"),
        ("detokenize", 0),
        ("logits_processors", 5),
        ("logits_processors", [5]),
        ("structured_outputs", "yes or no"),
        ("structured_outputs", {"jsn": {}}),
        ("structured_outputs", {}),
    ],
)
def test_bad_values_name_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        SamplingParams(**{field: value})


def test_stop_is_normalised():
    assert SamplingParams(stop="x").stop == ("x",)
    assert SamplingParams(stop=["x", "y"]).stop == ("x", "y")
    assert SamplingParams().stop == ()


def test_biases_are_those_of_ids_and_no_larger_than_100():
    params = SamplingParams(logit_bias={"7": -1e9, 8: 3, np.int64(9): np.float32(1e9)})
    assert params.logit_bias == {7: -100.0, 8: 3.0, 9: 100.0}
    assert SamplingParams().logit_bias is None


def test_one_function_or_several():
    def processor(token_ids, logits):
        return logits

    assert SamplingParams(logits_processors=processor).logits_processors == (processor,)
    assert SamplingParams(logits_processors=[processor]).logits_processors == (processor,)
    assert SamplingParams(logits_processors=None).logits_processors == ()


def test_stop_strings_need_a_text():
    with pytest.raises(ValueError, match="stop needs a text"):
        SamplingParams(stop="a", detokenize=False)
