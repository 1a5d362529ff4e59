"""Trained tokenizers with every way to take the ends of a text, and what texts become in them."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, PythonBackend

from paged_stream.models.formats.gguf_tokenizer import build_tokenizer
from paged_stream.text.tokenizer import Tokenizer

ALPHABET = "abehlorwd ,.'\n12é日\u0301ﬁ#▁"
LETTERS = sorted({unicodedata.normalize("NFC", letter + "\u0301")[0] for letter in ALPHABET + "fi"})
LETTERS += ALPHABET
CORPUS = ["hello world, hello lord", "a world ahead", "bow, bell, bead", "he'd  or 12 12"]
SPECIAL = ["<unk>", "<s>", "</s>", "<|end|>"]


@dataclass(frozen=True)
class Kind:
    """A tokenizer.

    Attributes:
        wrapped: has ``<s>`` before a document and ``</s>`` behind it.
        piece: what becomes of a text that goes on.
        first: what becomes of a text that begins a document.
        joins: between texts.
        anchor: merges with no text behind it.
    """

    wrapped: Any
    piece: Callable[[str], str] = str
    first: Callable[[str], str] = str
    joins: str = ""
    anchor: str = "#"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.wrapped)


def wrap(backend: tokenizers.Tokenizer, **options: Any) -> PreTrainedTokenizerFast:
    """With special tokens that are found in texts.

    Args:
        options: of these tokens.
    """
    tokens = [AddedToken(token, **{"normalized": False} | options) for token in SPECIAL]
    backend.add_special_tokens(tokens)
    ids = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    backend.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def bpe(
    normalizer: Any = None, pre_tokenizer: Any = None, decoder: Any = None, **options: Any
) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", **options))
    if normalizer is not None:
        backend.normalizer = normalizer
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    if decoder is not None:
        backend.decoder = decoder
    extra = BYTES if options.get("byte_fallback") else []
    suffix = options.get("end_of_word_suffix", "")
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[*SPECIAL, *extra],
        initial_alphabet=LETTERS,
        end_of_word_suffix=suffix,
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    # As converted files have them: byte tokens are no added tokens.
    state = json.loads(backend.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in SPECIAL]
    for token in state["added_tokens"]:
        token["normalized"] = False
    return tokenizers.Tokenizer.from_str(json.dumps(state))


def byte_level(*, prefix: bool = False, normalizer: Any = None) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def sentencepiece(scheme: str) -> tokenizers.Tokenizer:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if scheme != "never":
        steps.append(decoders.Strip(" ", 1, 0))
    return bpe(
        None,
        pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False),
        decoders.Sequence(steps),
        byte_fallback=True,
        fuse_unk=True,
    )


def llama(*, prefix: bool = True) -> tokenizers.Tokenizer:
    before = [normalizers.Prepend("▁")] if prefix else []
    after = [decoders.Strip(" ", 1, 0)] if prefix else []
    return bpe(
        normalizers.Sequence([*before, normalizers.Replace(" ", "▁")]),
        None,
        decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *after]
        ),
        byte_fallback=True,
        fuse_unk=True,
    )


def unigram(normalizer: Any, pre_tokenizer: Any, decoder: Any) -> tokenizers.Tokenizer:
    letters = sorted({*LETTERS, "f", "i"} - {" ", "\n"})
    pieces = ["▁hello", "▁he", "▁world", "ld", "llo", "▁a", "▁,", "or", "12"]
    vocab = [("<unk>", 0.0), *((each, -2.0) for each in pieces), *((c, -5.0) for c in letters)]
    backend = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=False))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoder
    return backend


def wordpiece() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=LETTERS, show_progress=False
    )
    backend.train_from_iterator([*CORPUS, *("b" + c for c in LETTERS)], trainer)
    return backend


def gguf(**metadata: Any) -> tokenizers.Tokenizer:
    record = Path(__file__).parents[1] / "models" / "formats" / "gguf_ids.json"
    [values] = [
        each
        for each in json.loads(record.read_text(encoding="ascii"))["vocabularies"].values()
        if each["tokenizer.ggml.model"] == "llama"
    ][:1]
    prefix = "tokenizer.ggml."
    return build_tokenizer(values | {prefix + name: value for name, value in metadata.items()})


class Slow(PythonBackend):
    """Letters, written in Python, with a dummy space before each text as SentencePiece has."""

    def __init__(self, **options: Any) -> None:
        self._letters = ["<unk>", "<s>", "</s>", "<|end|>", "▁", *ALPHABET.replace("▁", "")]
        super().__init__(unk_token="<unk>", bos_token="<s>", eos_token="</s>", **options)

    @property
    def vocab_size(self) -> int:
        return len(self._letters)

    def get_vocab(self) -> dict[str, int]:
        return {letter: index for index, letter in enumerate(self._letters)}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return list("▁" + text.replace(" ", "▁"))

    def _convert_token_to_id(self, token: str) -> int:
        return self.get_vocab().get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return self._letters[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens).replace("▁", " ").removeprefix(" ")

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        return [1, *token_ids_0, 2]


def spaced(text: str) -> str:
    """As the tokenizer's own sign for a space comes out."""
    return text.replace("▁", " ")


