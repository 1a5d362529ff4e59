"""Tokenizers made of GGUF metadata give llama.cpp's ids; what they would not, is refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, pre_tokenizers

from paged_stream.models.formats import gguf as converter
from paged_stream.models.formats.gguf_pretokenizers import PRETOKENIZERS
from paged_stream.models.formats.gguf_tokenizer import build_tokenizer
from paged_stream.models.formats.gguf_vocabulary import special_ids
from paged_stream.models.formats.resolve import resolve_model, resolve_tokenizer
from paged_stream.text.tokenizer import has_tokenizer, load_tokenizer
from tests.models.gguf_files import write_gguf

# Made by benchmarks/record_gguf_ids.py: vocabularies, texts, the different answers to each text,
# and per case a digit for each text that says which answer.
RECORD = Path(__file__).with_name("gguf_ids.json")
RECORDED: dict[str, Any] = json.loads(RECORD.read_text(encoding="ascii"))
TEXTS: list[str] = RECORDED["texts"]
CASES: list[list[Any]] = RECORDED["cases"]
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 2}


def metadata_of(vocabulary: str, **more: Any) -> dict[str, Any]:
    """Metadata of a recorded vocabulary, with more under ``tokenizer.ggml``."""
    own: dict[str, Any] = RECORDED["vocabularies"][vocabulary]
    prefix = {"name": "general."}
    return own | {prefix.get(key, "tokenizer.ggml.") + key: more[key] for key in more}


def build(metadata: dict[str, Any], *, parse: bool) -> Tokenizer:
    tokenizer = build_tokenizer(metadata)
    tokenizer.encode_special_tokens = not parse
    return tokenizer


def label(case: list[Any]) -> str:
    vocabulary, metadata, parse, _ = case
    more = ",".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in metadata.items())
    return f"{vocabulary},{more},{parse=}"


@pytest.mark.parametrize("case", CASES, ids=label)
def test_ids_equal_llama_cpp(case):
    vocabulary, metadata, parse, which = case
    tokenizer = build(metadata_of(vocabulary) | metadata, parse=parse)
    different = zip(RECORDED["answers"], which, strict=True)
    answers = [answers[int(digit, 36)] for answers, digit in different]
    assert len(TEXTS) >= 500
    assert {text: tokenizer.encode(text).ids for text in TEXTS} == dict(
        zip(TEXTS, answers, strict=True)
    )


def test_every_value_of_the_table_is_recorded_and_no_two_rules_look_alike():
    answers = {
        metadata["tokenizer.ggml.pre"]: which
        for vocabulary, metadata, parse, which in CASES
        if vocabulary == "bytes" and parse and set(metadata) == {"tokenizer.ggml.pre"}
    }
    assert answers.keys() == PRETOKENIZERS.keys()
    for one, other in itertools.combinations(PRETOKENIZERS, 2):
        same = PRETOKENIZERS[one] == PRETOKENIZERS[other]
        assert (answers[one] == answers[other]) is same, (one, other)


def test_smollm_splits_as_its_own_tokenizer():
    """Which takes digits one by one, and then what byte-level BPE always does."""
    tokenizer = build(metadata_of("bytes", pre="smollm"), parse=True)
    oracle = build(metadata_of("bytes", pre="smollm"), parse=True)
    steps = [pre_tokenizers.Digits(individual_digits=True)]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
    oracle.pre_tokenizer = pre_tokenizers.Sequence(steps)
    for text in TEXTS:
        assert tokenizer.encode(text).ids == oracle.encode(text).ids, text


@pytest.mark.parametrize(
    ("vocabulary", "more"),
    [("bytes", {"pre": "smollm"}), ("runs", {"pre": "llama-bpe"}), ("pieces", {})],
)
def test_text_comes_back(vocabulary, more):
    """Where pieces get a space in front, only the first one's is taken away again."""
    tokenizer = build(metadata_of(vocabulary, **more), parse=False)
    for text in TEXTS:
        if vocabulary == "pieces" and "<tool>" in text:
            continue
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        expected = text.replace("\u2581", " ") if vocabulary == "pieces" else text
        assert tokenizer.decode(ids, skip_special_tokens=False) == expected


@pytest.mark.parametrize(
    ("vocabulary", "more", "problem"),
    [
        ("bytes", {"pre": "gemma4"}, "tokenizer.ggml.pre='gemma4' is not supported, only a.x-4.0,"),
        ("bytes", {"model": "rwkv"}, "model='rwkv' is not supported, only 'gpt2' and 'llama'"),
        ("bytes", {"tokens": None}, "it lacks tokenizer.ggml.tokens"),
        ("bytes", {"merges": None}, "it lacks tokenizer.ggml.merges"),
        ("bytes", {"merges": ["a q"]}, "merges: 'a q' needs the token 'aq', which is not there"),
        ("bytes", {"token_type": [1]}, "tokens, 859 of them different and 1 with a type"),
        ("pieces", {"tokens": ["a", "a"]}, "2 tokens, 1 of them different"),
        ("pieces", {"tokens": ["a", "b"]}, "lacks <0x00>, a token for a byte"),
        ("pieces", {"scores": None}, "have the same; pass"),
        ("pieces", {"name": "Phi-3 mini"}, "general.name='Phi-3 mini': Phi-3 drops whitespace"),
        (
            "bytes",
            {"pre": "tekken", "bos_token_id": None},
            "bos_token_id is missing, though a text is to have one",
        ),
    ],
)
def test_refused(vocabulary, more, problem):
    metadata = metadata_of(vocabulary, **more)
    given = {key: value for key, value in metadata.items() if value is not None}
    with pytest.raises(ValueError) as error:
        build_tokenizer(given)
    assert problem in str(error.value)
    assert str(error.value).endswith(
        "; pass tokenizer= (--tokenizer), a folder that has the model's own tokenizer"
    )


