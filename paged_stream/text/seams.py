"""Text as token ids where a document begins, and where it goes on.

The one rule: the first text of a stream is the beginning of a document, and every later text goes
on where the one before it ended. What a tokenizer puts before a document (BOS, a dummy space), it
puts before the first text only. What it does at the end of a document (EOS, dropping spaces), it
never does, since a stream has no end.

What a tokenizer does to any text (NFC, lower case, one space for many) it does to each text alone.
Tokenizers that keep no spaces begin a new word with each text, since they cannot say otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import tokenizers

# Texts before which one can be told from what follows, for tokenizers that cannot be looked into.
_ANCHORS = (".", "\n", "a")
_ONE_SPACE = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}


class Seams(Protocol):
    """How one tokenizer takes text; neither method adds special tokens."""

    def begin(self, text: str) -> list[int]:
        """Ids of the beginning of a document."""

    def go_on(self, text: str) -> list[int]:
        """Ids of a text that follows another."""


def seams(tokenizer: Any) -> Seams:
    """How one of transformers' tokenizers takes text."""
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    kind = type(tokenizer)
    if (
        issubclass(kind, TokenizersBackend)
        and kind.__call__ is TokenizersBackend.__call__
        and kind._encode_plus is TokenizersBackend._encode_plus
    ):
        return _PipelineSeams(tokenizer)
    return _AnchoredSeams(tokenizer)


def leading_ids(tokenizer: Any) -> list[int]:
    """Ids that a tokenizer puts before every document."""
    for probe in chain("a", tokenizer.get_vocab()):
        if bare := _encode(tokenizer, probe):
            whole = _encode(tokenizer, probe, add_special_tokens=True)
            starts = range(len(whole) - len(bare) + 1)
            return whole[: next((i for i in starts if whole[i : i + len(bare)] == bare), 0)]
    return []


def _encode(tokenizer: Any, text: str, *, add_special_tokens: bool = False) -> list[int]:
    # verbose=False: a text longer than the trained length is nothing to warn about here.
    encoding = tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)
    ids: list[int] = encoding["input_ids"]
    return ids


