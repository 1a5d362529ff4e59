"""What a request asks of its logits and its text is the same in any company."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from paged_stream import LLM, SamplingParams
from paged_stream.text.bad_words import bad_word_ids
from paged_stream.text.tokenizer import Tokenizer as WrappedTokenizer
from paged_stream.text.tokenizer import load_tokenizer
from tests.reference import tiny_llama
from tests.text.decoder_kinds import LETTER_OF

PROMPT = [i % 90 + 2 for i in range(50)]
NUMBER: dict[str, Any] = {"max_tokens": 30, "ignore_eos": True}


def turned(token_ids, logits):
    """Depends on every token that was generated and is visible."""
    return logits.roll(sum(token_ids))


PARAMS = [
    SamplingParams(seed=1, **NUMBER, logits_processors=turned),
    SamplingParams(seed=2, **NUMBER, n=3, logits_processors=turned, frequency_penalty=1.0),
    SamplingParams(
        seed=3, **NUMBER, logit_bias={40: 5.0, 41: 5.0, 42: 5.0}, bad_words=["FG", "GH"]
    ),
    SamplingParams(seed=4, **NUMBER, allowed_token_ids=range(20, 60), min_tokens=10),
    SamplingParams(seed=5, **NUMBER, stop=["e", "</s>"], min_tokens=5),
    SamplingParams(temperature=0, **NUMBER),
]


def answers(outputs):
    return [
        (e.text, e.token_ids, e.finish_reason, e.stop_reason) for o in outputs for e in o.outputs
    ]


@pytest.fixture(scope="module")
def alone(folder):
    """Each request by itself, in small chunks."""
    settings = {"num_sink_tokens": 4, "window_size": 24, "dtype": "float32", "block_size": 8}
    with LLM(
        str(folder), **settings, max_num_batched_tokens=8, kv_cache_memory_bytes=4 << 20
    ) as llm:
        yield [answers(llm.generate([PROMPT], params, use_tqdm=False)) for params in PARAMS]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_decode_steps": 4},
        {"max_num_seqs": 4, "max_num_batched_tokens": 13},
        {"kv_cache_memory_bytes": 100_000},
    ],
)
def test_company_does_not_matter(make_engine, alone, settings):
    engine = make_engine(**settings)
    outputs = engine.generate([PROMPT] * len(PARAMS), PARAMS, use_tqdm=False)
    assert [answers([output]) for output in outputs] == alone
    assert not any("FG" in text or "GH" in text for text, *_ in alone[2])
    assert all(20 <= token_id < 60 for token_id in alone[3][0][1])


@pytest.mark.parametrize("params", [PARAMS[0], *PARAMS[2:]])
def test_streams_that_are_parked_saved_or_forked(make_engine, params):
    engine = make_engine()
    with engine.open_stream() as stream:
        stream.append(PROMPT)
        list(stream.generate(SamplingParams(temperature=0, **NUMBER)))
        content = stream.save_bytes()
        fork = stream.fork()
        expected = [delta.delta_token_ids for delta in stream.generate(params)]
        with fork, engine.load_stream(content) as loaded:
            fork.park()
            for each in (fork, loaded):
                assert [delta.delta_token_ids for delta in each.generate(params)] == expected


def test_a_request_ends_with_a_bad_character_and_a_turn_does_not(byte_folder):
    """A turn may be followed by one that finishes the character."""
    first, *rest = "日".encode()
    params = SamplingParams(temperature=0, max_tokens=1, logit_bias={first: 100})
    with LLM(str(byte_folder), dtype="float32", kv_cache_memory_bytes=4 << 20) as llm:
        [output] = llm.generate([[65]], params, use_tqdm=False)
        assert output.outputs[0].text == "\ufffd"
        with llm.open_stream() as stream:
            assert [delta.delta_text for delta in stream.complete([65], params)] == [""]
            for byte in rest:
                params = SamplingParams(temperature=0, max_tokens=1, logit_bias={byte: 100})
                [delta] = stream.generate(params)
            assert delta.delta_text == "日"


@pytest.fixture
def byte_folder(folder, tmp_path):
    """The tiny model, with tokens that are a byte each."""
    tiny_llama(0, vocab_size=256).save_pretrained(tmp_path)
    vocab = {LETTER_OF[byte]: byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    return tmp_path


def test_end_tokens_come_from_everywhere(folder, tmp_path, make_engine):
    """Those of config.json, generation_config.json, the tokenizer, and the chat template."""
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"eos_token_id": 7}))
    (model / "generation_config.json").write_text('{"eos_token_id": [8, 9]}')
    tokens = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(tokens | {"eos_token": "A"}))
    end = load_tokenizer(model, "mine").eos_token_id
    assert end == 35
    engine = make_engine(model)
    for token_id in (7, 8, 9, end, 0):
        params = SamplingParams(temperature=0, logit_bias={token_id: 100})
        [output] = engine.generate([PROMPT], params, use_tqdm=False)
        assert (output.outputs[0].token_ids, output.outputs[0].stop_reason) == ([token_id], None)
        ignoring = SamplingParams(temperature=0, logit_bias={token_id: 100}, ignore_eos=True)
        [output] = engine.generate([PROMPT], ignoring, use_tqdm=False)
        assert output.outputs[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (SamplingParams(allowed_token_ids=[5, 97]), "allowed_token_ids must be below 97, got 97"),
        (SamplingParams(logit_bias={97: 1.0}), "logit_bias must be below 97, got 97"),
    ],
)
def test_ids_that_the_model_does_not_have(make_engine, params, message):
    with pytest.raises(ValueError, match=message):
        make_engine().generate([PROMPT], params, use_tqdm=False)


def test_bad_words_need_a_tokenizer(make_engine, bare_folder):
    with pytest.raises(ValueError, match="bad_words needs a tokenizer"):
        make_engine(bare_folder).generate([PROMPT], SamplingParams(bad_words="a"), use_tqdm=False)


@pytest.mark.parametrize("prepends", [True, False], ids=["metaspace", "byte-level"])
def test_bad_words_are_barred_within_a_word_and_after_a_space(prepends):
    """No tokenizer puts a space of its own before them: what is generated goes on from a text."""
    tokens = ["▁sea", "sea", "▁", "s", "e", "a"]
    if not prepends:
        tokens = [token.replace("▁", "Ġ") for token in tokens]
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    space = tokens[2]
    merges = [("s", "e"), ("se", "a"), (space, "sea")]
    backend = Tokenizer(models.BPE(vocab | {"se": 6}, merges))
    if prepends:
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    tokenizer = WrappedTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert bad_word_ids(tokenizer, ["sea", " sea", "as"]) == ((1,), (0,), (5, 3), (2, 5, 3))
