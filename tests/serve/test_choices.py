"""An answer part by part is the same as the whole one, and calls of tools are in their place."""

from __future__ import annotations

import json

import pytest

from paged_stream.engine.outputs import RequestDelta, RequestMetrics, TokenLogprob

pytest.importorskip("fastapi")

from paged_stream.serve.choices import Echo, MessageChoice, TextChoice
from paged_stream.serve.logprobs import TextLogprobs, message_logprobs
from paged_stream.serve.tools import NamedTool, Tool, ToolUse

CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
TOOLS = [Tool.model_validate({"type": "function", "function": {"name": name}}) for name in "fg"]


def delta(text="", ids=(7,), reason=None, **more):
    return RequestDelta(
        request_id="r",
        index=0,
        delta_text=text,
        delta_token_ids=list(ids),
        finished=reason is not None,
        finish_reason=reason,
        stop_reason=None,
        logprobs=more.get("logprobs"),
        prompt_logprobs=more.get("prompt_logprobs"),
        metrics=RequestMetrics.of_arrival(),
    )


class Texts:
    """A vocabulary in which a token is the letter of its number."""

    def text(self, token_id):
        return chr(token_id)

    def content(self, token_id):
        return chr(token_id).encode()


def message(text, use, reason="stop", call_format="hermes"):
    """The parts of an answer that comes letter by letter, and the whole one."""
    choice = MessageChoice(0, False, use.reader(call_format), use, None)
    parts = [choice.part(delta(letter)) for letter in text] + [choice.part(delta(reason=reason))]
    assert [part["delta"].get("role") for part in parts] == ["assistant"] + [None] * len(text)
    return parts, choice.joined(parts)


def test_calls_are_told_as_calls():
    parts, whole = message(f"So:\n{CALL}{CALL}", ToolUse(TOOLS, None, True))
    assert whole["finish_reason"] == parts[-1]["finish_reason"] == "tool_calls"
    assert whole["message"]["content"] == "So:"
    calls = whole["message"]["tool_calls"]
    assert len({call["id"] for call in calls}) == 2
    for call in calls:
        assert call["type"] == "function" and "index" not in call
        assert call["function"] == {"name": "f", "arguments": '{"a": 1}'}
    told = [call for part in parts for call in part["delta"].get("tool_calls", ())]
    assert [call["index"] for call in told] == [0, 1]


def test_a_message_of_calls_alone_has_no_content():
    _, whole = message(CALL, ToolUse(TOOLS, "auto", True))
    assert whole["message"]["content"] is None
    _, whole = message("", ToolUse(TOOLS, "auto", True))
    assert whole["message"] == {"role": "assistant", "content": ""}


def test_one_call_if_no_more_are_wanted():
    _, whole = message(CALL + CALL, ToolUse(TOOLS, "auto", False))
    assert len(whole["message"]["tool_calls"]) == 1


@pytest.mark.parametrize(("tools", "choice"), [(None, None), (TOOLS, "none"), (None, "auto")])
def test_calls_are_text_where_none_are_wanted(tools, choice):
    use = ToolUse(tools, choice, True)
    assert not use.is_read and not use.is_shown and use.structure() is None
    _, whole = message(CALL, use, call_format=None)
    assert whole["message"] == {"role": "assistant", "content": CALL}
    assert whole["finish_reason"] == "stop"


def test_a_forced_function_comes_in_pieces():
    choice = NamedTool.model_validate({"type": "function", "function": {"name": "g"}})
    parts, whole = message('{"b": 2}', ToolUse(TOOLS, choice, True), call_format=None)
    told = [call for part in parts for call in part["delta"].get("tool_calls", ())]
    assert len(told) == len('{"b": 2}') and told[0]["function"] == {"name": "g", "arguments": "{"}
    [call] = whole["message"]["tool_calls"]
    assert call["function"] == {"name": "g", "arguments": '{"b": 2}'}
    assert whole["finish_reason"] == "stop"  # as OpenAI's API has it


