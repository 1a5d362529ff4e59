"""Text that comes out piece by piece equals text decoded at once, and stop strings cut it."""

from __future__ import annotations

import bisect
import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paged_stream.text.detokenizer import CONTEXT_TOKENS, Detokenizer
from paged_stream.text.tokenizer import Tokenizer
from tests.text.decoder_kinds import BYTES, KINDS, LETTER_OF, SPECIAL, Kind

# Random sequences for each property and each kind of decoder.
NUM_SEQUENCES = int(os.environ.get("NUM_SEQUENCES", "100"))
BYTE_KINDS = {name: kind for name, kind in KINDS.items() if kind.piece is not None}
UNKNOWN_ID = 100_000

every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
byte_kinds = pytest.mark.parametrize("kind", BYTE_KINDS.values(), ids=BYTE_KINDS.keys())


def byte_ids(kind: Kind, data: bytes) -> list[int]:
    names = BYTES if BYTES[0] in kind.vocab else LETTER_OF
    return [kind.vocab[names[byte]] for byte in data]


def sequence(kind: Kind, rng: random.Random) -> list[int]:
    """Random tokens, and UTF-8 and other bytes in byte tokens, with skipped tokens in between."""
    skipped = [UNKNOWN_ID, *(kind.vocab[token] for token in SPECIAL)]
    ids: list[int] = []
    for _ in range(rng.randrange(7)):
        ids += rng.choices(skipped, k=rng.choice((0, 0, 1, 2)))
        if kind.piece is None or rng.random() < 0.4:
            ids += rng.choices(range(len(kind.vocab)), k=rng.randrange(12))
            continue
        text = "".join(rng.choices("aé▁ 日\u2295\U0001f600\ufffd", k=rng.randrange(6)))
        data = rng.choice((text.encode(), rng.randbytes(rng.randrange(6)), text.encode()[:-1]))
        if rng.random() < 0.02:
            data = rng.choice((b"\x80", b"\xe6\x97", "▁日".encode(), rng.randbytes(3))) * 67
        ids += byte_ids(kind, data)
    return ids


def turn(kind: Kind, ids: list[int], begin: int, end: int, stop=()) -> tuple[list[str], bool]:
    """Pieces of the text of one turn, and whether it was stopped."""
    context = ids[max(0, begin - CONTEXT_TOKENS) : begin]
    return run(kind.tokenizer, ids[begin:end], stop, context)


def run(tokenizer: Tokenizer, ids: list[int], stop=(), context=()) -> tuple[list[str], bool]:
    detokenizer = Detokenizer(tokenizer, stop, context)
    pieces = []
    for token_id in ids:
        piece, stopped = detokenizer.append(token_id)
        pieces.append(piece)
        if stopped:
            return pieces, True
    return [*pieces, detokenizer.finish()], False


@every_kind
def test_turns_join_to_the_whole(kind):
    for seed in range(NUM_SEQUENCES):
        rng = random.Random(seed)
        ids = sequence(kind, rng)
        cuts = [rng.randint(0, len(ids)) for _ in range(rng.randrange(5))]
        text, begin = "", 0
        for end in [*sorted(cuts), len(ids)]:
            text += "".join(turn(kind, ids, begin, end)[0])
            begin = end
            assert text == kind.expected(ids[:end]), seed


@every_kind
def test_stop_strings_end_the_text_where_a_search_in_the_whole_finds_them(kind):
    for seed in range(NUM_SEQUENCES):
        rng = random.Random(seed)
        ids = sequence(kind, rng)
        begin = rng.randint(0, min(3, len(ids)))
        stop, expected = stopped_text(kind, ids, begin, rng)
        pieces, is_stopped = turn(kind, ids, begin, len(ids), stop)
        assert ("".join(pieces), is_stopped, len(pieces)) == expected, seed


def stopped_text(
    kind: Kind, ids: list[int], begin: int, rng: random.Random
) -> tuple[list[str], tuple[str, bool, int]]:
    """Stop strings, most of them from the text from ``begin`` on; what is left of the text, whether
    one stops it, and after how many pieces it ends."""
    before = kind.expected(ids[:begin])

    def text(count: int) -> str:
        return kind.expected(ids[: begin + count])[len(before) :]

    counts = range(1, len(ids) - begin + 1)
    whole = text(len(counts))
    starts = [rng.randint(0, len(whole)) for _ in range(rng.randint(1, 3))]
    stop = [whole[at : at + rng.randint(1, 6)] or "ab" for at in starts]
    count = 1 + bisect.bisect_left(counts, True, key=lambda n: any(s in text(n) for s in stop))
    if count > len(counts):
        return stop, (whole, False, count)
    whole = text(count)
    return stop, (whole[: min(whole.find(s) for s in stop if s in whole)], True, count)


