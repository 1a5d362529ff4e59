"""The tokens that a GGUF file lists, as llama.cpp reads them: text, type, and which are special."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gguf.constants import TokenType

PREFIX = "tokenizer.ggml."
WAY_OUT = "pass tokenizer= (--tokenizer), a folder that has the model's own tokenizer"
# The ids of the `llama` kind that a file need not name.
_LLAMA_IDS = {"bos": 1, "eos": 2, "unknown": 0}
# llama.cpp takes tokens of these texts for control tokens, whatever type the file gives them.
_CONTROL_TEXTS = frozenset(
    """
    <|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn>
    <|endoftext|> </s> <|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos>
    <turn|> <|tool_response> <\uff5cend\u2581of\u2581sentence\uff5c> [e~[
    <|fim_prefix|> <fim-prefix> <fim_prefix> <\uff5cfim\u2581begin\uff5c> <PRE> \u2581<PRE>
    <|code_prefix|> <|prefix|> <|fim_suffix|> <fim-suffix> <fim_suffix>
    <\uff5cfim\u2581hole\uff5c> <SUF> \u2581<SUF> <|code_suffix|> <|suffix|>
    <|fim_middle|> <fim-middle> <fim_middle> <\uff5cfim\u2581end\uff5c> <MID> \u2581<MID>
    <|code_middle|> <|middle|> <|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]
    <|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame> <|file_sep|>
    """.split()
)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens by id, with the `TokenType` of each and the id of each text."""

    tokens: list[str]
    types: list[int]
    ids: dict[str, int]

    def is_plain(self, token: int) -> bool:
        """Whether a token is only ever reached through text."""
        return self.types[token] not in (
            TokenType.CONTROL,
            TokenType.UNKNOWN,
            TokenType.USER_DEFINED,
        )

    def is_run(self, token: int) -> bool:
        """Whether a token repeats one character."""
        return len(set(self.tokens[token])) == 1


def special_ids(metadata: Mapping[str, Any]) -> dict[str, int]:
    """The ids of ``bos``, ``eos``, ``eot``, ``eom``, ``unknown``, ``padding``; of some, if none."""
    size = len(required(metadata, "tokens"))
    ids = dict(_LLAMA_IDS) if metadata.get(f"{PREFIX}model") == "llama" else {}
    for name in ("bos", "eos", "eot", "eom", "unknown", "padding"):
        token = metadata.get(f"{PREFIX}{name}_token_id")
        if token is not None and 0 <= token < size:  # llama.cpp ignores others too
            ids[name] = int(token)
    return {name: token for name, token in ids.items() if token < size}


def required(metadata: Mapping[str, Any], name: str) -> Any:
    """The value of ``tokenizer.ggml.{name}``.

    Raises:
        ValueError: there is none.
    """
    if (value := metadata.get(f"{PREFIX}{name}")) is None:
        raise ValueError(f"it lacks {PREFIX}{name}; {WAY_OUT}")
    return value


def read_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """Read the tokens of a file's metadata.

    Raises:
        ValueError: two are the same, or some have no type.
    """
    tokens = [
        token or f"[EMPTY_{index}]" for index, token in enumerate(required(metadata, "tokens"))
    ]
    types = list(metadata.get(f"{PREFIX}token_type", [int(TokenType.NORMAL)] * len(tokens)))
    ids = {token: index for index, token in enumerate(tokens)}
    if len(ids) < len(tokens) or len(types) < len(tokens):
        raise ValueError(
            f"{PREFIX}tokens has {len(tokens)} tokens, {len(ids)} of them different and "
            f"{len(types)} with a type; {WAY_OUT}"
        )
    for text in _CONTROL_TEXTS & ids.keys():
        types[ids[text]] = int(TokenType.CONTROL)
    return Vocabulary(tokens, types, ids)