def without_first(text: str) -> str:
    """A dummy space that is not put before a space, but taken off."""
    return spaced(text).removeprefix(" ")


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def collapsed(text: str) -> str:
    return spaced(re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)))


def collapsed_spaces(text: str) -> str:
    return spaced(re.sub(" {2,}", " ", text))


T5 = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
EDGES = [
    normalizers.Replace(Regex(r"\A +| +\z"), ""),
    normalizers.Replace(Regex(" {2,}"), " "),
    normalizers.Replace(" ", "▁"),
    normalizers.Replace(Regex(r"\A▁"), "▁▁"),
]
STRIPPED = normalizers.Sequence([normalizers.Strip(), normalizers.NFC()])

KINDS = {
    "byte-level": Kind(wrap(byte_level()), anchor="\n"),
    "byte-level with a prefix": Kind(
        wrap(byte_level(prefix=True)),
        first=lambda text: text if text.startswith(" ") else f" {text}",
        anchor="\n",
    ),
    "byte-level, NFC": Kind(
        wrap(byte_level(normalizer=normalizers.NFC())), piece=nfc, first=nfc, anchor="\n"
    ),
    "llama, legacy": Kind(wrap(llama()), piece=spaced, first=spaced),
    "llama, specials take spaces": Kind(
        wrap(llama(), lstrip=True, rstrip=True), piece=spaced, first=spaced
    ),
    "gemma": Kind(wrap(llama(prefix=False)), piece=spaced, first=spaced),
    "metaspace, always": Kind(
        wrap(sentencepiece("always")),
        piece=spaced,
        first=without_first,
    ),
    "metaspace, first": Kind(wrap(sentencepiece("first")), piece=spaced, first=without_first),
    "metaspace, never": Kind(wrap(sentencepiece("never")), piece=spaced, first=spaced),
    "t5": Kind(
        wrap(unigram(normalizers.NFKC(), T5, decoders.Metaspace())),
        piece=collapsed,
        first=lambda text: collapsed(text).removeprefix(" "),
    ),
    "sentencepiece, converted": Kind(
        wrap(
            bpe(
                normalizers.Sequence(EDGES),
                pre_tokenizers.Metaspace(prepend_scheme="always", split=False),
                decoders.Sequence(
                    [
                        decoders.Replace("▁", " "),
                        decoders.ByteFallback(),
                        decoders.Fuse(),
                        decoders.Strip(" ", 1, 0),
                    ]
                ),
                byte_fallback=True,
                fuse_unk=True,
            )
        ),
        piece=collapsed_spaces,
        first=lambda text: collapsed_spaces(text.lstrip(" ")),
    ),
    "stripped": Kind(
        wrap(bpe(STRIPPED, None, decoders.Fuse())),
        piece=nfc,
        first=lambda text: nfc(text.lstrip()),
    ),
    "wordpiece": Kind(wrap(wordpiece()), joins=" "),
    "end of word": Kind(
        wrap(
            bpe(
                None,
                pre_tokenizers.WhitespaceSplit(),
                decoders.BPEDecoder(),
                end_of_word_suffix="</w>",
            )
        ),
        joins=" ",
    ),
    "gguf": Kind(wrap(gguf()), piece=spaced, first=spaced),
    "gguf without prefix": Kind(wrap(gguf(add_space_prefix=False)), piece=spaced, first=spaced),
    "slow": Kind(Slow(), piece=spaced, first=spaced),
}
