"""Text to token ids and back, as the model's own tokenizer does it; keeps no state."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

from paged_stream.system.short_text import short, short_error
from paged_stream.text.chat_options import USUAL, ChatOptions, read_template
from paged_stream.text.rendering import render_messages
from paged_stream.text.seams import leading_ids, seams

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
# Classes that are nothing but tokenizer.json; importing the others costs seconds.
PLAIN_CLASSES = {"TokenizersBackend", "PreTrainedTokenizerFast"}


class Tokenizer:
    """Thin wrapper over one of transformers' tokenizers."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend = _plain_backend(tokenizer)
        self._seams = seams(tokenizer)

    def encode(
        self, text: str, *, continues: bool = False, add_special_tokens: bool = True
    ) -> list[int]:
        """Tokenize a text of any length, by the rule that `seams` describes.

        Args:
            continues: the text goes on from another; by default it is the beginning of a document.
            add_special_tokens: put before a beginning what the model expects there. Not for texts
                that have it, as those of chat templates do.

        Raises:
            ValueError: the text has half a surrogate pair, which no tokenizer takes.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"prompt is not valid text: {error}") from None
        if continues:
            return self._seams.go_on(text)
        ids = self._seams.begin(text)
        return [*self.leading_ids, *ids] if add_special_tokens else ids

    @cached_property
    def leading_ids(self) -> list[int]:
        """Tokens before every document: BOS, or none."""
        return leading_ids(self._tokenizer)

    @cached_property
    def copy_for_users(self) -> PreTrainedTokenizerBase:
        """transformers' tokenizer, for whoever knows it: a copy, because every use of it may change
        how it cuts and pads, and so what another thread gets."""
        tokenizer: PreTrainedTokenizerBase = copy.deepcopy(self._tokenizer)
        return tokenizer

    def decode(
        self, ids: Sequence[int], skip_special_tokens: bool = True, *, continues: bool = False
    ) -> str:
        """Turn ids into text, byte for byte (no cosmetic removal of spaces).

        Args:
            continues: others came before them, so a space that they begin with is none that the
                tokenizer puts before a document.
        """
        text: str
        if continues:
            before = self._anchor_ids
            text = self.decode([*before, *ids], skip_special_tokens)
            return text[len(self.decode(before, skip_special_tokens)) :]
        if self._backend is not None:
            text = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
            return text
        text = self._tokenizer.decode(
            ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text

    @cached_property
    def _anchor_ids(self) -> list[int]:
        return self.encode(".", add_special_tokens=False)

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], options: ChatOptions = USUAL
    ) -> list[int]:
        """Tokenize a conversation with a chat template."""
        text = self.render_chat_template(messages, options)
        return self.encode(text, add_special_tokens=False)  # templates write their own

    def is_special(self, token_id: int) -> bool:
        """Whether a token marks something and is no text."""
        return token_id in self.special_tokens

    @cached_property
    def special_tokens(self) -> dict[int, str]:
        """Special tokens, as they are written where `decode` does not skip them."""
        added = self._tokenizer.added_tokens_decoder.items()
        return {token_id: token.content for token_id, token in added if token.special}

    @cached_property
    def added_tokens(self) -> dict[int, str]:
        """Tokens beside the model's vocabulary proper, special or not, as they are written."""
        added = self._tokenizer.added_tokens_decoder.items()
        return {token_id: token.content for token_id, token in added}

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a text, as the tokenizer's own files say it."""
        token_id: int | None = self._tokenizer.eos_token_id
        return token_id

    def has_text(self, token_id: int, skip_special_tokens: bool = True) -> bool:
        """False for tokens that `decode` skips: special ones, and ids that are in no vocabulary.
        Unusual tokenizers may skip others too."""
        if self._backend is None:
            return True
        if skip_special_tokens and token_id in self.special_tokens:
            return False
        return self._backend.id_to_token(token_id) is not None

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether texts are the `token_bytes` of their tokens, one after the other."""
        return self._decoder.get("type") == "ByteLevel"

    @cached_property
    def cuts_characters(self) -> bool:
        """Whether a text that ends in U+FFFD may end within a character."""
        if self._backend is None:
            return self.byte_tokens is None
        steps = self._decoder.get("decoders", [self._decoder])
        return any(step.get("type") == "ByteLevel" for step in steps)

    @property
    def _decoder(self) -> dict[str, Any]:
        """How tokens become text, as tokenizer.json says it; empty if they are joined by spaces,
        or it is not known."""
        decoder = None if self._backend is None else self._backend.decoder
        return {} if decoder is None else dict(json.loads(decoder.__getstate__()))

    def token_bytes(self, token_id: int, skip_special_tokens: bool = True) -> bytes:
        """Bytes of a token, which need not be whole characters; none of a token that is skipped.
        Only for tokenizers that are byte-level."""
        is_skipped = skip_special_tokens and token_id in self.special_tokens
        token = None if is_skipped else self._backend.id_to_token(token_id)
        if token is None:
            return b""
        try:
            return bytes([self._byte_letters[letter] for letter in token])
        except KeyError:  # an added token, which is written as it is
            return bytes(token, "utf-8")

    @cached_property
    def _byte_letters(self) -> dict[str, int]:
        """By the letters that byte-level vocabularies are written in: bytes that can be seen are
        their own code points, the others follow in order, from 256 on."""
        seen = [byte for byte in range(256) if chr(byte).isprintable() and byte != ord(" ")]
        others = [byte for byte in range(256) if byte not in seen]
        return {chr(byte): byte for byte in seen} | {
            chr(256 + index): byte for index, byte in enumerate(others)
        }

    @cached_property
    def byte_tokens(self) -> list[int] | None:
        """The 256 tokens, by byte, of which runs make the characters that are not in the
        vocabulary; ``None`` if there are none."""
        names = [f"<0x{byte:02X}>" for byte in range(256)]
        ids: list[int] = self._tokenizer.convert_tokens_to_ids(names)
        if None in ids or self._tokenizer.convert_ids_to_tokens(ids) != names:
            return None
        return ids if self.decode([ids[byte] for byte in "é".encode()]) == "é" else None

    def chat_template(self, options: ChatOptions = USUAL) -> str:
        """The template that writes conversations.

        Raises:
            ValueError: there is none.
        """
        if options.chat_template is not None:
            return str(options.chat_template)
        if self._tokenizer.chat_template is None:
            raise ValueError(
                "messages: this model has no chat template; pass a prompt, or a chat_template"
            )
        template: str = self._tokenizer.get_chat_template(tools=options.tools)
        return template

    def render_chat_template(
        self, messages: Sequence[Mapping[str, Any]], options: ChatOptions = USUAL
    ) -> str:
        """Write a conversation as the text that the model was trained on.

        Raises:
            ValueError: there is no template, or it does not take these messages.
        """
        special_tokens = self._tokenizer.special_tokens_map
        return render_messages(self.chat_template(options), special_tokens, messages, options)


def _plain_backend(tokenizer: Any) -> Any:
    """What decodes for the wrapper if the wrapper adds nothing to it, else ``None``. Two texts are
    decoded per token, and the way through the wrapper takes four times as long."""
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    kind = type(tokenizer)
    if (
        issubclass(kind, TokenizersBackend)
        and kind.decode is TokenizersBackend.decode
        and kind._decode is TokenizersBackend._decode
    ):
        return tokenizer.backend_tokenizer
    return None


def has_tokenizer(folder: Path) -> bool:
    """Whether a model's folder has a tokenizer."""
    return any((folder / name).is_file() for name in FILES)


