"""What `structured_outputs` asks for, compiled for one tokenizer, and how far a text is in it.

llguidance, an extra, does the work. To it, a vocabulary is the bytes of the tokens and one end, an
id of our own behind the others. The end is allowed where a text may end; which tokens of the model
end a turn is decided elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from paged_stream.scheduler.structured_outputs import StructuredOutputsParams
from paged_stream.text.token_bytes import all_token_bytes
from paged_stream.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_MAX_COMPILED = 256


class Progress:
    """How far a text has come in what it has to be. One thread at a time uses it."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def append(self, token_id: int) -> None:
        """Go on by a token that was allowed."""
        self._matcher.consume_token(token_id)

    @property
    def is_over(self) -> bool:
        """Whether the text is complete and cannot go on."""
        return self._matcher.is_stopped() and self._matcher.is_accepting()

    def allowed(self, end_ids: Iterable[int]) -> bytes:
        """The tokens that may come next, a bit for each id, from the lowest bit of the first byte.

        Args:
            end_ids: tokens that end the turn. They are allowed where the text may end, and nowhere
                else, whatever their text.
        """
        bits = bytearray(self._matcher.compute_bitmask())
        # Where no token goes on, the matcher fails, and then it would let the text end.
        may_end = _take(bits, self._vocab_size) and not self._matcher.is_error()
        for token_id in end_ids:
            _put(bits, token_id, may_end)
        return bytes(bits)


class Structures:
    """Compiles and remembers; any thread may use it.

    Args:
        vocab_size: token ids are below it.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        # The last one used comes last. Without a lock: a thread that is interrupted would keep it.
        self._compiled: dict[StructuredOutputsParams, LLMatcher] = {}

    def knows(self, params: StructuredOutputsParams) -> bool:
        """Whether `begin` would answer at once."""
        return params in self._compiled

    def begin(self, params: StructuredOutputsParams) -> Progress:
        """The beginning of a text. It may take a second, if this was not asked for before.

        Raises:
            ValueError: names what cannot be compiled; or the extra is not installed.
        """
        matcher = self._compiled.get(params)
        if matcher is None:
            matcher = self._compile(params)
        self._compiled.pop(params, None)
        self._compiled[params] = matcher
        for oldest in list(self._compiled)[:-_MAX_COMPILED]:
            self._compiled.pop(oldest, None)
        return Progress(matcher.deep_copy(), self._vocab_size)

    def _compile(self, params: StructuredOutputsParams) -> LLMatcher:
        name, value = params.form
        vocabulary = self._vocabulary
        from llguidance import LLMatcher

        try:
            matcher = LLMatcher(vocabulary, _GRAMMARS[name](value), log_level=0)
            reason = matcher.get_error()
        except ValueError as error:
            reason = str(error)
        if not reason:
            bits = bytearray(matcher.compute_bitmask())
            _take(bits, self._vocab_size)
            if any(bits):
                return matcher
            reason = matcher.get_error().partition("<state>")[0]
            if not reason or reason.startswith("NoExtension"):
                reason = "no token of the vocabulary begins such a text"
        reason = " ".join(reason.split())
        raise ValueError(f"structured_outputs: {name} cannot be used: {reason}")

    @cached_property
    def _vocabulary(self) -> LLTokenizer:
        try:
            from llguidance import LLTokenizer, TokenizerWrapper
        except ImportError as error:
            raise ValueError(
                "structured_outputs needs llguidance, which is an extra: "
                f'pip install "paged-stream[structured]" ({error})'
            ) from error
        wrapper = TokenizerWrapper(_Vocabulary(self._tokenizer, self._vocab_size))
        return LLTokenizer(wrapper, n_vocab=self._vocab_size + 1)


class _Vocabulary:
    """As llguidance wants it, which asks for the ids of texts that cannot be otherwise."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self.tokens = [*all_token_bytes(tokenizer, vocab_size), b"<end>"]
        self.eos_token_id = vocab_size
        self.special_token_ids = [vocab_size]
        self._ids = {token: token_id for token_id, token in enumerate(self.tokens[:-1]) if token}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: str) -> list[int]:
        """The ids of a text as the tokenizer writes it, unless it changes the text; then those of
        the longest tokens, up to bytes that no token begins with."""
        token_ids, data = self._tokenizer.encode(text, continues=True), text.encode()
        known = [token_id for token_id in token_ids if token_id < self.eos_token_id]
        if b"".join(self.tokens[token_id] for token_id in known) == data:
            return known
        token_ids = []
        while data:
            sizes = range(min(self._longest, len(data)), 0, -1)
            size = next((size for size in sizes if data[:size] in self._ids), None)
            if size is None:
                break
            token_ids.append(self._ids[data[:size]])
            data = data[size:]
        return token_ids


def _grammar(form: str) -> Callable[[Any], str]:
    def compile_it(value: Any) -> str:
        from llguidance import grammar_from

        return grammar_from(form, value)  # type: ignore[arg-type]

    return compile_it


# By the field of `StructuredOutputsParams`.
_GRAMMARS: dict[str, Callable[[Any], str]] = {
    "json": _grammar("json"),
    "regex": _grammar("regex"),
    "choice": lambda texts: _grammar("choice")(json.dumps(texts)),
    "grammar": _grammar("grammar"),
    "json_object": lambda _: _grammar("json")('{"type": "object"}'),
}


def _take(bits: bytearray, index: int) -> bool:
    """Look at a bit and clear it."""
    value = bool(bits[index // 8] >> index % 8 & 1)
    _put(bits, index, False)
    return value


def _put(bits: bytearray, index: int, value: bool) -> None:
    mask = 1 << index % 8
    bits[index // 8] = bits[index // 8] | mask if value else bits[index // 8] & ~mask
