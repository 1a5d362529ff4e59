"""The JSON of one completion of an answer, part by part, and as a whole, which is its parts joined.

A part has what one delta adds. There is none for a delta that adds nothing to be shown.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeAlias

from paged_stream.engine.outputs import RequestDelta, TokenLogprob
from paged_stream.serve.logprobs import TextLogprobs, message_logprobs
from paged_stream.serve.token_texts import TokenTexts
from paged_stream.serve.tools import ToolUse
from paged_stream.text.tool_calls import CallPart, CallReader, Piece

Json: TypeAlias = dict[str, Any]


class Choice(ABC):
    """One completion.

    Args:
        index: its place in the answer.
        shows_ids: whether token ids are in its JSON.
    """

    def __init__(self, index: int, shows_ids: bool) -> None:
        self._index = index
        self._shows_ids = shows_ids

    @abstractmethod
    def part(self, delta: RequestDelta) -> Json | None:
        """What a delta adds."""

    @abstractmethod
    def joined(self, parts: Sequence[Json]) -> Json:
        """All parts as one."""

    def _part(self, content: Json, logprobs: Json | None, delta: RequestDelta) -> Json:
        part = {"index": self._index, **content, "logprobs": logprobs, **_ending(delta)}
        return part | {"token_ids": delta.delta_token_ids} if self._shows_ids else part

    def _joined(self, content: Json, parts: Sequence[Json]) -> Json:
        logprobs = [part["logprobs"] for part in parts if part["logprobs"] is not None]
        whole = {
            "index": self._index,
            **content,
            "logprobs": _joined_lists(logprobs) if logprobs else None,
            "finish_reason": parts[-1]["finish_reason"],
            "stop_reason": parts[-1]["stop_reason"],
        }
        ids = [token_id for part in parts for token_id in part.get("token_ids", ())]
        return whole | {"token_ids": ids} if self._shows_ids else whole


class Echo:
    """A prompt that the answers to it begin with. Several answers share what was computed of it.

    Args:
        text: of the prompt.
    """

    def __init__(self, text: str, token_ids: Sequence[int]) -> None:
        self.text = text
        self._token_ids = token_ids
        self._entries: list[TokenLogprob] = []

    def note(self, delta: RequestDelta) -> None:
        """Take what a delta has of the prompt."""
        self._entries += delta.prompt_logprobs or ()

    def logprobs(self, writer: TextLogprobs | None) -> Json | None:
        """What is shown of the prompt's tokens."""
        if writer is None:
            return None
        return _joined_lists([writer.first(self._token_ids[0]), writer.of(self._entries)])


class TextChoice(Choice):
    """A completion of ``/v1/completions``.

    Args:
        echo: the prompt, if the answer begins with it.
        logprobs: writes log-probabilities, if they are shown.
        only_scores: whether nothing but the prompt is shown.
    """

    def __init__(
        self,
        index: int,
        shows_ids: bool,
        echo: Echo | None,
        logprobs: TextLogprobs | None,
        only_scores: bool,
    ) -> None:
        super().__init__(index, shows_ids)
        self._echo = echo
        self._logprobs = logprobs
        self._only_scores = only_scores
        self._has_begun = False

    def part(self, delta: RequestDelta) -> Json | None:
        """As `Choice.part`. The prompt is in the first one, when all of it is computed."""
        if self._echo is not None:
            self._echo.note(delta)
        if not delta.delta_token_ids and not delta.finished:
            return None
        text, logprobs = "", []
        if self._echo is not None and not self._has_begun:
            text = self._echo.text
            logprobs.append(self._echo.logprobs(self._logprobs))
        self._has_begun = True
        if not self._only_scores:
            text += delta.delta_text
            if self._logprobs is not None and delta.logprobs:
                logprobs.append(self._logprobs.of(delta.logprobs))
        shown = [each for each in logprobs if each is not None]
        part = self._part({"text": text}, _joined_lists(shown) if shown else None, delta)
        if self._only_scores and self._shows_ids:
            part["token_ids"] = []
        return part

    def joined(self, parts: Sequence[Json]) -> Json:
        """As `Choice.joined`."""
        return self._joined({"text": "".join(part["text"] for part in parts)}, parts)


class MessageChoice(Choice):
    """An answer of ``/v1/chat/completions``.

    Args:
        reader: finds calls of tools in the text.
        use: of the tools.
        texts: of tokens, if log-probabilities are shown.
    """

    def __init__(
        self,
        index: int,
        shows_ids: bool,
        reader: CallReader,
        use: ToolUse,
        texts: TokenTexts | None,
    ) -> None:
        super().__init__(index, shows_ids)
        self._reader = reader
        self._use = use
        self._texts = texts
        self._has_begun = False

    def part(self, delta: RequestDelta) -> Json | None:
        """As `Choice.part`. The first one has the role."""
        if not delta.delta_token_ids and not delta.finished:
            return None
        pieces = self._reader.feed(delta.delta_text)
        if delta.finished:
            pieces += self._reader.finish()
        message: Json = {} if self._has_begun else {"role": "assistant"}
        self._has_begun = True
        calls = self._calls(pieces)
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        if text or not calls:
            message["content"] = text
        if calls:
            message["tool_calls"] = calls
        logprobs = None
        if self._texts is not None and delta.logprobs:
            logprobs = message_logprobs(self._texts, delta.logprobs)
        part = self._part({"delta": message}, logprobs, delta)
        if part["finish_reason"] == "stop" and self._reader.num_calls and self._use.ends_as_call:
            part["finish_reason"] = "tool_calls"
        return part

    def _calls(self, pieces: Sequence[Piece]) -> list[Json]:
        most = self._use.num_calls
        calls = [piece for piece in pieces if isinstance(piece, CallPart)]
        return [_call_json(call) for call in calls if most is None or call.index < most]

    def joined(self, parts: Sequence[Json]) -> Json:
        """As `Choice.joined`. A message with calls and without text has no content."""
        deltas = [part["delta"] for part in parts]
        text = "".join(delta.get("content", "") for delta in deltas)
        calls: list[Json] = []
        for call in (call for delta in deltas for call in delta.get("tool_calls", ())):
            if call["index"] == len(calls):
                function = dict(call["function"])
                calls.append({"id": call["id"], "type": call["type"], "function": function})
            else:
                calls[-1]["function"]["arguments"] += call["function"]["arguments"]
        message: Json = {"role": "assistant", "content": text or (None if calls else "")}
        if calls:
            message["tool_calls"] = calls
        return self._joined({"message": message}, parts)


def _call_json(call: CallPart) -> Json:
    if call.name is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.call_id, "type": "function", "function": function}


def _ending(delta: RequestDelta) -> Json:
    return {"finish_reason": delta.finish_reason, "stop_reason": delta.stop_reason}


def _joined_lists(several: Sequence[Json]) -> Json:
    """Objects whose members are lists, or nothing, as one."""
    return {
        name: None
        if several[0][name] is None
        else [item for each in several for item in each[name]]
        for name in several[0]
    }
