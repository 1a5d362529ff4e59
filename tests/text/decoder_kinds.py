"""Small tokenizers with every kind of decoder, and what their tokens mean, written independently.

Byte tokens stand for single bytes; the text of a run of them is what UTF-8 makes of it.
"""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import tokenizers
from tokenizers import AddedToken, decoders, models
from transformers import PreTrainedTokenizerFast

from paged_stream.text.tokenizer import Tokenizer

SPECIAL = ["<s>", "</s>", "<|end|>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["a", "b", ".", ",", "'", "it", "do", "n't", "日", "語é", "ผ", "\ufffd", "\n", "x y", ""]
META = ["▁", "▁▁", "▁a", "▁▁b", "c▁", "▁日", "▁."]
SUFFIXED = ["a</w>", "b</w>", "日</w>", "</w>", ".</w>"]
PIECES = ["##a", "##日", "##n't", "##"]
ADDED = "<tool>▁x"


@dataclass(frozen=True)
class Kind:
    """A tokenizer, and the text of some of its tokens.

    Attributes:
        piece: bytes of a token, or its text where that does not depend on its neighbours.
        finish: the rest of the decoder, for the joined pieces. If it is not given, transformers
            says what the text is: there are no bytes that it could get wrong.
        hides_end: U+FFFD at the end of the text is left out, since the decoder does not tell
            whether more bytes could make a character of it.
    """

    wrapped: PreTrainedTokenizerFast
    piece: Callable[[str], str | bytes] | None = None
    finish: Callable[[str], str] = str
    hides_end: bool = False

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.wrapped)

    @cached_property
    def vocab(self) -> dict[str, int]:
        return self.wrapped.get_vocab()

    def expected(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of all tokens. An unfinished character at the end is left out; other bytes that
        are no UTF-8 become U+FFFD."""
        whole = self.wrapped.decode(
            list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        assert isinstance(whole, str)
        if self.piece is None:
            return whole.removesuffix("\ufffd") if self.hides_end else whole
        tokens = (self.wrapped.convert_ids_to_tokens(token_id) for token_id in ids)
        skipped = SPECIAL if skip_special_tokens else []
        pieces = [
            self.piece(token) for token in tokens if isinstance(token, str) and token not in skipped
        ]
        runs = [run_of(list(pieces)) for _, pieces in itertools.groupby(pieces, type)]
        # Only what ends a run of bytes tells that its last character will stay unfinished.
        ends = [at + 1 < len(runs) for at in range(len(runs))]
        text = self.finish("".join(map(as_text, runs, ends)))
        if all(map(is_utf8, runs)):
            assert text == whole  # the oracles agree
        return text


def run_of(pieces: list[str | bytes]) -> str | bytes:
    texts = [piece for piece in pieces if isinstance(piece, str)]
    return "".join(texts) or b"".join(piece for piece in pieces if isinstance(piece, bytes))


def as_text(run: str | bytes, is_whole: bool) -> str:
    return run if isinstance(run, str) else codecs.utf_8_decode(run, "replace", is_whole)[0]


def is_utf8(run: str | bytes) -> bool:
    try:
        return isinstance(run, str) or run.decode() is not None
    except UnicodeDecodeError:
        return False


def build(words: Sequence[str], decoder: decoders.Decoder | None) -> PreTrainedTokenizerFast:
    vocab = {token: index for index, token in enumerate(dict.fromkeys(["<unk>", *words]))}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab=vocab, unk_token="<unk>"))
    if decoder is not None:
        backend.decoder = decoder
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    backend.add_tokens([AddedToken(ADDED, special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def byte_piece(token: str) -> str | bytes:
    return bytes([BYTES.index(token)]) if token in BYTES else token


def spaced_byte_piece(token: str) -> str | bytes:
    return bytes([BYTES.index(token)]) if token in BYTES else token.replace("▁", " ")


LETTERS = {  # as GPT-2 writes bytes: those that cannot be seen follow from U+0100 on
    letter: byte
    for byte, letter in zip(
        [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        + [*range(0x21), *range(0x7F, 0xA1), 0xAD],
        [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100), *range(0x100, 0x144)],
        strict=True,
    )
    for letter in [chr(letter)]
}
LETTER_OF = {byte: letter for letter, byte in LETTERS.items()}


def letters(data: bytes) -> str:
    return "".join(LETTER_OF[byte] for byte in data)


def byte_level_piece(token: str) -> bytes:
    if all(letter in LETTERS for letter in token):
        return bytes(LETTERS[letter] for letter in token)
    return token.encode()


BYTE_LEVEL = [
    "",
    *LETTERS,
    *(letters(text.encode()) for text in (" a", "ab", " 日語", "é", "\n\n")),
    *(letters(data) for data in (b"\x97\xa5\xe8", b"a\xf0\x9f", b"\x80\x80", b"\xff ", b"\xe0")),
]


def sequence(*steps: decoders.Decoder) -> decoders.Decoder:
    return decoders.Sequence(list(steps))


SPACES = decoders.Replace("▁", " ")
FALLBACK = decoders.ByteFallback()
FUSE = decoders.Fuse()
STRIP = decoders.Strip(" ", 1, 0)
META_WORDS = WORDS + META

KINDS = {
    "byte-level": Kind(build(BYTE_LEVEL, decoders.ByteLevel()), byte_level_piece),
    "byte-level and more": Kind(
        build(BYTE_LEVEL, sequence(decoders.ByteLevel(), decoders.Replace("a", "A"))),
        hides_end=True,
    ),
    "llama": Kind(
        build(META_WORDS + BYTES, sequence(SPACES, FALLBACK, FUSE, STRIP)),
        spaced_byte_piece,
        lambda text: text.removeprefix(" "),
    ),
    "gemma": Kind(build(META_WORDS + BYTES, sequence(SPACES, FALLBACK, FUSE)), spaced_byte_piece),
    "gguf": Kind(
        build(META_WORDS + BYTES, sequence(FALLBACK, FUSE, SPACES, STRIP)),
        byte_piece,
        lambda text: text.replace("▁", " ").removeprefix(" "),
    ),
    "metaspace": Kind(build(META_WORDS, decoders.Metaspace())),
    "metaspace without prefix": Kind(build(META_WORDS, decoders.Metaspace(prepend_scheme="never"))),
    "metaspace, bytes by name": Kind(build(META_WORDS + BYTES, decoders.Metaspace())),
    "wordpiece": Kind(build(WORDS + PIECES, decoders.WordPiece())),
    "wordpiece without cleanup": Kind(build(WORDS + PIECES, decoders.WordPiece(cleanup=False))),
    "bpe": Kind(build(WORDS + SUFFIXED, decoders.BPEDecoder())),
    "ctc": Kind(build([*WORDS, "<pad>", "|"], decoders.CTC())),
    "stripped": Kind(build(META_WORDS, sequence(SPACES, FUSE, decoders.Strip(" ", 2, 0)))),
    "none": Kind(build(WORDS, None)),
}
