"""What a config.json describes, and what each one that cannot be served says."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from transformers import AutoConfig

from paged_stream.models.formats.resolve import resolve_model
from paged_stream.models.hf_config import read_config
from paged_stream.models.loader import load_config
from paged_stream.models.registry import all_families, family_of
from tests.family_reference import VARIANTS
from tests.models.checkpoints import load_decoder


def edit_json(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.fixture
def folder_of(tmp_path):
    """A folder with nothing but the config.json of a variant, some fields changed."""

    def write(variant, **fields):
        AutoConfig.for_model(**copy.deepcopy(VARIANTS[variant])).save_pretrained(tmp_path)
        edit_json(tmp_path / "config.json", **fields)
        return tmp_path

    return write


def assert_refused(folder, *parts):
    with pytest.raises(ValueError) as error:
        load_config(resolve_model(folder))
    message = str(error.value)
    assert "\n" not in message
    for part in (str(folder / "config.json"), *parts):
        assert part in message


def test_config_describes_the_checkpoint(tiny_llama, save):
    folder = save(tiny_llama(attention_bias=True, tie_word_embeddings=True).to(torch.bfloat16))
    config = load_config(resolve_model(folder))
    assert (config.num_layers, config.num_heads, config.num_kv_heads) == (2, 4, 2)
    assert (config.qkv_bias, config.output_bias, config.mlp_bias) == (True, True, False)
    assert (config.dtype, config.eos_token_ids) == (torch.bfloat16, (2,))
    assert config.kv_bytes_per_token(torch.bfloat16) == 2 * 2 * 2 * 8 * 2
    assert config.kv_bytes_per_token(torch.int8) == 2 * 2 * 2 * (8 + 4)


@pytest.mark.parametrize(
    ("family", "model_type"),
    [(family, model_type) for family in all_families() for model_type in family.model_types],
)
def test_what_is_left_out_is_as_transformers_has_it(tmp_path, family, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    expected = family.describe(AutoConfig.for_model(model_type), None)
    assert load_config(resolve_model(tmp_path)) == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_number_of_parameters(tiny, save, variant):
    """All but norms and biases, which are vectors."""
    decoder = load_decoder(save(tiny(variant)))
    matrices = sum(p.numel() for p in decoder.parameters() if p.dim() == 2)
    assert decoder.config.num_parameters == matrices


@pytest.mark.parametrize(
    ("variant", "windows"),
    [
        ("mistral", [9, 9, 9]),
        ("mistral_wide", [None] * 3),
        ("qwen2", [None] * 4),
        ("qwen2_sliding", [None, None, 9, 9]),
        ("gemma2", [9, None, 9, None]),
        ("gemma3", [9, None, 9, None]),
    ],
)
def test_windows_of_layers(folder_of, variant, windows):
    config = load_config(resolve_model(folder_of(variant)))
    assert [layer.local_window for layer in config.layers] == windows
    assert config.local_window == (9 if set(windows) == {9} else None)


def test_generation_config_names_more_end_tokens(folder_of):
    folder = folder_of("llama3", eos_token_id=3)
    assert load_config(resolve_model(folder)).eos_token_ids == (3,)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    assert load_config(resolve_model(folder)).eos_token_ids == (3, 2, 7)
    (folder / "generation_config.json").write_text("{}")
    assert load_config(resolve_model(folder)).eos_token_ids == (3,)


def test_unsupported_types_list_the_supported_ones(folder_of):
    supported = sorted(name for family in all_families() for name in family.model_types)
    assert len(supported) >= 15
    for model_type in ("mamba", ""):
        folder = folder_of("llama3", model_type=model_type)
        assert_refused(folder, f"model_type={model_type!r} is not", ", ".join(supported))


@pytest.mark.parametrize(
    ("variant", "fields", "parts"),
    [
        ("llama3", {"hidden_act": "tanh"}, ["activation 'tanh'", "silu, swish, gelu"]),
        ("llama3", {"dtype": "int8"}, ["dtype='int8'"]),
        ("llama3", {"rope_parameters": {"rope_type": "linear"}}, ["rope", "factor"]),
        ("llama3", {"eos_token_id": 97}, ["eos_token_id must be in [0, 97), got 97"]),
        ("mpt", {"d_model": 52}, ["head_dim must be an even number up to 256, got 13"]),
        ("llama3", {"head_dim": 264}, ["head_dim must be an even number up to 256, got 264"]),
        ("qwen3", {"head_dim": 20}, ["head_dim must be a multiple of 8 in a model that norm"]),
        ("llama3", {"num_key_value_heads": 3}, ["num_attention_heads (4)", "got 3"]),
        ("mistral", {"sliding_window": 0}, ["sliding_window must be >= 1, got 0"]),
        ("stablelm", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 2.0}},
         ["partial_rotary_factor must be a number in (0, 1], got 2.0"]),
        # What transformers' own classes refuse.
        ("llama3", {"vocab_size": "many"}, ["vocab_size", "got many"]),
        ("gpt_neox", {"num_attention_heads": 5}, ["not divisible by the number of attention"]),
        ("qwen3", {"num_hidden_layers": None}, ["num_hidden_layers"]),
        ("gemma2", {"layer_types": ["full_attention", "odd", "odd", "odd"]}, ["odd"]),
        ("gemma3", {"layer_types": ["full_attention"]}, ["layer"]),
        # What the kernels or the decoder have nothing for.
        ("qwen3", {"layer_types": ["chunked_attention"] * 3}, ["layer_types must be 3 of"]),
        ("smollm3", {"no_rope_layers": [1, 0]}, ["no_rope_layers must have 4 entries"]),
        ("mpt", {"attn_config": {"alibi": False}}, ["alibi=False"]),
        ("mpt", {"attn_config": {"qk_ln": True}}, ["qk_ln=True"]),
        ("mpt", {"attn_config": {"attn_type": "multiquery_attention"}}, ["attn_type="]),
        ("mpt", {"expansion_ratio": 2}, ["expansion_ratio=2"]),
        ("mpt", {"no_bias": False}, ["no_bias=False"]),
        ("opt", {"do_layer_norm_before": False}, ["do_layer_norm_before=False"]),
        ("opt", {"word_embed_proj_dim": 32}, ["word_embed_proj_dim=32"]),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True},
         ["scale_attn_by_inverse_layer_idx=True is not supported, only False"]),
        ("gemma2", {"use_bidirectional_attention": True}, ["use_bidirectional_attention=True"]),
        ("gemma3", {"use_bidirectional_attention": True}, ["use_bidirectional_attention=True"]),
        ("gemma3", {"attn_logit_softcapping": 50.0}, ["attn_logit_softcapping=50.0"]),
    ],
)  # fmt: skip
def test_unsupported_configs(folder_of, variant, fields, parts):
    assert_refused(folder_of(variant, **fields), *parts)


def test_broken_configs(folder_of):
    folder = folder_of("llama3")
    path = folder / "config.json"
    for content, part in (
        ('{"model_type"', "not valid JSON"),
        ("[]", "holds no JSON object"),
        ('"\xff', "not valid JSON"),
    ):
        path.write_text(content, encoding="latin-1")
        assert_refused(folder, part, "fetch the file again")
    path.write_text('{"model_type": "llama", "rope_scaling": {"rope_type": "yarn"}}')
    assert_refused(folder, "rope")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 512},
        {"head_dim": 64, "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"torch_dtype": "float16", "tie_word_embeddings": True, "eos_token_id": [2, 5]},
        {"attention_bias": True, "mlp_bias": True, "head_dim": None, "dtype": "bfloat16"},
    ],
)
def test_llama_is_read_as_transformers_reads_it(fields):
    family = family_of("llama")
    oracle = read_config(*family.config_class, {"model_type": "llama"} | fields)
    actual = family.read_config({"model_type": "llama"} | fields)
    assert family.describe(actual, None) == family.describe(oracle, None)


ODD = "x" * 5000 + "\x1b[31m"


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"hidden_size": 2**40}, "hidden_size must be an integer in [1, 4194304], got 10995"),
        ({"num_hidden_layers": 2**40}, "num_hidden_layers must be an integer in [1, 4096]"),
        ({"num_labels": 2**40}, "num_labels must be an integer in [1, 16384]"),
        ({"intermediate_size": 1.5}, "intermediate_size must be an integer in [1, 4194304], got"),
        ({"vocab_size": True}, "vocab_size must be an integer in [1, 67108864], got True"),
        ({"num_key_value_heads": -1}, "num_key_value_heads must be an integer in [1, 16384]"),
        ({"eos_token_id": 1.5}, "eos_token_id must be an integer or a list of integers, got 1.5"),
        ({"eos_token_id": [1, None]}, "eos_token_id must be an integer or a list of integers"),
        ({"eos_token_id": {"a": 1}}, "eos_token_id must be an integer or a list of integers"),
        ({"eos_token_id": -1}, "eos_token_id must be in [0, 97), got -1"),
        ({"bos_token_id": "<s>"}, "bos_token_id must be an integer or a list of integers, got <s>"),
        ({"partial_rotary_factor": 2**63}, "partial_rotary_factor must be a number in (0, 1]"),
        ({"rope_scaling": {"factor": 10**400}}, "factor must be below 2^63 and finite, got an"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps must be below 2^63 and finite, got nan"),
        ({"rms_norm_eps": -1.0}, "norm_eps must be finite and above 0, got -1.0"),
        ({"rms_norm_eps": ODD}, "rms_norm_eps"),
        ({"model_type": ODD}, "model_type="),
        ({"model_type": [ODD]}, "model_type="),
        ({"hidden_act": ODD}, "activation"),
        ({"dtype": ODD}, "dtype"),
        ({"rope_parameters": {"rope_type": ODD, "rope_theta": 1.0}}, "rope"),
        ({"rope_parameters": {"rope_theta": 1e308, "rope_type": "default"}}, "rope"),
        ({"layer_types": ["x"] * 100_000}, "layer_types must have at most 65536 entries, got"),
    ],
)  # fmt: skip
def test_numbers_and_texts_that_no_model_has(folder_of, fields, part):
    """What is said is short and has no control characters, whatever stands in the file."""
    folder = folder_of("llama3", **fields)
    with pytest.raises(ValueError) as error:
        load_config(resolve_model(folder))
    message = str(error.value)
    assert message.startswith(f"{folder / 'config.json'}: ") and part in message
    assert message.isprintable() and len(message) < len(str(folder)) + 500


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not valid JSON (Exceeds the limit"),
        (b'{"a": "\xff"}', "is not valid JSON ('utf-8' codec can't decode"),
        (b"[]", "holds no JSON object"),
        (b'{"eos_token_id": [1, "\\u001b[31m"]}', "eos_token_id must be an integer or a list"),
        (b'{"eos_token_id": 97}', "eos_token_id"),
    ],
)
def test_files_that_are_no_configuration(folder_of, name, content, reason):
    folder = folder_of("llama3")
    if name == "config.json" and b"eos" in content:
        content = b'{"model_type": "llama", "vocab_size": 97, ' + content[1:]
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        load_config(resolve_model(folder))
    message = str(error.value)
    assert message.startswith(str(folder / name)) and reason in message
    assert message.isprintable() and len(message) < len(str(folder)) + 500


def test_a_size_that_no_file_has_is_refused_before_it_gets_memory(tiny_llama, save, monkeypatch):
    """384 GB, for weights of which the file has 100 KB."""
    folder = save(tiny_llama())
    edit_json(folder / "config.json", hidden_size=2**22, head_dim=8)
    with pytest.raises(ValueError, match="do not fit config.json: .*expected \\[4194304"):
        load_decoder(folder)