def load_tokenizer(
    folder: Path, setting: str, chat_template: str | os.PathLike[str] | None = None
) -> Tokenizer:
    """Load the tokenizer in a folder. No code from it is run, nothing is downloaded.

    Args:
        setting: which of the user's settings names the folder, for messages.
        chat_template: instead of its own, as in `ChatOptions`.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    if not has_tokenizer(folder):
        raise ValueError(
            f"{setting}: no tokenizer ({' or '.join(FILES)}) in {folder}; "
            "copy the tokenizer files of the model there, or name another folder with tokenizer="
        )
    own = None if chat_template is None else read_template(chat_template)
    try:
        tokenizer = _load(folder)
        if own is not None:
            tokenizer.chat_template = own
        return Tokenizer(tokenizer)
    except Exception as error:  # transformers and tokenizers raise almost anything on a bad file
        raise ValueError(
            f"{setting}: cannot read the tokenizer in {folder}: {short_error(error)}; "
            "fetch the tokenizer files again"
        ) from error


def _load(folder: Path) -> Any:
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    fields = _read_config(folder / "tokenizer_config.json")
    if fields and (folder / "tokenizer.json").is_file():
        if fields.get("tokenizer_class") in PLAIN_CLASSES:
            return TokenizersBackend.from_pretrained(folder, local_files_only=True)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def _read_config(path: Path) -> dict[str, Any]:
    """What tokenizer_config.json says; nothing if it is not there.

    Raises:
        ValueError: it is no JSON object, or has a field that transformers stumbles over only when a
            text is tokenized.
    """
    if not path.is_file():
        return {}
    fields = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(fields, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    length = fields.get("model_max_length", 1)
    if type(length) not in (int, float):
        raise ValueError(f"model_max_length in {path.name} must be a number, got {short(length)}")
    return fields
