"""Finds calls of tools in a text as it comes, in the formats that models were trained to write.

What looks like a call and is none stays text: no token of an answer is lost.
"""

from __future__ import annotations

import secrets
import string
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from paged_stream.text.call_values import function_of, values_of

# vLLM's names for the formats of Qwen and Hermes, of Llama 3, and of Mistral.
CallFormat: TypeAlias = Literal["hermes", "llama3_json", "mistral"]
_LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class CallPart:
    """A part of a tool call.

    Args:
        index: of the call in its answer.
        arguments: JSON that follows what came before of this call.
        call_id: with the first part only.
        name: of the function, with the first part only.
    """

    index: int
    arguments: str
    call_id: str | None = None
    name: str | None = None


Piece: TypeAlias = str | CallPart


def format_of(template: str) -> CallFormat:
    """The format that a chat template asks for; ``"hermes"`` if it does not say."""
    if "[TOOL_CALLS]" in template:
        return "mistral"
    if "<tool_call>" not in template and (
        "<|python_tag|>" in template or "Environment: ipython" in template
    ):
        return "llama3_json"
    return "hermes"


class CallReader(ABC):
    """Takes the text of an answer piece by piece, and gives back text and calls.

    Attributes:
        marks: what begins a call and its parts, where that is no part of JSON. A vocabulary may
            have these as special tokens, which the text must show then.
        num_calls: calls that have begun.
    """

    marks: ClassVar[tuple[str, ...]] = ()
    num_calls = 0

    @abstractmethod
    def feed(self, text: str) -> list[Piece]:
        """Go on by a text, which may be empty."""

    @abstractmethod
    def finish(self) -> list[Piece]:
        """The end of the answer: what was held back."""

    def _begin(self, name: str, arguments: str, call_id: str) -> CallPart:
        self.num_calls += 1
        return CallPart(self.num_calls - 1, arguments, call_id, name)

    def _calls(self, values: list[Any], new_id: Any = None) -> list[Piece]:
        """The calls that values of JSON stand for; none if one of them is no call."""
        functions = [function_of(value) for value in values]
        if not functions or None in functions:
            return []
        make = _call_id if new_id is None else new_id
        return [self._begin(name, arguments, make()) for name, arguments in filter(None, functions)]


class PlainText(CallReader):
    """Finds no calls."""

    def feed(self, text: str) -> list[Piece]:
        return [text] if text else []

    def finish(self) -> list[Piece]:
        return []


class TaggedCalls(CallReader):
    """``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, as often as wanted; between the
    tags may also be a list of calls. White space before a call and between two is left out."""

    marks = _OPEN, _CLOSE = "<tool_call>", "</tool_call>"

    def __init__(self) -> None:
        self._held = ""
        self._space = ""  # before the tag that is open
        self._is_open = False

    def feed(self, text: str) -> list[Piece]:
        self._held += text
        pieces: list[Piece] = []
        while self._is_open or self._OPEN in self._held:
            if not self._is_open:
                before, _, self._held = self._held.partition(self._OPEN)
                text = before.rstrip()
                pieces += self._text(text)
                self._space = before[len(text) :]
                self._is_open = True
            content, mark, rest = self._held.partition(self._CLOSE)
            if not mark:
                return pieces
            pieces += self._call(content, mark)
            self._held, self._is_open = rest, False
        length = len(self._held) - _overlap(self._held, self._OPEN)
        length = len(self._held[:length].rstrip())
        pieces += self._text(self._held[:length])
        self._held = self._held[length:]
        return pieces

    def finish(self) -> list[Piece]:
        held, self._held = self._held, ""
        if self._is_open:  # a model may end its turn instead of closing the tag
            self._is_open = False
            return self._call(held, "")
        return self._text(held)

    def _call(self, content: str, mark: str) -> list[Piece]:
        return self._calls(values_of(content)) or [self._space + self._OPEN + content + mark]

    def _text(self, text: str) -> list[Piece]:
        return [text] if text and not (self.num_calls and text.isspace()) else []


class HeldCalls(CallReader):
    """Holds everything back from where a call may begin to the end of the answer."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> list[Piece]:
        self._held += text
        length = self._num_plain(self._held)
        plain, self._held = self._held[:length], self._held[length:]
        return [plain] if plain else []

    def finish(self) -> list[Piece]:
        held, self._held = self._held, ""
        return self._read(held) or ([held] if held else [])

    @abstractmethod
    def _num_plain(self, text: str) -> int:
        """How many characters from the first on belong to no call."""

    @abstractmethod
    def _read(self, text: str) -> list[Piece]:
        """The calls in all that was held back, or nothing."""


class MistralCalls(HeldCalls):
    """``[TOOL_CALLS]`` and a list of calls; or, for each call, ``[TOOL_CALLS]``, the name,
    ``[ARGS]`` or nothing, and the arguments."""

    marks = _MARK, _ARGS = "[TOOL_CALLS]", "[ARGS]"

    def _num_plain(self, text: str) -> int:
        begin = text.find(self._MARK)
        return len(text) - _overlap(text, self._MARK) if begin < 0 else begin

    def _read(self, text: str) -> list[Piece]:
        values: list[Any] = []
        for content in text.split(self._MARK)[1:]:
            name, brace, arguments = content.partition("{")
            name = name.removesuffix(self._ARGS).strip()
            if brace and name and not name.startswith("["):
                values.append({"name": name, "arguments": brace + arguments})
            else:
                values += values_of(content) or [None]
        # Its templates take ids of nine letters and digits only.
        return self._calls(values, lambda: "".join(secrets.choice(_LETTERS) for _ in range(9)))


class Llama3Calls(HeldCalls):
    """An answer that is nothing but ``{"name": ..., "parameters": {...}}``, several of them with
    semicolons between, perhaps behind ``<|python_tag|>``."""

    _TAG = "<|python_tag|>"

    def __init__(self) -> None:
        super().__init__()
        self._is_plain = False

    def _num_plain(self, text: str) -> int:
        begin = text.lstrip()
        may_call = begin.startswith(("{", self._TAG)) or self._TAG.startswith(begin)
        self._is_plain = self._is_plain or not may_call
        return len(text) if self._is_plain else 0

    def _read(self, text: str) -> list[Piece]:
        values = values_of(text.strip().removeprefix(self._TAG))
        # No tag tells a call from other JSON with a name in it.
        are_calls = all(
            isinstance(v, dict) and v.keys() & {"arguments", "parameters"} for v in values
        )
        return self._calls(values) if are_calls else []


class ForcedCall(CallReader):
    """An answer that is nothing but the arguments of one function."""

    def __init__(self, name: str) -> None:
        self._name = name

    def feed(self, text: str) -> list[Piece]:
        if not text:
            return []
        if self.num_calls:
            return [CallPart(0, text)]
        return [self._begin(self._name, text, _call_id())]

    def finish(self) -> list[Piece]:
        return []


class ForcedCalls(HeldCalls):
    """An answer that is nothing but a list of calls."""

    def _num_plain(self, text: str) -> int:
        return 0

    def _read(self, text: str) -> list[Piece]:
        return self._calls(values_of(text))


READERS: dict[CallFormat, type[CallReader]] = {
    "hermes": TaggedCalls,
    "llama3_json": Llama3Calls,
    "mistral": MistralCalls,
}


def _call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _overlap(text: str, mark: str) -> int:
    """How many characters at the end of a text may be the beginning of a mark."""
    longest = min(len(text), len(mark) - 1)
    return next((n for n in range(longest, 0, -1) if mark.startswith(text[-n:])), 0)