class _PipelineSeams:
    """For tokenizers that are a tokenizer.json: its steps tell what they do at the ends of a text,
    and copies of it do without."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def begin(self, text: str) -> list[int]:
        if self._beginning is None:
            return _encode(self._tokenizer, text)
        ids: list[int] = self._beginning.encode(text).ids
        return ids

    def go_on(self, text: str) -> list[int]:
        if self._continuation is None:
            return _encode(self._tokenizer, text)
        encoding = self._continuation.encode(text)
        ids: list[int] = encoding.ids
        for index, token_id in enumerate(ids):
            if token_id in self._partings:
                start, stop = encoding.offsets[index]
                # Not where it stands for something unknown, as <unk> does.
                if text[start:stop].strip() == self._partings[token_id]:
                    return ids[:index] + self.begin(text[start:])
        return ids

    @cached_property
    def _beginning(self) -> tokenizers.Tokenizer | None:
        return self._without(_no_end)

    @cached_property
    def _continuation(self) -> tokenizers.Tokenizer | None:
        return self._without(_no_ends)

    def _without(self, change: Callable[[Any], Any]) -> tokenizers.Tokenizer | None:
        """A copy with some steps changed; ``None`` if these are as they were."""
        backend = self._tokenizer.backend_tokenizer
        before = _steps(backend)
        after = change(before)
        if after == before:
            return None
        import tokenizers

        copy = json.loads(backend.to_str()) | after
        copy |= {"post_processor": None, "truncation": None, "padding": None}
        result = tokenizers.Tokenizer.from_str(json.dumps(copy))
        result.model = backend.model  # one for all
        result.encode_special_tokens = self._tokenizer.split_special_tokens
        return result

    @cached_property
    def _partings(self) -> dict[int, str]:
        """Tokens that part a text before its steps are taken, by id: what follows them has a dummy
        space within a document, and so it has here."""
        normalizer = _steps(self._tokenizer.backend_tokenizer)["normalizer"]
        by_normalizer = _map(normalizer, _no_ends_of_step) != normalizer
        return {
            token_id: token.content
            for token_id, token in self._tokenizer.added_tokens_decoder.items()
            if not (by_normalizer and token.normalized)
            and not (self._tokenizer.split_special_tokens and token.special)
        }


def _steps(backend: tokenizers.Tokenizer) -> dict[str, Any]:
    """The steps before the model, as tokenizer.json has them."""
    steps = {"normalizer": backend.normalizer, "pre_tokenizer": backend.pre_tokenizer}
    return {
        name: None if step is None else json.loads(step.__getstate__())
        for name, step in steps.items()
    }


def _no_end(steps: dict[str, Any]) -> dict[str, Any]:
    """The steps, which do nothing at the end of a text."""
    return _keep_spaces({name: _map(step, _no_end_of_step) for name, step in steps.items()})


def _no_ends(steps: dict[str, Any]) -> dict[str, Any]:
    """The steps, which do nothing at either end of a text."""
    return {name: _map(step, _no_ends_of_step) for name, step in _no_end(steps).items()}


def _map(step: Any, change: Callable[[dict[str, Any]], Any]) -> Any:
    """Change a step, or each step of a sequence; those that become ``None`` are left out."""
    if step is None:
        return None
    for name in ("normalizers", "pretokenizers"):
        if name in step:
            changed = [_map(each, change) for each in step[name]]
            return step | {name: [each for each in changed if each is not None]}
    return change(step)


def _no_end_of_step(step: dict[str, Any]) -> Any:
    if step["type"] == "Strip":
        return step | {"strip_right": False}
    return _without_anchored(step, lambda pattern: pattern.endswith((r"\z", r"\Z")))


def _no_ends_of_step(step: dict[str, Any]) -> Any:
    match step["type"]:
        case "Strip":
            return step | {"strip_left": False, "strip_right": False}
        case "Prepend":
            return None
        case "Metaspace":
            return step | {"prepend_scheme": "never"}
        case "ByteLevel" if "add_prefix_space" in step:
            return step | {"add_prefix_space": False}
    return _without_anchored(step, lambda pattern: pattern.startswith(r"\A"))


def _without_anchored(step: dict[str, Any], is_anchored: Callable[[str], bool]) -> Any:
    """A step that replaces by a pattern, without the alternatives that hold at one end only."""
    pattern = step.get("pattern", {}).get("Regex", "") if step["type"] == "Replace" else ""
    if r"\A" not in pattern and r"\z" not in pattern.lower():
        return step
    kept = [part for part in pattern.split("|") if not is_anchored(part)]
    return step | {"pattern": {"Regex": "|".join(kept)}} if kept else None


def _keep_spaces(steps: dict[str, Any]) -> dict[str, Any]:
    """Steps that split at spaces, drop them, and put one before each word (T5's), as others that do
    the same to the words but keep a space at the end."""
    splits = (steps["pre_tokenizer"] or {}).get("pretokenizers", [])
    if [split["type"] for split in splits] != ["WhitespaceSplit", "Metaspace"]:
        return steps
    before = [] if steps["normalizer"] is None else [steps["normalizer"]]
    normalizer = {"type": "Sequence", "normalizers": [*before, _ONE_SPACE]}
    return {"normalizer": normalizer, "pre_tokenizer": splits[1]}


class _AnchoredSeams:
    """For tokenizers of other kinds. A text that goes on is tokenized behind another one, whose own
    tokens are known."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def begin(self, text: str) -> list[int]:
        return _encode(self._tokenizer, text)

    def go_on(self, text: str) -> list[int]:
        for anchor in _ANCHORS:
            before = _encode(self._tokenizer, anchor)
            ids = _encode(self._tokenizer, anchor + text)
            if before and ids[: len(before)] == before:
                return ids[len(before) :]
        return self.begin(text)