@byte_kinds
def test_characters_come_out_as_soon_as_they_are_whole(kind):
    ids = byte_ids(kind, "aé€😀\ufffdb".encode())
    expected = ["a", "", "é", "", "", "€", "", "", "", "😀", "", "", "\ufffd", "b", ""]
    assert run(kind.tokenizer, ids) == (expected, False)


@byte_kinds
def test_a_character_that_two_turns_share_is_in_the_text_of_the_second(kind):
    ids = byte_ids(kind, "日語가ผ⊕".encode())
    for cut in range(len(ids) + 1):
        halves = ["".join(turn(kind, ids, *ends)[0]) for ends in ((0, cut), (cut, len(ids)))]
        assert "".join(halves) == "日語가ผ⊕"
        assert "\ufffd" not in halves[0]


@byte_kinds
def test_bad_bytes_leave_their_neighbours_alone(kind):
    ids = byte_ids(kind, "日".encode() + b"\xe6\x97" + "語".encode() + b"\xff\xc3")
    # The last byte begins a character that may still come.
    assert "".join(run(kind.tokenizer, ids)[0]) == "日\ufffd語\ufffd"


@byte_kinds
@pytest.mark.parametrize("before", ["日".encode() * 67, b"\x80" * 200])
def test_stop_strings_within_a_run_of_bytes(kind, before):
    ids = byte_ids(kind, before + "語a".encode())
    pieces, stopped = run(kind.tokenizer, ids, ["語"])
    assert stopped and "".join(pieces) == before.decode(errors="replace")


@pytest.mark.parametrize("name", ["llama", "gemma", "gguf", "metaspace", "stripped"])
@pytest.mark.parametrize("num_silent", [0, 3, 1000])
def test_tokens_without_text_do_not_make_a_beginning(name, num_silent):
    """Decoders strip spaces there, once."""
    kind = KINDS[name]
    tokens = ["▁", *[""] * num_silent, "▁▁", *[""] * num_silent, "▁▁b", "a"]
    ids = [kind.vocab[token] for token in tokens]
    assert "".join(run(kind.tokenizer, ids)[0]) == kind.expected(ids)


def test_text_held_for_a_stop_string_comes_out_in_the_end():
    kind = KINDS["byte-level"]
    ids = byte_ids(kind, b"abc</")
    assert run(kind.tokenizer, ids, ["</s>"]) == (["a", "b", "c", "", "", "</"], False)


class Counted(Tokenizer):
    """Counts the tokens that are decoded."""

    num_decoded = 0

    def decode(self, ids, skip_special_tokens=True):
        self.num_decoded += len(ids)
        return super().decode(ids, skip_special_tokens)


@every_kind
@pytest.mark.parametrize("what", ["random", "one", "empty", "special", "bad bytes"])
def test_cost_and_memory_per_token_are_constant(kind, what):
    tokenizer = Counted(kind.wrapped)
    ids = {
        "random": random.Random(0).choices(range(len(kind.vocab)), k=2000),
        "one": [5] * 2000,
        "empty": kind.wrapped.convert_tokens_to_ids([""]) * 2000,
        "special": kind.wrapped.convert_tokens_to_ids(["<s>"]) * 2000,
        "bad bytes": byte_ids(kind, b"\x80") * 2000 if kind.piece else [],
    }[what]
    detokenizer = Detokenizer(tokenizer, ["zzzz"], ids[:CONTEXT_TOKENS])
    for count, token_id in enumerate(ids, 1):
        before = tokenizer.num_decoded
        detokenizer.append(token_id)
        assert tokenizer.num_decoded - before <= 150, count
    detokenizer.finish()


class Unknown(Tokenizer):
    """A tokenizer of which only `decode` is known: one token per byte of UTF-8."""

    _backend = None
    byte_tokens = None

    def __init__(self) -> None:
        pass  # there is nothing to wrap

    def decode(self, ids, skip_special_tokens=True):
        return bytes(ids).decode(errors="replace").removeprefix(" ")


@given(st.text() | st.binary())
def test_tokenizers_of_which_only_decode_is_known(value):
    data = value.encode() if isinstance(value, str) else value
    whole = data.decode(errors="replace").removeprefix(" ")
    # Whether the last character is bad or just unfinished, only the next byte would tell.
    assert "".join(run(Unknown(), list(data))[0]) == whole.removesuffix("\ufffd")