def test_characters_that_only_llama_cpp_can_merge_are_refused():
    pieces = metadata_of("pieces")
    tokens = [*pieces["tokenizer.ggml.tokens"], "\u9f98a"]
    with pytest.raises(ValueError, match="'\u9f98a' has a character that is no token; pass"):
        build_tokenizer(_extended(pieces, tokens, scores=True))
    lacking = metadata_of("lacking", pre="gpt-2")
    tokens = [*lacking["tokenizer.ggml.tokens"], "\u0104a"]
    with pytest.raises(ValueError, match="'\u0104a' has a byte that is no token of its own; pass"):
        build_tokenizer(_extended(lacking, tokens, scores=False))


def _extended(metadata: dict[str, Any], tokens: list[str], *, scores: bool) -> dict[str, Any]:
    more = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [*metadata["tokenizer.ggml.token_type"], 1],
    }
    if scores:
        more["tokenizer.ggml.scores"] = [*metadata["tokenizer.ggml.scores"], -1e6]
    return metadata | more


def test_ids_that_a_file_need_not_name():
    assert special_ids(metadata_of("pieces")) == {"bos": 1, "eos": 2, "unknown": 0}
    given = metadata_of("pieces", bos_token_id=5, eos_token_id=10**6, padding_token_id=0)
    assert special_ids(given) == {"bos": 5, "eos": 2, "unknown": 0, "padding": 0}
    assert special_ids(metadata_of("bytes", eot_token_id=4)) == {"bos": 1, "eos": 2, "eot": 4}


def test_a_missing_value_is_named(caplog):
    build_tokenizer(metadata_of("bytes"))
    assert "tokenizer.ggml.pre is missing" in caplog.text


def test_conversion_writes_the_tokenizer(tiny_llama, tmp_path):
    template = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}"
    path = write_gguf(
        tiny_llama(**SHAPE),
        tmp_path / "tiny.gguf",
        tokenizer__ggml__pre="llama-bpe",
        tokenizer__chat_template=template,
    )
    files = resolve_model(path, cache_dir=tmp_path / "cache")
    tokenizer = load_tokenizer(files.folder, files.name)
    he = tokenizer.encode("he", add_special_tokens=False)
    assert len(he) == 1
    assert tokenizer.encode("he") == [1, *he]  # llama-bpe adds BOS where a file does not say
    assert tokenizer.decode([1, *he]) == "he" and tokenizer.is_special(1)
    assert tokenizer.render_chat_template([{"role": "user", "content": "x"}]) == "<s>[x]"


def test_an_unknown_value_is_refused_before_weights_are_seen(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(converter, "_check_tensors", None)
    path = write_gguf(tiny_llama(**SHAPE), tmp_path / "tiny.gguf", tokenizer__ggml__pre="newest")
    with pytest.raises(ValueError) as error:
        resolve_model(path, cache_dir=tmp_path / "cache")
    assert str(error.value).startswith(f"{path}: cannot convert this GGUF file: ")
    assert "tokenizer.ggml.pre='newest'" in str(error.value)


def test_a_tokenizer_that_is_refused_is_not_needed_beside_another_one(tiny_llama, tmp_path):
    path = write_gguf(tiny_llama(**SHAPE), tmp_path / "tiny.gguf", tokenizer__ggml__pre="newest")
    files = resolve_model(path, cache_dir=tmp_path / "cache", with_tokenizer=False)
    assert (files.folder / "config.json").is_file() and not has_tokenizer(files.folder)
    again = resolve_model(path, cache_dir=tmp_path / "cache", with_tokenizer=False)
    assert again.folder == files.folder
    with pytest.raises(ValueError, match="pre='newest'"):
        resolve_model(path, cache_dir=tmp_path / "cache")
    good = write_gguf(tiny_llama(**SHAPE), tmp_path / "good.gguf")
    whole = resolve_model(good, cache_dir=tmp_path / "cache").folder
    assert resolve_model(good, cache_dir=tmp_path / "cache", with_tokenizer=False).folder == whole
    source = resolve_tokenizer(files, good, cache_dir=tmp_path / "cache")
    assert source == (whole, f"tokenizer={str(good)!r}")


def test_conversions_of_older_versions_are_made_again(tiny_llama, tmp_path, monkeypatch):
    path = write_gguf(tiny_llama(**SHAPE), tmp_path / "tiny.gguf")
    monkeypatch.setattr(converter, "CONVERTER_VERSION", converter.CONVERTER_VERSION - 1)
    old = resolve_model(path, cache_dir=tmp_path / "cache").folder
    monkeypatch.undo()
    assert resolve_model(path, cache_dir=tmp_path / "cache").folder != old
