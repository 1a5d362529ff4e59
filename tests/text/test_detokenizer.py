"""Text that comes out piece by piece equals text decoded at once, and stop strings cut it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paged_stream.text.detokenizer import Detokenizer
from paged_stream.text.tokenizer import Tokenizer


class ByteTokenizer(Tokenizer):
    """One token per UTF-8 byte; a space at the very start of a text is dropped, as sentencepiece
    decoders do."""

    def __init__(self) -> None:
        pass  # there is nothing to wrap

    def decode(self, ids):
        text = bytes(ids).decode("utf-8", errors="replace")
        return text.removeprefix(" ")


def run(text: str, stop=()) -> tuple[list[str], bool]:
    detokenizer = Detokenizer(ByteTokenizer(), stop)
    pieces = []
    for byte in text.encode():
        piece, stopped = detokenizer.append(byte)
        pieces.append(piece)
        if stopped:
            return pieces, True
    piece, stopped = detokenizer.finish()
    return [*pieces, piece], stopped


@given(st.text(max_size=40))
def test_pieces_join_to_the_whole(text):
    pieces, stopped = run(text)
    assert "".join(pieces) == text.removeprefix(" ") and not stopped


@given(st.text("abx ", max_size=30), st.lists(st.text("abx ", min_size=1, max_size=4), min_size=1))
@settings(max_examples=300)
def test_stop_strings_cut_at_the_earliest_match(text, stop):
    whole = text.removeprefix(" ")
    pieces, stopped = run(text, stop)
    ends = [whole.find(s) + len(s) for s in stop if s in whole]
    assert stopped == bool(ends)
    # Whichever is completed first ends the text; of several completed at once, the longest cut.
    first = min(ends, default=0)
    cuts = [whole.find(s) for s in stop if s in whole and whole.find(s) + len(s) == first]
    assert "".join(pieces) == (whole[: min(cuts)] if ends else whole)


def test_the_prompt_decides_about_a_leading_space():
    for prompt, expected in ((b"", "b"), (b"some text, a", " b")):
        detokenizer = Detokenizer(ByteTokenizer(), (), prompt)
        assert "".join(detokenizer.append(byte)[0] for byte in b" b") == expected


def test_characters_are_held_back_until_whole():
    pieces, _ = run("aé€😀b")
    assert pieces[:-1] == ["a", "", "é", "", "", "€", "", "", "", "😀", "b"]


def test_bytes_that_are_no_text_do_not_pile_up():
    detokenizer = Detokenizer(ByteTokenizer(), ())
    out = "".join(detokenizer.append(0x80)[0] for _ in range(1000))
    assert len(out) > 900
    assert len(detokenizer._pending) + len(detokenizer._context) < 20


def test_text_held_for_a_stop_string_comes_out_in_the_end():
    assert run("abc</", stop=["</s>"]) == (["a", "b", "c", "", "", "</"], False)


@pytest.mark.parametrize("length", [1, 5, 1000])
def test_memory_is_bounded(length):
    detokenizer = Detokenizer(ByteTokenizer(), ["zzzz"])
    for _ in range(length):
        detokenizer.append(ord("a"))
    assert len(detokenizer._context) <= 12 and not detokenizer._pending and not detokenizer._held
