"""A response and the events that tell of it are one: who follows the events has the response."""

from __future__ import annotations

import json
import random

import pytest

pytest.importorskip("fastapi")

from paged_stream.engine.outputs import RequestDelta, RequestMetrics
from paged_stream.serve.response_writer import ResponseWriter
from paged_stream.serve.tools import FunctionName, NamedTool, Tool, ToolUse
from paged_stream.text.tool_calls import READERS, PlainText

CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
OTHER = CALL.replace("1", "2")
TOOLS = [Tool.model_validate({"function": {"name": "f"}})]


def delta(text, finish_reason=None, error=None):
    return RequestDelta(
        request_id="",
        index=0,
        delta_text=text,
        delta_token_ids=[1] * len(text),
        finished=finish_reason is not None,
        finish_reason=finish_reason,
        stop_reason=None,
        logprobs=None,
        prompt_logprobs=None,
        metrics=RequestMetrics.of_arrival(),
        error=error,
    )


def written(text, reader, use, *, finish_reason="stop", error=None, seed=0):
    """A response whose text comes in pieces of random lengths, and its events."""
    writer, draw = ResponseWriter({"id": "resp_1"}, reader, use, None), random.Random(seed)
    events = writer.begin()
    while text:
        length = draw.randint(1, 12)
        events += writer.feed(delta(text[:length]))
        text = text[length:]
    last = delta("", finish_reason, error)
    events += writer.feed(last)
    events += writer.finish(last, 5, 7 + writer.num_tokens)
    return writer.response, [*events, writer.end()]


def followed(events):
    """The output of which a client hears, which checks the order in which it does."""
    output, is_open = [], False
    for number, event in enumerate(events):
        assert event["sequence_number"] == number
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert not is_open and event["output_index"] == len(output)
            is_open = True
            output.append(json.loads(json.dumps(event["item"])))
        elif "output_index" in event:
            assert is_open and event["output_index"] == len(output) - 1
            item = output[-1]
            assert event.get("item_id", item["id"]) == item["id"]
            if kind == "content_part.added":
                item["content"].append(dict(event["part"]))
            elif kind == "output_text.delta":
                item["content"][event["content_index"]]["text"] += event["delta"]
            elif kind == "function_call_arguments.delta":
                item["arguments"] += event["delta"]
            elif kind == "output_text.done":
                assert item["content"][0]["text"] == event["text"]
            elif kind == "content_part.done":
                assert item["content"][0] == event["part"]
            elif kind == "function_call_arguments.done":
                assert item["arguments"] == event["arguments"]
            else:
                assert kind == "output_item.done"
                assert item | {"status": event["item"]["status"]} == event["item"]
                output[-1], is_open = event["item"], False
    assert not is_open
    return output


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("he was", ["message"]),
        ("", ["message"]),
        (CALL, ["function_call"]),
        (f"well {CALL}{OTHER} so", ["message", "function_call", "function_call", "message"]),
        ("<tool_call>no call", ["message"]),
    ],
)
def test_who_follows_the_events_has_the_response(text, kinds, seed):
    use = ToolUse(TOOLS, None, True)
    response, events = written(text, READERS["hermes"](), use, seed=seed)
    assert [item["type"] for item in response["output"]] == kinds
    assert followed(events) == response["output"] == events[-1]["response"]["output"]
    assert events[-1]["type"] == "response.completed" == f"response.{response['status']}"
    assert {item["status"] for item in response["output"]} == {"completed"}
    calls = [item for item in response["output"] if item["type"] == "function_call"]
    assert [json.loads(call["arguments"])["a"] for call in calls] == [1, 2][: len(calls)]
    assert len({item["id"] for item in response["output"]}) == len(kinds)
    assert response["usage"]["output_tokens"] == len(text)
    assert response["usage"]["input_tokens"] == 7
    assert response["usage"]["input_tokens_details"]["cached_tokens"] == 5


def test_arguments_come_as_they_are_written():
    use = ToolUse(TOOLS, NamedTool(function=FunctionName(name="f")), True)
    response, events = written('{"a": "a longer text"}', use.reader(None), use)
    [call] = response["output"]
    assert (call["name"], call["arguments"]) == ("f", '{"a": "a longer text"}')
    parts = [e for e in events if e["type"] == "response.function_call_arguments.delta"]
    assert len(parts) > 1 and followed(events) == [call]


def test_no_more_calls_than_are_wanted():
    use = ToolUse(TOOLS, None, False)
    response, events = written(CALL + OTHER, READERS["hermes"](), use)
    [call] = response["output"]
    assert json.loads(call["arguments"]) == {"a": 1} and followed(events) == [call]


@pytest.mark.parametrize(
    ("finish_reason", "error", "status"),
    [("length", None, "incomplete"), ("error", "not finite", "failed"), ("abort", None, "failed")],
)
def test_answers_that_do_not_come_to_an_end(finish_reason, error, status):
    use = ToolUse(None, None, True)
    response, events = written("he", PlainText(), use, finish_reason=finish_reason, error=error)
    assert response["status"] == status and events[-1]["type"] == f"response.{status}"
    [message] = followed(events)
    assert message["status"] == "incomplete" and message["content"][0]["text"] == "he"
    if status == "failed":
        assert (error or "broken off") in response["error"]["message"]
    else:
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
