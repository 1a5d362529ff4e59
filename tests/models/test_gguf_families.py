"""GGUF files of every architecture: the weights that transformers reads, the config of its
safetensors form, and nothing guessed where a file says something else."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from paged_stream.models.formats.resolve import resolve_model
from paged_stream.models.loader import load_config
from paged_stream.text.tokenizer import load_tokenizer
from tests.models.checkpoints import assert_equals_gguf, load_decoder
from tests.models.gguf_files import llama3_factors, write_gguf

TOKENS = {"vocab_size": 300, "bos_token_id": 1, "eos_token_id": 2}
SMALL = TOKENS | {"num_hidden_layers": 2, "layer_types": None}
GEMMA = TOKENS | {"query_pre_attn_scalar": 16}
LOCAL, FULL = "sliding_attention", "full_attention"


def gemma3_rope(**full):
    return {
        FULL: {"rope_type": "default", "rope_theta": 1e6, **full},
        LOCAL: {"rope_type": "default", "rope_theta": 10000.0},
    }


@pytest.fixture
def convert(tmp_path):
    def run(model, **content):
        write_gguf(model, tmp_path / "tiny.gguf", **content)
        return resolve_model(tmp_path / "tiny.gguf", cache_dir=tmp_path / "cache")

    return run


CASES = [
    ("llama2", {}, {}),
    ("llama2", {"tie_word_embeddings": True, "rope_parameters": {"rope_theta": 5e4}}, {}),
    ("mistral_wide", {"model_type": "llama", "rms_norm_eps": 1e-6}, {}),
    (
        "llama_linear",
        {},
        {"rope__scaling__type": "linear", "rope__scaling__factor": 2.0},
    ),
    ("llama_linear", {}, {"rope__scale_linear": 2.0}),
    (
        "llama_yarn",
        {},
        {
            "rope__scaling__type": "yarn",
            "rope__scaling__factor": 8.0,
            "rope__scaling__original_context_length": 64,
            "rope__scaling__finetuned": True,
        },
    ),
    ("llama2", {}, {"rope__scaling__type": "none", "rope__scaling__factor": 4.0}),
    ("llama2", {}, {"rope__freq_base": None}),
    ("llama2", {}, {"attention__key_length": None, "expert_count": 0, "attention__causal": True}),
    ("qwen2", {}, {}),
    ("qwen2", {"tie_word_embeddings": False}, {}),
    ("qwen3", {"num_hidden_layers": 2}, {}),
    ("gemma2", GEMMA, {}),
    (
        "gemma2",
        GEMMA
        | {
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        {
            "attention__sliding_window": None,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
    ),
    # Gemma-3 1B: every sixth layer sees everything.
    ("gemma3", GEMMA | {"num_hidden_layers": 7, "layer_types": None, "rope_parameters": None}, {}),
    # 4B and larger: only the layers that see everything are scaled.
    (
        "gemma3",
        GEMMA | {"final_logit_softcapping": 20.0},
        {
            "rope__scaling__type": "linear",
            "rope__scaling__factor": 8.0,
            "attention__sliding_window_pattern": 2,
        },
    ),
    (
        "gemma3",
        GEMMA
        | {
            "layer_types": [LOCAL, FULL, FULL, LOCAL],
            "rope_parameters": gemma3_rope() | {LOCAL: {"rope_theta": 3e4}},
        },
        {
            "attention__sliding_window_pattern": [True, False, False, True],
            "rope__freq_base_swa": 3e4,
        },
    ),
    (
        "gemma3",
        GEMMA | {"layer_types": [FULL] * 4, "rope_parameters": gemma3_rope()},
        {"attention__sliding_window": None},
    ),
]


@pytest.mark.parametrize(("variant", "settings", "metadata"), CASES)
def test_file_equals_its_safetensors_form(tiny, save, convert, variant, settings, metadata):
    model = tiny(variant, **(TOKENS | settings))
    files = convert(model, **metadata)
    decoder = load_decoder(files)
    assert_equals_gguf(decoder, files.folder, Path(files.name))
    expected = load_decoder(save(model))
    # Something is quantised, so the natural dtype is bfloat16.
    assert decoder.config == dataclasses.replace(expected.config, dtype=torch.bfloat16)
    for name, parameter in expected.named_parameters():
        if "mlp.up" in name or "mlp.down" in name:  # quantised
            torch.testing.assert_close(decoder.get_parameter(name), parameter, atol=0.02, rtol=0)
        else:  # Gemma's norms were rounded when 1 was added.
            torch.testing.assert_close(decoder.get_parameter(name), parameter, atol=1e-7, rtol=0)


def test_heads_have_their_own_keys_unless_told_otherwise(tiny, save, convert):
    """Transformers reads such a file, but leaves Q and K interleaved."""
    model = tiny("llama2", **TOKENS)
    decoder = load_decoder(convert(model, attention__head_count_kv=None))
    expected = load_decoder(save(model))
    assert decoder.config.num_kv_heads == expected.config.num_kv_heads == 4
    for layer, other in zip(decoder.layers, expected.layers, strict=True):
        assert torch.equal(layer.attention.qkv.weight, other.attention.qkv.weight)


@pytest.mark.parametrize(("architecture", "num_layers"), [("gemma2", 46), ("gemma3", 62)])
def test_scale_of_the_27b_models(tiny, convert, architecture, num_layers):
    settings = {
        "num_hidden_layers": num_layers,
        "layer_types": None,
        "rope_parameters": None,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "head_dim": 8,
    }
    model = tiny(architecture, **(TOKENS | settings))
    assert load_config(convert(model)).attention_scale == (32 / 2) ** -0.5
    settings["num_hidden_layers"] = 2
    assert load_config(convert(tiny(architecture, **(TOKENS | settings)))).attention_scale == (
        8**-0.5
    )


def test_llama3_factors_make_llama3_frequencies(tiny, save, convert):
    model = tiny("llama3", head_dim=64, **TOKENS)
    factors = llama3_factors(model.config)
    assert len(set(factors)) > 3  # unscaled, in between and scaled
    files = convert(model, tensors={"rope_freqs.weight": factors})
    expected = load_config(resolve_model(save(model))).layers[0].rotary
    for length in (None, 10, 100_000):
        config = load_config(files, length)
        rotary = config.layers[0].rotary
        np.testing.assert_allclose(rotary.inv_freq, expected.inv_freq, rtol=1e-6)
        assert rotary.attention_scaling == expected.attention_scaling == 1.0
        assert config.is_exact_at(1) and config.is_exact_at(10**6)
    assert_equals_gguf(load_decoder(files), files.folder, Path(files.name))


@pytest.mark.parametrize(("variant", "bos"), [("llama2", []), ("qwen3", []), ("gemma3", [1])])
def test_tokenizers(tiny, convert, variant, bos):
    files = convert(tiny(variant, **SMALL))
    tokenizer = load_tokenizer(files.folder, files.name)
    oracle = AutoTokenizer.from_pretrained(Path(files.name).parent, gguf_file=Path(files.name).name)
    for text in ("hello", "a b", "  he\n"):
        # Not every release of transformers knows which files ask for a BOS.
        assert tokenizer.encode(text) == bos + oracle.encode(text, add_special_tokens=False)
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


def test_ends_of_turns_end_a_sequence(tiny, convert):
    ends = {"tokenizer__ggml__eot_token_id": 5, "tokenizer__ggml__eom_token_id": 2}
    assert load_config(convert(tiny("llama2", **TOKENS), **ends)).eos_token_ids == (2, 5)


FACTORS = {"rope_freqs.weight": np.ones(8, dtype=np.float32)}


@pytest.mark.parametrize(
    ("variant", "content", "parts"),
    [
        ("llama2", {"rope__scaling__type": "longrope"}, ["rope.scaling.type='longrope'"]),
        (
            "gemma3",
            {"rope__scaling__type": "yarn", "rope__scaling__factor": 2.0},
            ["gemma3.rope.scaling.type='yarn'", "safetensors folder"],
        ),
        (
            "llama2",
            {"tensors": FACTORS, "rope__scaling__factor": 2.0},
            ["'linear' together with rope_freqs.weight"],
        ),
        ("qwen3", {"tensors": FACTORS}, ["rope_freqs.weight"]),
        ("llama2", {"rope__scaling__yarn_attn_factor": 1.5}, ["rope.scaling.yarn_attn_factor"]),
        ("llama2", {"attention__sliding_window": 9}, ["llama.attention.sliding_window", "not und"]),
        ("llama2", {"expert_count": 8}, ["llama.expert_count", "not understood"]),
        ("qwen3", {"pooling_type": 3}, ["qwen3.pooling_type", "not understood"]),
        ("llama2", {"rope__dimension_count": 8}, ["rope.dimension_count=8", "size of keys, 16"]),
        ("llama2", {"attention__value_length": 8}, ["attention.value_length=8"]),
        ("llama2", {"block_count": None}, ["it lacks llama.block_count"]),
        ("llama2", {"attention__head_count_kv": [2, 4, 2]}, ["num_key_value_heads"]),
        ("llama2", {"split__count": 3}, ["one of several", "llama-gguf-split --merge"]),
        ("llama2", {"tensors": {"blk.0.attn_q.bias": FACTORS["rope_freqs.weight"]}}, ["attn_q.b"]),
    ],
)
def test_what_cannot_be_represented_is_refused(tiny, convert, tmp_path, variant, content, parts):
    with pytest.raises(ValueError) as error:
        convert(tiny(variant, **SMALL), **content)
    message = str(error.value)
    assert "\n" not in message
    for part in (str(tmp_path / "tiny.gguf"), *parts):
        assert part in message


def test_other_architectures_list_the_supported_ones(tmp_path):
    path = tmp_path / "b.gguf"
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_tensor("t", np.ones(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    supported = "supported: gemma2, gemma3, llama, qwen2, qwen3"
    with pytest.raises(ValueError, match=rf"b\.gguf: .*'bert' is not supported; {supported}$"):
        resolve_model(path, cache_dir=tmp_path / "cache")
