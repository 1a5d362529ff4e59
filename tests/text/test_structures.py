"""Every text that a structure allows can be written, and no other, with every kind of tokenizer."""

from __future__ import annotations

import random
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paged_stream.scheduler.structured_outputs import StructuredOutputsParams
from paged_stream.text import structures as structures_module
from paged_stream.text.structures import Structures
from paged_stream.text.token_bytes import all_token_bytes
from paged_stream.text.tokenizer import Tokenizer, load_tokenizer
from tests.conftest import VOCAB
from tests.text.decoder_kinds import BYTES, KINDS, LETTER_OF, SPECIAL

END = 0  # of the tokenizer of letters
# CTC writes a token that is repeated once, so what a token adds depends on the one before it.
OF_ONE_TOKEN = [name for name in KINDS if name != "ctc"]


def is_utf8(data: bytes) -> bool:
    return data.decode(errors="ignore").encode() == data


@pytest.mark.parametrize("name", OF_ONE_TOKEN)
@given(data=st.data())
def test_the_bytes_of_tokens_are_the_text(name, data):
    kind = KINDS[name]
    size = max(kind.vocab.values()) + 1
    token_bytes = all_token_bytes(kind.tokenizer, size)
    pieces = [[i] for i in kind.vocab.values() if token_bytes[i] and is_utf8(token_bytes[i])]
    for names in (BYTES, [LETTER_OF[byte] for byte in range(256)]):
        ids_of_bytes = [kind.vocab.get(name, 0) for name in names]
        if all(token_bytes[i] for i in ids_of_bytes):
            pieces += [[ids_of_bytes[byte] for byte in text.encode()] for text in "éa日"]
    ids = [i for piece in data.draw(st.lists(st.sampled_from(pieces))) for i in piece]
    text = b"".join(token_bytes[i] for i in ids).decode()
    [dot] = kind.tokenizer.encode(".", add_special_tokens=False)
    after = kind.expected([dot, dot]).removeprefix(kind.expected([dot]))
    assert kind.expected([dot, *ids, dot]) == kind.expected([dot]) + text + after
    for token in SPECIAL:
        assert token_bytes[kind.vocab[token]] == b""


@pytest.fixture(scope="module")
def tokenizer(folder) -> Tokenizer:
    return load_tokenizer(folder, "model")


@pytest.fixture(scope="module")
def structures(tokenizer) -> Structures:
    return Structures(tokenizer, VOCAB)


def token_ids_of(bits: bytes) -> list[int]:
    return [i for i in range(8 * len(bits)) if bits[i // 8] >> i % 8 & 1]


def random_text(structures, params, seed, most=80) -> str | None:
    """What somebody writes who takes any token that is allowed; ``None`` if it has no end."""
    progress, choice, text = structures.begin(params), random.Random(seed).choice, ""
    for _ in range(most):
        allowed = token_ids_of(progress.allowed([END]))
        assert allowed
        token_id = choice(allowed)
        if token_id == END:
            return text
        progress.append(token_id)
        text += chr(token_id + 30)
        if progress.is_over:
            assert token_ids_of(progress.allowed([END])) == [END]
            return text
    return None


def joined(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.lists(parts, min_size=1, max_size=3).map("".join),
        st.lists(parts, min_size=2, max_size=3).map(lambda each: f"({'|'.join(each)})"),
        st.tuples(parts, st.sampled_from(["*", "+", "?", "{2}", "{1,3}"])).map(
            lambda pair: f"({pair[0]}){pair[1]}"
        ),
    )


EXPRESSIONS = st.recursive(
    st.sampled_from(["a", "b", " ", r"\.", "[a-c]", "[^a-z]", r"[0-9]", "xy", "[-+]", '"']),
    joined,
    max_leaves=8,
)


@given(expression=EXPRESSIONS, data=st.data())
def test_random_regular_expressions(structures, expression, data):
    params = StructuredOutputsParams(regex=expression)
    for seed in range(3):
        text = random_text(structures, params, seed)
        assert text is None or re.fullmatch(expression, text)
    printable = st.characters(min_codepoint=32, max_codepoint=126)
    text = data.draw(st.from_regex(expression, fullmatch=True, alphabet=printable))
    progress = structures.begin(params)
    for letter in text:
        assert ord(letter) - 30 in token_ids_of(progress.allowed([END]))
        progress.append(ord(letter) - 30)
    assert END in token_ids_of(progress.allowed([END]))


@pytest.mark.parametrize(
    ("params", "texts"),
    [
        (StructuredOutputsParams(choice=["yes", "no", 'a "b"\\', "yesterday"]), None),
        (StructuredOutputsParams(grammar='root ::= "a" | "b" [0-9]'), {"a", "b0", "b7"}),
        (StructuredOutputsParams(grammar='start: "a" | "b" /[0-9]/'), {"a", "b0", "b7"}),
        (StructuredOutputsParams(json={"enum": [1, "x", None]}), {"1", '"x"', "null"}),
    ],
)
def test_each_form(structures, params, texts):
    written = {random_text(structures, params, seed) for seed in range(400)}
    assert written >= (texts or set(params.choice))
    assert written <= (texts or set(params.choice)) | {f"b{digit}" for digit in range(10)}


def test_any_object(structures):
    params = StructuredOutputsParams(json_object=True)
    written = {random_text(structures, params, seed) for seed in range(50)} - {None}
    assert all(text[0] == "{" and text[-1] == "}" for text in written) and len(written) > 1


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"regex": "a("}, "regex cannot be used: .*unclosed group"),
        ({"regex": "(?=a)b"}, "regex cannot be used: .*look-around"),
        ({"regex": "é+"}, "regex cannot be used: no token of the vocabulary begins such a text"),
        ({"json": {"type": "objekt"}}, "json cannot be used: Invalid type: objekt"),
        ({"json": {"if": {}}}, 'json cannot be used: Unimplemented keys: ."if"'),
        ({"json": {"$ref": "#/nothing"}}, "json cannot be used: Pointer '/nothing' does not exist"),
        ({"grammar": "root ::= ("}, r"grammar cannot be used: .*Expected '\)'"),
        ({"grammar": "start: name"}, 'grammar cannot be used: .*unknown name: "name"'),
    ],
)
def test_what_cannot_be_is_named(structures, params, message):
    with pytest.raises(ValueError, match=f"^structured_outputs: {message}"):
        structures.begin(StructuredOutputsParams(**params))


def test_compiled_structures_are_kept_up_to_a_bound(tokenizer, monkeypatch):
    monkeypatch.setattr(structures_module, "_MAX_COMPILED", 2)
    few = Structures(tokenizer, VOCAB)
    first, second, third = (StructuredOutputsParams(regex=text) for text in "abc")
    for params in (first, second, first, third):
        few.begin(params)
    assert [few.knows(params) for params in (first, second, third)] == [True, False, True]


def test_without_the_extra(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ValueError, match=r'pip install "paged-stream\[structured\]"'):
        Structures(tokenizer, VOCAB).begin(StructuredOutputsParams(regex="a"))
