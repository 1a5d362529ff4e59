"""Calls of tools are found in each format, however the text comes, and nothing else is lost."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paged_stream.text.tool_calls import (
    CallPart,
    ForcedCall,
    ForcedCalls,
    Llama3Calls,
    MistralCalls,
    PlainText,
    TaggedCalls,
    format_of,
)

F = ("f", {"a": 1})
G = ("g", {"b": ["x", {"c": "}"}]})


def read(reader, parts):
    """The text of an answer, and its calls as names and arguments."""
    pieces = [piece for part in parts for piece in reader.feed(part)] + reader.finish()
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    calls: list[list[str]] = []
    for piece in pieces:
        if isinstance(piece, CallPart):
            if piece.name is not None:
                assert piece.index == len(calls) and piece.call_id
                calls.append([piece.name, ""])
            calls[piece.index][1] += piece.arguments
    assert reader.num_calls == len(calls)
    return text, [(name, json.loads(arguments)) for name, arguments in calls]


ANSWERS = [
    (
        PlainText,
        '<tool_call>{"name": "f"}</tool_call>',
        ('<tool_call>{"name": "f"}</tool_call>', []),
    ),
    (TaggedCalls, "no call", ("no call", [])),
    (TaggedCalls, 'x\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', ("x", [F])),
    (
        TaggedCalls,
        '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>\n'
        '<tool_call>{"name": "g", "arguments": {"b": ["x", {"c": "}"}]}}</tool_call>\n',
        ("", [F, G]),
    ),
    (
        TaggedCalls,
        '<tool_call>[{"name": "f", "arguments": {"a": 1}}, {"name": "f"}]</tool_call>',
        ("", [F, ("f", {})]),
    ),
    (TaggedCalls, '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}', ("", [F])),
    (
        TaggedCalls,
        "<tool_call>not JSON</tool_call> and",
        ("<tool_call>not JSON</tool_call> and", []),
    ),
    (TaggedCalls, '<tool_call>{"name": "f", "ar', ('<tool_call>{"name": "f", "ar', [])),
    (TaggedCalls, "a < b, <tool", ("a < b, <tool", [])),
    (Llama3Calls, '{"name": "f", "parameters": {"a": 1}}', ("", [F])),
    (Llama3Calls, '<|python_tag|>{"name": "f", "parameters": {"a": 1}}', ("", [F])),
    (
        Llama3Calls,
        '\n{"name": "f", "parameters": {"a": 1}}; {"name": "f", "parameters": {}}',
        ("", [F, ("f", {})]),
    ),
    (Llama3Calls, '{"no": "call"}', ('{"no": "call"}', [])),
    (Llama3Calls, '{"name": "Bob"}', ('{"name": "Bob"}', [])),
    (Llama3Calls, 'So: {"name": "f"}', ('So: {"name": "f"}', [])),
    (Llama3Calls, '{"name": "f"} is it', ('{"name": "f"} is it', [])),
    (MistralCalls, 'x[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}]', ("x", [F])),
    (
        MistralCalls,
        '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g{"b": ["x", {"c": "}"}]}',
        ("", [F, G]),
    ),
    (MistralCalls, '[TOOL_CALLS]f[ARGS]{"a": 1} {}', ('[TOOL_CALLS]f[ARGS]{"a": 1} {}', [])),
    (MistralCalls, "[TOOL_CALLS] [1]", ("[TOOL_CALLS] [1]", [])),
    (MistralCalls, "[TOOL", ("[TOOL", [])),
    (lambda: ForcedCall("f"), '{"a": 1}', ("", [F])),
    (
        ForcedCalls,
        '[{"name": "f", "parameters": {"a": 1}}, {"name": "f", "parameters": {}}]',
        ("", [F, ("f", {})]),
    ),
    (ForcedCalls, '[{"name": "f", "para', ('[{"name": "f", "para', [])),
]


@pytest.mark.parametrize(("make", "answer", "expected"), ANSWERS)
@given(data=st.data())
def test_calls_are_found_however_the_text_comes(make, answer, expected, data):
    assert read(make(), [answer]) == expected
    assert read(make(), answer) == expected  # letter by letter
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=6)))
    parts = [answer[i:j] for i, j in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    assert read(make(), parts) == expected


@pytest.mark.parametrize("make", [TaggedCalls, Llama3Calls, MistralCalls, ForcedCalls])
@given(
    parts=st.lists(
        st.sampled_from(
            ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "[", "]"]
            + ['{"name": "f"}', '{"name": 1}', '"', "{", "}", "f", " ", ";", "\\", "1e999", "<"]
        ),
        max_size=8,
    )
)
def test_an_answer_without_a_call_is_as_it_was(make, parts):
    text, calls = read(make(), parts)
    if not calls:
        assert text == "".join(parts)


def test_text_is_not_held_back_longer_than_it_may_be_a_call():
    reader = TaggedCalls()
    assert reader.feed("text ") == ["text"]
    assert reader.feed("<b") == [" <b"]
    assert reader.feed("<tool") == []
    assert reader.feed("box>") == ["<toolbox>"]
    reader = Llama3Calls()
    assert reader.feed("plain {") == ["plain {"]
    forced = ForcedCall("f")
    assert [part.arguments for part in forced.feed("{") + forced.feed("}")] == ["{", "}"]


def test_calls_of_mistral_have_ids_that_its_templates_take():
    [call] = MistralCalls().feed("") + _finished(MistralCalls(), '[TOOL_CALLS][{"name": "f"}]')
    assert re.fullmatch("[a-zA-Z0-9]{9}", call.call_id)


def _finished(reader, text):
    return reader.feed(text) + reader.finish()


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ '<tool_call>' }}", "hermes"),
        ("{{ '[TOOL_CALLS]' }}", "mistral"),
        ("{{ '<|python_tag|>' }}", "llama3_json"),
        ("Environment: ipython", "llama3_json"),
        ("<tool_call> and <|python_tag|>", "hermes"),
        ("{{ messages }}", "hermes"),
    ],
)
def test_a_template_tells_the_format(template, expected):
    assert format_of(template) == expected
