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
from tests.text.decoder_kinds import ADDED, BYTES, KINDS, LETTER_OF, SPECIAL, Kind

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


def turn(
    kind: Kind, ids: list[int], begin: int, end: int, stop=(), **how
) -> tuple[list[str], bool]:
    """Pieces of the text of one turn, and whether it was stopped."""
    context = ids[max(0, begin - CONTEXT_TOKENS) : begin]
    return run(kind.tokenizer, ids[begin:end], stop, context, **how)


def run(
    tokenizer: Tokenizer, ids: list[int], stop=(), context=(), *, is_last=False, **how
) -> tuple[list[str], bool]:
    detokenizer = Detokenizer(tokenizer, stop, context, **how)
    pieces = []
    for token_id in ids:
        piece, stopped = detokenizer.append(token_id)
        pieces.append(piece)
        if stopped:
            assert stopped in stop
            return pieces, True
    return [*pieces, detokenizer.finish(is_last=is_last)], False


@every_kind
@pytest.mark.parametrize("skip", [True, False], ids=["skipping special tokens", "showing them"])
def test_turns_join_to_the_whole(kind, skip):
    for seed in range(NUM_SEQUENCES):
        rng = random.Random(seed)
        ids = sequence(kind, rng)
        cuts = [rng.randint(0, len(ids)) for _ in range(rng.randrange(5))]
        text, begin = "", 0
        for end in [*sorted(cuts), len(ids)]:
            text += "".join(turn(kind, ids, begin, end, skip_special_tokens=skip)[0])
            begin = end
            assert text == kind.expected(ids[:end], skip), seed


@every_kind
def test_stop_strings_end_the_text_where_a_search_in_the_whole_finds_them(kind):
    for seed in range(NUM_SEQUENCES):
        rng = random.Random(seed)
        ids = sequence(kind, rng)
        begin = rng.randint(0, min(3, len(ids)))
        barred = rng.choice((0, 0, rng.randrange(8)))
        stop, text, found, count = stopped_text(kind, ids, begin, barred, rng)
        pieces, is_stopped = turn(kind, ids, begin, len(ids), stop, min_tokens=barred)
        assert ("".join(pieces), is_stopped, len(pieces)) == (text, bool(found), count), seed
        pieces, _ = turn(kind, ids, begin, len(ids), stop, min_tokens=barred, includes_stop=True)
        assert "".join(pieces) in [text + each for each in found or [""]], seed


def stopped_text(
    kind: Kind, ids: list[int], begin: int, barred: int, rng: random.Random
) -> tuple[list[str], str, list[str], int]:
    """Stop strings, most of them from the text from ``begin`` on; what is left of the text, those
    that stop it once ``barred`` tokens are there, and after how many pieces it ends."""
    before = kind.expected(ids[:begin])

    def text(count: int) -> str:
        return kind.expected(ids[: begin + count])[len(before) :]

    counts = range(1, len(ids) - begin + 1)
    whole, early = text(len(counts)), len(text(min(barred, len(counts))))
    starts = [rng.randint(0, len(whole)) for _ in range(rng.randint(1, 3))]
    stop = [whole[at : at + rng.randint(1, 6)] or "ab" for at in starts]

    def places(count: int) -> dict[str, int]:
        """Where stop strings begin whose end is in the text of later tokens."""
        found = {each: text(count).find(each, max(0, early - len(each) + 1)) for each in stop}
        return {each: at for each, at in found.items() if at >= 0}

    count = 1 + bisect.bisect_left(counts, True, key=lambda n: bool(places(n)))
    if count > len(counts):
        return stop, whole, [], count
    found = places(count)
    first = min(found.values())
    return stop, text(count)[:first], [each for each in found if found[each] == first], count


@byte_kinds
@pytest.mark.parametrize("stop", ["</s>", "b</s>", "</s>c", "ab</s></s>"])
def test_stop_strings_may_name_special_tokens_that_the_text_does_not_show(kind, stop):
    parts = {"a": [kind.vocab["a"]], "b": [kind.vocab["b"]], "c": byte_ids(kind, b"c")}
    end, other = [kind.vocab["</s>"]], [kind.vocab["<s>"]]
    ids = parts["a"] + other + parts["b"] + end + (end if stop.count("<") > 1 else []) + parts["c"]
    shown = "ab" + "</s>" * stop.count("<") + "c"
    text = shown.partition(stop)[0]
    pieces, stopped = run(kind.tokenizer, ids, [stop, "x"])
    assert stopped and "".join(pieces) == text
    assert len(pieces) == (len(ids) if stop.endswith("c") else len(ids) - 1)
    pieces, _ = run(kind.tokenizer, ids, [stop], includes_stop=True)
    assert "".join(pieces) == text + stop
    ids.remove(other[0])
    pieces, stopped = run(kind.tokenizer, ids, [stop], skip_special_tokens=False)
    assert stopped and "".join(pieces) == text
    pieces, stopped = run(
        kind.tokenizer, byte_ids(kind, shown.encode()), [stop]
    )  # letter by letter
    assert stopped and "".join(pieces) == text


@byte_kinds
def test_named_special_tokens_that_stop_nothing_are_not_shown(kind):
    ids = [*byte_ids(kind, b"a"), kind.vocab["</s>"], *byte_ids(kind, b"b"), kind.vocab["</s>"]]
    assert run(kind.tokenizer, ids, ["</s>c"]) == (["a", "", "b", "", ""], False)


@byte_kinds
def test_a_character_that_nothing_can_finish_is_shown_as_bad(kind):
    for seed in range(NUM_SEQUENCES):
        data = random.Random(seed).choice(("日語".encode(), b"a\xf0\x9f\x98\x80"))[: seed % 7]
        pieces, _ = run(kind.tokenizer, byte_ids(kind, data), ["zz"], is_last=True)
        assert "".join(pieces) == data.decode(errors="replace")


def test_special_tokens_with_and_without_spaces_between():
    kind = KINDS["none"]
    ids = [kind.vocab[token] for token in ("a", "<s>", "</s>", ADDED, "a", "<s>")]
    shown = "".join(run(kind.tokenizer, ids, skip_special_tokens=False)[0])
    assert shown == kind.expected(ids, False) == f"a <s> </s> {ADDED} a <s>"
    how = {"skip_special_tokens": False, "spaces_between_special_tokens": False}
    assert "".join(run(kind.tokenizer, ids, **how)[0]) == f"a <s></s>{ADDED} a <s>"


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
    assert "".join(run(Unknown(), list(data), is_last=True)[0]) == whole
