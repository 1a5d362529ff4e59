"""A structure is exactly one of its forms, and can be written as JSON."""

from __future__ import annotations

import pytest

from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.scheduler.structured_outputs import StructuredOutputsParams

FORMS = [
    {"json": '{"type": "string"}'},
    {"regex": "a+"},
    {"choice": ("a", "b")},
    {"grammar": 'start: "a"'},
    {"json_object": True},
]


@pytest.mark.parametrize("form", FORMS)
def test_each_form_and_its_mapping(form):
    params = StructuredOutputsParams(**form)
    assert params.form == next(iter(form.items()))
    assert SamplingParams(structured_outputs=form).structured_outputs == params
    assert eval(repr(params)) == params and hash(params) == hash(StructuredOutputsParams(**form))


def test_schemas_are_kept_as_text():
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    params = StructuredOutputsParams(json=schema)
    schema["type"] = "changed"
    assert params.json == '{"type": "object", "properties": {"b": {}, "a": {}}}'
    assert StructuredOutputsParams(json=True).json == "true"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "exactly one of json, regex, choice, grammar, json_object, got none"),
        ({"regex": "a", "json_object": True}, "exactly one of .*, got regex, json_object"),
        ({"json": "{"}, "json must be a JSON schema"),
        ({"json": [1]}, "json must be a JSON schema"),
        ({"json": {"a": {1}}}, "json must be a JSON schema"),
        ({"regex": ""}, "regex must be text or None"),
        ({"choice": ["a", ""]}, "choice must be a non-empty string"),
        ({"grammar": 3}, "grammar must be text or None"),
        ({"json_object": "yes"}, "json_object must be a bool"),
    ],
)
def test_bad_values_are_named(params, message):
    with pytest.raises(ValueError, match=message):
        StructuredOutputsParams(**params)
    with pytest.raises(ValueError, match=f"structured_outputs.*{message}"):
        SamplingParams(structured_outputs=params)