def test_required_calls_come_from_a_list():
    text = '[{"name": "f", "parameters": {}}, {"name": "g", "parameters": {"b": 2}}]'
    _, whole = message(text, ToolUse(TOOLS, "required", True), call_format=None)
    names = [call["function"]["name"] for call in whole["message"]["tool_calls"]]
    assert names == ["f", "g"] and whole["finish_reason"] == "tool_calls"
    _, whole = message(text[:20], ToolUse(TOOLS, "required", True), "length", None)
    assert whole["message"]["content"] == text[:20] and whole["finish_reason"] == "length"


def test_references_in_a_schema_stay_within_it():
    parameters = {"properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"type": "null"}}}
    function = {"name": "f", "parameters": parameters}
    tools = [*TOOLS, Tool.model_validate({"function": function})]
    schema = ToolUse(tools, "required", False).structure()["json"]
    assert schema["maxItems"] == 1
    place = schema["items"]["anyOf"][2]["properties"]["parameters"]["properties"]["a"]["$ref"]
    found = schema
    for step in place.removeprefix("#/").split("/"):
        found = found[int(step) if isinstance(found, list) else step]
    assert found == {"type": "null"}


def test_tools_that_are_not_there_are_named():
    choice = NamedTool.model_validate({"function": {"name": "h"}})
    with pytest.raises(ValueError, match="tool_choice must name a tool .'f', 'g'.*got 'h'"):
        ToolUse(TOOLS, choice, True)
    with pytest.raises(ValueError, match="tool_choice must be left out"):
        ToolUse(None, "required", True)


def entry(letter, logprob=-1.0, **top):
    return TokenLogprob(ord(letter), logprob, 1, {ord(each): p for each, p in top.items()})


def test_an_echo_waits_until_its_prompt_is_computed():
    echo = Echo("abc", [ord(letter) for letter in "abc"])
    choices = [
        TextChoice(i, True, echo, TextLogprobs(Texts(), 1), only_scores=False) for i in (0, 1)
    ]
    assert choices[0].part(delta(ids=(), prompt_logprobs=[entry("b", b=-1.0)])) is None
    last = delta("x", [ord("x")], prompt_logprobs=[entry("c")], logprobs=[entry("x", y=-0.5)])
    part = choices[0].part(last)
    assert part["text"] == "abcx" and part["token_ids"] == [ord("x")]
    assert part["logprobs"] == {
        "tokens": ["a", "b", "c", "x"],
        "token_logprobs": [None, -1.0, -1.0, -1.0],
        "top_logprobs": [None, {"b": -1.0}, {"c": -1.0}, {"y": -0.5, "x": -1.0}],
        "text_offset": [0, 1, 2, 3],
    }
    other = choices[1].part(delta("y", [ord("y")], "length", logprobs=[entry("y")]))
    assert other["text"] == "abcy" and other["logprobs"]["text_offset"] == [0, 1, 2, 3]
    rest = choices[0].part(delta("z", [ord("z")], "stop", logprobs=[entry("z")]))
    assert rest["logprobs"]["text_offset"] == [4]
    whole = choices[0].joined([part, rest])
    assert whole["text"] == "abcxz" and whole["logprobs"]["tokens"] == list("abcxz")
    assert whole["token_ids"] == [ord("x"), ord("z")] and whole["finish_reason"] == "stop"


def test_what_is_only_scored_comes_without_what_was_generated():
    choice = TextChoice(0, True, Echo("ab", [97, 98]), TextLogprobs(Texts(), 0), only_scores=True)
    last = delta("x", [120], "length", prompt_logprobs=[entry("b")], logprobs=[entry("x")])
    part = choice.part(last)
    assert part["text"] == "ab" and part["token_ids"] == []
    assert part["logprobs"]["tokens"] == ["a", "b"]


def test_log_probabilities_of_a_chat():
    content = message_logprobs(Texts(), [entry("é", float("-inf"), a=-2.0, b=-1.0)])["content"]
    json.dumps(content, allow_nan=False)
    assert content[0]["bytes"] == list("é".encode()) and content[0]["logprob"] == -9999.0
    assert [top["token"] for top in content[0]["top_logprobs"]] == ["b", "a"]
