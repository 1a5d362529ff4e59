"""From a GGUF file's metadata to tokenizer.json, with the ids that llama.cpp gives.

What cannot be said exactly with `tokenizers` is refused.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf.constants import TokenType
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from paged_stream.models.formats.gguf_pretokenizers import PRETOKENIZERS
from paged_stream.models.formats.gguf_vocabulary import (
    PREFIX,
    WAY_OUT,
    Vocabulary,
    read_vocabulary,
    required,
    special_ids,
)

logger = logging.getLogger(__name__)

_SPACE = "\u2581"


def write_tokenizer(metadata: Mapping[str, Any], folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template.

    Args:
        metadata: all of a file's, by key.

    Raises:
        ValueError: the file's kind of tokenizer, or its vocabulary, is not supported.
    """
    build_tokenizer(metadata).save(str(folder / "tokenizer.json"))
    tokens = read_vocabulary(metadata).tokens
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    config: dict[str, Any] = {
        f"{names[name]}_token": tokens[token]
        for name, token in special_ids(metadata).items()
        if name in names
    }
    config |= {"tokenizer_class": "TokenizersBackend", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    if (template := metadata.get("tokenizer.chat_template")) is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def build_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """Build what `write_tokenizer` saves.

    Raises:
        ValueError: as there.
    """
    vocabulary = read_vocabulary(metadata)
    kind = metadata.get(f"{PREFIX}model")
    if kind == "gpt2":
        tokenizer, add_bos = _byte_level(metadata, vocabulary)
    elif kind == "llama":
        tokenizer, add_bos = _sentencepiece(metadata, vocabulary), True
    else:
        raise ValueError(
            f"{PREFIX}model={kind!r} is not supported, only 'gpt2' and 'llama'; {WAY_OUT}"
        )
    _add_tokens(tokenizer, vocabulary, str(metadata.get("general.name", "")))
    add_bos = metadata.get(f"{PREFIX}add_bos_token", add_bos)
    add_eos = metadata.get(f"{PREFIX}add_eos_token", False)
    ends = [name for name, wanted in (("bos", add_bos), ("eos", add_eos)) if wanted]
    tokenizer.post_processor = _template(vocabulary, special_ids(metadata), ends)
    return tokenizer


def _byte_level(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> tuple[Tokenizer, bool]:
    """The tokenizer, and whether it adds BOS where the file does not say."""
    name = metadata.get(f"{PREFIX}pre")
    if not name:
        logger.warning(
            "%spre is missing: splitting text as llama.cpp does then, which may not be as the "
            "model was trained; if its text is poor, %s",
            PREFIX,
            WAY_OUT,
        )
        name = "default"
    if name not in PRETOKENIZERS:
        known = ", ".join(sorted(PRETOKENIZERS))
        raise ValueError(f"{PREFIX}pre={name!r} is not supported, only {known}; {WAY_OUT}")
    rule = PRETOKENIZERS[name]
    merges = _merges(required(metadata, "merges"), vocabulary)
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary.ids, merges=merges, ignore_merges=rule.ignore_merges)
    )
    steps: list[Any] = [
        pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rule.patterns
    ]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    if missing := set(pre_tokenizers.ByteLevel.alphabet()) - vocabulary.ids.keys():
        steps.append(_without(missing, vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, rule.add_bos


def _merges(lines: list[str], vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Pairs by rank. Of a pair that is there twice, the first counts."""
    pairs: dict[tuple[str, str], None] = {}
    for line in lines:
        left, _, right = line[1:].partition(" ")
        left = line[:1] + left
        if lacking := [text for text in (left, right, left + right) if text not in vocabulary.ids]:
            raise ValueError(
                f"{PREFIX}merges: {line!r} needs the token {lacking[0]!r}, which is not there; "
                f"{WAY_OUT}"
            )
        pairs[left, right] = None
    return list(pairs)


def _without(missing: set[str], vocabulary: Vocabulary) -> Any:
    """Drop the bytes that are no token. What is on both sides of one does not merge."""
    for index, token in enumerate(vocabulary.tokens):
        if vocabulary.is_plain(index) and not missing.isdisjoint(token):
            raise ValueError(
                f"{PREFIX}tokens: {token!r} has a byte that is no token of its own; {WAY_OUT}"
            )
    points = "".join(rf"\x{{{ord(letter):04X}}}" for letter in sorted(missing))
    return pre_tokenizers.Split(Regex(f"[{points}]"), "removed")


def _sentencepiece(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> Tokenizer:
    """BPE over whole texts, which merges whatever makes the token of the highest score."""
    if lacking := [
        f"<0x{byte:02X}>" for byte in range(256) if f"<0x{byte:02X}>" not in vocabulary.ids
    ]:
        raise ValueError(f"{PREFIX}tokens lacks {lacking[0]}, a token for a byte; {WAY_OUT}")
    scores = metadata.get(f"{PREFIX}scores", [0.0] * len(vocabulary.tokens))
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary.ids, merges=_merges_by_score(scores, vocabulary), byte_fallback=True
        )
    )
    spaces: list[Any] = [normalizers.Replace(" ", _SPACE)]
    decoding = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get(f"{PREFIX}add_space_prefix", True):
        spaces.insert(0, normalizers.Prepend(_SPACE))
        decoding.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(spaces)
    tokenizer.decoder = decoders.Sequence(decoding)
    return tokenizer


def _merges_by_score(scores: list[float], vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Pairs by rank, of every way to make a token of two.

    Of equal scores the leftmost is merged first. Two pairs of one token compete only where the
    middle of three symbols would end the one and begin the other: then the pair whose right half
    the token also begins with is the left one. Of a character's runs it is the longest.

    Raises:
        ValueError: a rank cannot say which of two tokens comes first.
    """
    ranked: list[tuple[float, int, bool, int, str, str]] = []
    by_score: dict[float, list[int]] = defaultdict(list)
    for index, token in enumerate(vocabulary.tokens):
        if pairs := _halves(token, vocabulary, vocabulary.is_plain(index)):
            score = -float(scores[index])
            by_score[score].append(index)
            rank = (score, -len(token))
            ranked += [(*rank, not token.startswith(b), index, a, b) for a, b in pairs]
    _check_ties(by_score, vocabulary)
    return [pair[4:] for pair in sorted(ranked, key=lambda pair: pair[:4])]


def _check_ties(by_score: dict[float, list[int]], vocabulary: Vocabulary) -> None:
    """Accept equal scores where the order is known: of tokens that are no text, and of runs of one
    character, as long as all of its runs have that score.

    Raises:
        ValueError: others are equal.
    """
    scores_of_runs = defaultdict(set)
    for score, indices in by_score.items():
        for index in indices:
            if vocabulary.is_run(index):
                scores_of_runs[vocabulary.tokens[index][0]].add(score)
    for indices in by_score.values():
        tied = [
            index
            for index in indices
            if vocabulary.is_plain(index)
            and not (
                vocabulary.is_run(index) and len(scores_of_runs[vocabulary.tokens[index][0]]) == 1
            )
        ]
        if tied and len(indices) > 1:
            one, other = tied[0], next(index for index in indices if index != tied[0])
            raise ValueError(
                f"{PREFIX}scores: {vocabulary.tokens[one]!r} and {vocabulary.tokens[other]!r} "
                f"have the same; {WAY_OUT}"
            )


def _halves(token: str, vocabulary: Vocabulary, is_plain: bool) -> list[tuple[str, str]]:
    """The pairs of tokens that make a token.

    Raises:
        ValueError: llama.cpp would make it of a character that is no token.
    """
    pairs = []
    for cut in range(1, len(token)):
        left, right = token[:cut], token[cut:]
        known = (left in vocabulary.ids, right in vocabulary.ids)
        if all(known):
            pairs.append((left, right))
        elif is_plain and (known[0] or cut == 1) and (known[1] or cut == len(token) - 1):
            raise ValueError(
                f"{PREFIX}tokens: {token!r} has a character that is no token; {WAY_OUT}"
            )
    return pairs


def _add_tokens(tokenizer: Tokenizer, vocabulary: Vocabulary, model_name: str) -> None:
    """Have the tokens that are not text found in it: control tokens, and what users defined.

    Raises:
        ValueError: llama.cpp goes by the model's name here, and is not followed.
    """
    if any(name in model_name.lower() for name in ("phi-3", "phi3")):
        raise ValueError(
            f"general.name={model_name!r}: Phi-3 drops whitespace after special tokens, which is "
            f"not supported; {WAY_OUT}"
        )
    added = []
    for index, text in enumerate(vocabulary.tokens):
        if not vocabulary.is_plain(index):
            is_special = vocabulary.types[index] != TokenType.USER_DEFINED
            added.append(AddedToken(text, special=is_special, normalized=False))
    tokenizer.add_tokens(added)


def _template(vocabulary: Vocabulary, ids: dict[str, int], ends: list[str]) -> Any:
    """What puts BOS before a text and EOS after it.

    Args:
        ends: ``bos``, ``eos``, both or neither.
    """
    if lacking := [name for name in ends if name not in ids]:
        raise ValueError(
            f"{PREFIX}{lacking[0]}_token_id is missing, though a text is to have one; {WAY_OUT}"
        )
    single = ["$A:0"]
    if "bos" in ends:
        single.insert(0, "bos:0")
    if "eos" in ends:
        single.append("eos:0")
    tokens = [
        {"id": name, "ids": [ids[name]], "tokens": [vocabulary.tokens[ids[name]]]} for name in ends
    ]
    return processors.TemplateProcessing(single=single, special_tokens=tokens)
