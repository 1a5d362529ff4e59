"""Texts that follow each other in a stream are one text in the end."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from paged_stream.text.tokenizer import Tokenizer
from tests.text.seam_kinds import ALPHABET, KINDS, Kind, llama, wrap

NUM_EXAMPLES = int(os.environ.get("NUM_SEQUENCES", "200"))
PIECES = st.lists(st.text(ALPHABET, min_size=1, max_size=8), min_size=1, max_size=5)
WORDS = {name: kind for name, kind in KINDS.items() if kind.joins}
EXACT = {name: kind for name, kind in KINDS.items() if not kind.joins}

every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
exact_kinds = pytest.mark.parametrize("kind", EXACT.values(), ids=EXACT.keys())


def encoded(kind: Kind, pieces: list[str]) -> list[list[int]]:
    tokenizer = kind.tokenizer
    return [tokenizer.encode(piece, continues=at > 0) for at, piece in enumerate(pieces)]


@exact_kinds
@settings(max_examples=NUM_EXAMPLES)
@given(PIECES)
def test_tokens_of_pieces_decode_to_the_pieces_joined(kind, pieces):
    expected = kind.first(pieces[0]) + "".join(map(kind.piece, pieces[1:]))
    ids = encoded(kind, pieces)
    text = kind.tokenizer.decode([each for piece in ids for each in piece])
    if ids[0] == kind.tokenizer.leading_ids:  # the decoder takes the next piece for the first
        assert text in (expected, expected.removeprefix(" "))
    else:
        assert text == expected


@pytest.mark.parametrize("kind", WORDS.values(), ids=WORDS.keys())
@settings(max_examples=NUM_EXAMPLES)
@given(PIECES)
def test_where_spaces_are_no_tokens_each_piece_begins_a_word(kind, pieces):
    whole = kind.tokenizer.encode(kind.joins.join(pieces))
    assert [each for piece in encoded(kind, pieces) for each in piece] == whole


@exact_kinds
@settings(max_examples=NUM_EXAMPLES)
@given(
    st.text(ALPHABET.replace("\u0301", ""), max_size=12),
    st.sampled_from(["<s>", "</s>", "<|end|>"]),
)
def test_ids_are_those_within_a_document(kind, text, special):
    """Behind a character that merges with no other, with a special token in the text too."""
    tokenizer = kind.tokenizer
    for each in (text, f"{text[:5]}{special}{text[5:]}"):
        before, whole = tokenizer.encode(kind.anchor), tokenizer.encode(kind.anchor + each)
        assert [*before, *tokenizer.encode(each, continues=True)] == whole


def test_what_is_found_in_normalized_text_parts_nothing():
    """No dummy space comes behind it, in a document or here."""
    wrapped = wrap(llama())
    wrapped.add_tokens([AddedToken("<tool>", normalized=True)])
    ids = Tokenizer(wrapped).encode("a<tool>b", continues=True)
    assert wrapped.convert_ids_to_tokens(ids)[-1:] == ["b"] and len(ids) == 3


def test_special_tokens_may_be_plain_text():
    wrapped = wrap(llama())
    wrapped.split_special_tokens = True
    tokenizer = Tokenizer(wrapped)
    for continues in (False, True):
        ids = tokenizer.encode("a</s>b", continues=continues)
        assert wrapped.eos_token_id not in ids and tokenizer.decode(ids) == "a</s>b"


def test_an_unknown_character_parts_nothing():
    wrapped = KINDS["stripped"].wrapped
    ids = Tokenizer(wrapped).encode("a\u2603 b", continues=True)
    assert wrapped.convert_ids_to_tokens(ids) == ["a", "<unk>", " ", "b"]


def test_no_end_of_a_document_comes_behind_a_text():
    for kind in KINDS.values():
        assert kind.tokenizer.encode("hello")[0] == kind.wrapped.bos_token_id
        assert kind.tokenizer.encode("hello")[-1] != kind.wrapped.eos_token_id
