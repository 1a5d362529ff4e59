"""A response of OpenAI's API as it grows: its output items, and the events that tell of them."""

from __future__ import annotations

import time
from typing import Any

from paged_stream.engine.outputs import RequestDelta
from paged_stream.serve.choices import Json
from paged_stream.serve.logprobs import message_logprobs
from paged_stream.serve.response_items import new_id
from paged_stream.serve.token_texts import TokenTexts
from paged_stream.serve.tools import ToolUse
from paged_stream.text.tool_calls import CallPart, CallReader

_STATUS = {"stop": "completed", "length": "incomplete"}  # by how the turn has ended; else "failed"


class ResponseWriter:
    """Takes deltas, and gives events.

    Attributes:
        response: as it is now.
        num_tokens: that were generated.

    Args:
        head: what the response has from the beginning on.
        reader: finds calls of tools in the text.
        use: of the tools.
        texts: of tokens, if log-probabilities are shown.
    """

    def __init__(
        self, head: Json, reader: CallReader, use: ToolUse, texts: TokenTexts | None
    ) -> None:
        self.response: Json = head | {"status": "in_progress", "output": []}
        self.num_tokens = 0
        self._reader = reader
        self._use = use
        self._texts = texts
        self._num_events = 0
        self._logprobs: list[Json] = []  # of tokens whose text has not come
        self._item: Json | None = None  # that grows

    def queue(self) -> list[Json]:
        """The events of a response that is to begin later."""
        self.response["status"] = "queued"
        return [self._of_response("created"), self._of_response("queued")]

    def begin(self) -> list[Json]:
        """The events before any output."""
        events = [] if self._num_events else [self._of_response("created")]
        self.response["status"] = "in_progress"
        return [*events, self._of_response("in_progress")]

    def feed(self, delta: RequestDelta) -> list[Json]:
        """What a delta adds."""
        self.num_tokens += len(delta.delta_token_ids)
        if self._texts is not None and delta.logprobs:
            self._logprobs += message_logprobs(self._texts, delta.logprobs)["content"]
        pieces = self._reader.feed(delta.delta_text)
        if delta.finished:
            pieces += self._reader.finish()
        events: list[Json] = []
        for piece in pieces:
            if isinstance(piece, str):
                events += self._text(piece)
            elif self._use.num_calls is None or piece.index < self._use.num_calls:
                events += self._call(piece)
        return events

    def finish(self, last: RequestDelta | None, num_before: int, num_all: int) -> list[Json]:
        """The end of what grows, and what the response is then: all but the last event.

        Args:
            last: the last delta, if there was one.
            num_before: tokens that did not have to be computed.
            num_all: tokens that it has now.
        """
        reason = None if last is None else last.finish_reason
        status = _STATUS.get(reason or "", "failed")
        events = [] if self.response["output"] else self._open_message()
        events += self._close("completed" if status == "completed" else "incomplete")
        self.response |= {"status": status, "usage": self._usage(num_before, num_all)}
        if status == "completed":
            self.response["completed_at"] = int(time.time())
        elif status == "incomplete":
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            why = "it was broken off" if last is None or last.error is None else last.error
            message = f"the answer could not go on: {why}"
            self.response["error"] = {"code": "server_error", "message": message}
        return events

    def end(self) -> Json:
        """The last event."""
        return self._of_response(self.response["status"])

    def _usage(self, num_before: int, num_all: int) -> Json:
        num_input = num_all - self.num_tokens
        return {
            "input_tokens": num_input,
            "input_tokens_details": {
                "cached_tokens": min(num_before, num_input),
                "cache_write_tokens": 0,
            },
            "output_tokens": self.num_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": num_all,
        }

    # Output items

    def _text(self, text: str) -> list[Json]:
        events: list[Json] = []
        if self._item is None or self._item["type"] != "message":
            events = self._close("completed") + self._open_message()
        assert self._item is not None
        [part] = self._item["content"]
        logprobs, self._logprobs = self._logprobs, []
        part["text"] += text
        part["logprobs"] += logprobs
        event = self._of_item("output_text.delta", content_index=0, delta=text, logprobs=logprobs)
        return [*events, event]

    def _call(self, call: CallPart) -> list[Json]:
        events: list[Json] = []
        if call.name is not None:
            item = {"type": "function_call", "id": new_id("fc"), "call_id": call.call_id}
            item |= {"name": call.name, "arguments": "", "status": "in_progress"}
            events = [*self._close("completed"), self._open(item)]
        assert self._item is not None
        self._item["arguments"] += call.arguments
        return [*events, self._of_item("function_call_arguments.delta", delta=call.arguments)]

    def _open(self, item: Json) -> Json:
        self._item = item
        self.response["output"].append(item)
        return self._of_items("added")

    def _open_message(self) -> list[Json]:
        item: Json = {"type": "message", "id": new_id("msg"), "role": "assistant"}
        added = self._open(item | {"status": "in_progress", "content": []})
        assert self._item is not None
        part: Json = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        event = self._of_item("content_part.added", content_index=0, part=_copy(part))
        self._item["content"].append(part)
        return [added, event]

    def _close(self, status: str) -> list[Json]:
        """The end of the item that grows, if one does."""
        if self._item is None:
            return []
        self._item["status"] = status
        if self._item["type"] == "function_call":
            told = {"arguments": self._item["arguments"], "name": self._item["name"]}
            events = [self._of_item("function_call_arguments.done", **told)]
        else:
            [part] = self._item["content"]
            part["logprobs"] += self._logprobs
            self._logprobs = []
            told = {"text": part["text"], "logprobs": part["logprobs"]}
            events = [
                self._of_item("output_text.done", content_index=0, **told),
                self._of_item("content_part.done", content_index=0, part=_copy(part)),
            ]
        events.append(self._of_items("done"))
        self._item = None
        return events

    # Events

    def _event(self, kind: str, **content: Any) -> Json:
        number, self._num_events = self._num_events, self._num_events + 1
        return {"type": f"response.{kind}", "sequence_number": number, **content}

    def _of_response(self, kind: str) -> Json:
        return self._event(kind, response=_copy(self.response))

    def _of_items(self, kind: str) -> Json:
        index = len(self.response["output"]) - 1
        return self._event(f"output_item.{kind}", output_index=index, item=_copy(self._item))

    def _of_item(self, kind: str, **content: Any) -> Json:
        assert self._item is not None
        index = len(self.response["output"]) - 1
        return self._event(kind, item_id=self._item["id"], output_index=index, **content)


def _copy(value: Any) -> Any:
    """As it is now: what an event tells does not change with what grows."""
    if isinstance(value, dict):
        return {name: _copy(each) for name, each in value.items()}
    return [_copy(each) for each in value] if isinstance(value, list) else value
