"""The bodies of requests have the fields of `SamplingParams`, and no list of their own."""

from __future__ import annotations

import dataclasses

import pytest

from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.scheduler.settings import settings_of

bodies = pytest.importorskip("paged_stream.serve.openai_bodies", exc_type=ImportError)

VALUES = {
    "n": 2,
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
    "min_p": 0.5,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.5,
    "max_tokens": 7,
    "min_tokens": 3,
    "stop": ["a", "b"],
    "stop_token_ids": [1, 2],
    "include_stop_str_in_output": True,
    "ignore_eos": True,
    "bad_words": ["a", "b"],
    "allowed_token_ids": [1, 2],
    "logit_bias": {"1": -100.0},
    "seed": 3,
    "truncate_prompt_tokens": 5,
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "structured_outputs": {"choice": ["yes", "no"]},
}


def test_every_field_arrives_and_alone():
    settings = settings_of(SamplingParams)
    assert VALUES.keys() == {name for name, each in settings.items() if each.in_requests}
    for name, value in VALUES.items():
        body = bodies.Completion.model_validate({"prompt": "a", name: value})
        assert body.params() == SamplingParams(**{name: value})
        body = bodies.ChatCompletion.model_validate({"messages": [], name: value})
        expected = dataclasses.replace(SamplingParams(max_tokens=None), **{name: value})
        assert body.params() == expected


SCHEMA = {"type": "object", "properties": {"a": {"type": "null"}}}


@pytest.mark.parametrize(
    ("response_format", "expected"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"json_object": True}),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": SCHEMA}},
            {"json": SCHEMA},
        ),
    ],
)
def test_response_formats_are_structures(response_format, expected):
    body = {"prompt": "a", "response_format": response_format}
    params = bodies.Completion.model_validate(body).params()
    assert params == SamplingParams(structured_outputs=expected)
    if expected is not None:
        both = bodies.Completion.model_validate(body | {"structured_outputs": {"regex": "a"}})
        with pytest.raises(ValueError, match="response_format and structured_outputs"):
            both.params()


@pytest.mark.parametrize("response_format", [{"type": "xml"}, {"type": "json_schema"}, {}])
def test_response_formats_that_are_none_are_named(response_format):
    body = {"messages": [], "response_format": response_format}
    with pytest.raises(ValueError, match="response_format"):
        bodies.ChatCompletion.model_validate(body).params()


def test_what_is_null_is_left_out():
    body = bodies.Completion.model_validate({"prompt": "a"} | dict.fromkeys(VALUES))
    assert body.params() == SamplingParams()


@pytest.mark.parametrize(
    "name", ["prompt_logprobs", "detokenize", "logits_processors", "best_of", "reasoning_effort"]
)
def test_other_fields_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}\n.*Extra inputs are not permitted"):
        bodies.Completion.model_validate({"prompt": "a", name: 1})


@pytest.mark.parametrize("name", VALUES)
def test_wrong_values_are_named(name):
    with pytest.raises(ValueError, match=name):
        bodies.Completion.model_validate({"prompt": "a", name: {"a": {}}}).params()


def test_the_schema_says_what_fields_mean():
    fields = bodies.Completion.model_json_schema()["properties"]
    for name, setting in settings_of(SamplingParams).items():
        if setting.in_requests:
            assert fields[name]["description"] == setting.help
    assert {kind["type"] for kind in fields["top_k"]["anyOf"]} == {"integer", "null"}
