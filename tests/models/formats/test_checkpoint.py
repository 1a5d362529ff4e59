"""Checkpoints in every format load into the same parameters; what is wrong with others is named."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from paged_stream.models.formats import checkpoint
from tests.models.checkpoints import assert_same, load_decoder


def edit_weights(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def pickled(folder, model, **options):
    """Turn a folder into one of before safetensors."""
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin", **options)


def pickled_shards(folder, model):
    pickled(folder, model)
    (folder / "pytorch_model.bin").unlink()
    state = list(model.state_dict().items())
    weight_map = {}
    for shard in range(3):
        name = f"pytorch_model-0000{shard + 1}-of-00003.bin"
        torch.save(dict(state[shard::3]), folder / name)
        weight_map |= {key: name for key, _ in state[shard::3]}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def assert_refused(folder, *parts):
    with pytest.raises(ValueError) as error:
        load_decoder(folder)
    message = str(error.value)
    assert "\n" not in message
    for part in (str(folder), *parts):
        assert part in message


def test_fused_slices_hold_their_sources(tiny_llama, save):
    model = tiny_llama()
    decoder = load_decoder(save(model))
    layer, source = decoder.layers[1], model.model.layers[1]
    qkv = [getattr(source.self_attn, f"{part}_proj").weight for part in "qkv"]
    assert torch.equal(layer.attention.qkv.weight, torch.cat(qkv))
    gate_up = torch.cat([source.mlp.gate_proj.weight, source.mlp.up_proj.weight])
    assert torch.equal(layer.mlp.up.weight, gate_up)
    assert torch.equal(decoder.head.weight, model.lm_head.weight)


@pytest.mark.parametrize("variant", ["llama3", "gemma3", "gpt2", "falcon_40b", "gptj", "phi3"])
def test_every_format_loads_alike(tiny, save, variant):
    model = tiny(variant)
    whole = load_decoder(save(model))
    shards = save(model, max_shard_size="50KB")
    assert len(list(shards.glob("*.safetensors"))) > 2
    assert_same(load_decoder(shards), whole)
    folder = save(model)
    for write in (
        pickled,
        lambda *parts: pickled(*parts, _use_new_zipfile_serialization=False),
        pickled_shards,
    ):
        write(folder, model)
        assert_same(load_decoder(folder), whole)


@pytest.mark.parametrize(
    "variant", ["qwen2", "gemma2", "gpt2", "opt", "mpt", "falcon_rw", "gpt_neox"]
)
def test_bare_models_have_no_prefix(tiny, save, variant):
    model = tiny(variant, tie_word_embeddings=True)
    bare = save(model.base_model)
    with_prefix = set(load_file(save(model) / "model.safetensors"))
    assert not with_prefix & set(load_file(bare / "model.safetensors"))
    assert_same(load_decoder(bare), load_decoder(save(model)))


def test_dtype_of_the_checkpoint_is_converted(tiny, save):
    model = tiny("llama2")
    whole = load_decoder(save(model.half()))
    for name, parameter in load_decoder(save(model.float())).named_parameters():
        assert torch.equal(whole.get_parameter(name), parameter)


@pytest.mark.parametrize(
    ("variant", "extra"),
    [
        ("llama2", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("qwen2", "lm_head.weight"),
        ("gpt2", "lm_head.weight"),
        ("gpt2", "transformer.h.0.attn.bias"),
        ("gpt2", "h.1.attn.masked_bias"),
        ("gptj", "transformer.h.0.attn.bias"),
        ("gptj", "transformer.h.2.attn.masked_bias"),
        ("gpt_neox", "gpt_neox.layers.0.attention.bias"),
        ("gpt_neox", "gpt_neox.layers.0.attention.masked_bias"),
        ("gpt_neox", "gpt_neox.layers.0.attention.rotary_emb.inv_freq"),
        ("opt", "lm_head.weight"),
        ("falcon_40b", "lm_head.weight"),
    ],
)
def test_harmless_extra_tensors_are_ignored(tiny, save, variant, extra):
    folder = save(tiny(variant))
    whole = load_decoder(folder)
    tensor = whole.embedding.weight.clone() if extra == "lm_head.weight" else torch.ones(3, 5)
    edit_weights(folder, lambda tensors: tensors.update({extra: tensor}))
    assert_same(load_decoder(folder), whole)


def test_another_file_of_weights_in_the_folder(tiny_llama, save):
    """It is not what the folder loads, so it is refused, not passed over."""
    folder = save(tiny_llama())
    shutil.copy(folder / "model.safetensors", folder / "ema.safetensors")
    assert_same(load_decoder(folder / "model.safetensors"), load_decoder(folder))
    with pytest.raises(
        ValueError, match="ema.safetensors.* are model.safetensors; pass the folder"
    ):
        load_decoder(folder / "ema.safetensors")


@pytest.mark.parametrize("variant", ["qwen2", "gpt2", "falcon_40b"])
def test_a_head_that_should_be_tied_and_is_not(tiny, save, variant):
    folder = save(tiny(variant))
    head = load_decoder(folder).embedding.weight.clone()
    head[5, 7] += 1
    edit_weights(folder, lambda tensors: tensors.update({"lm_head.weight": head}))
    with pytest.raises(ValueError, match="lm_head.weight is not the embedding, though config.json"):
        load_decoder(folder)


def test_gpt_neox_head_of_two_names(tiny, save):
    folder = save(tiny("gpt_neox"))
    whole = load_decoder(folder)
    stored = load_file(folder / "model.safetensors")
    names = {"embed_out.weight", "lm_head.weight"}
    (name,) = names & stored.keys()
    (other,) = names - {name}
    edit_weights(folder, lambda tensors: tensors.update({other: tensors.pop(name)}))
    assert_same(load_decoder(folder), whole)


def test_every_wrong_tensor_is_named_at_once(tiny_llama, save):
    folder = save(tiny_llama())

    def spoil(tensors):
        del tensors["model.layers.0.mlp.up_proj.weight"], tensors["lm_head.weight"]
        tensors["model.layers.9.mlp.up_proj.weight"] = torch.ones(2)
        tensors["model.norm.weight"] = torch.ones(31)
        tensors["model.layers.1.input_layernorm.weight"] = torch.ones(32, dtype=torch.int8)

    edit_weights(folder, spoil)
    assert_refused(
        folder,
        "missing lm_head.weight, model.layers.0.mlp.up_proj.weight",
        "unexpected model.layers.9.mlp.up_proj.weight",
        "model.norm.weight has shape [31], expected [32]",
        "model.layers.1.input_layernorm.weight has dtype I8",
    )


@pytest.mark.parametrize("shape", [(7, 3), (64,), ()])
@pytest.mark.parametrize(
    ("variant", "name", "expected"),
    [
        ("gpt2", "transformer.h.1.attn.c_attn.weight", "[192, 64] after transposed"),
        ("gpt2", "transformer.h.0.mlp.c_fc.bias", "[256] after transposed"),
        (
            "falcon_40b",
            "transformer.h.2.self_attention.query_key_value.weight",
            "[128, 64] after grouped_qkv",
        ),
        (
            "gpt_neox",
            "gpt_neox.layers.0.attention.query_key_value.bias",
            "[192] after grouped_qkv",
        ),
        (
            "opt",
            "model.decoder.embed_positions.weight",
            "[512, 64] after without_padding",
        ),
        ("gemma3", "model.layers.0.self_attn.q_norm.weight", "[16] after plus_one"),
    ],
)
def test_wrong_shapes_of_what_is_transformed(tiny, save, variant, name, expected, shape):
    folder = save(tiny(variant))
    other = "model.norm.weight" if variant == "gemma3" else None

    def spoil(tensors):
        assert name in tensors
        tensors[name] = torch.ones(shape)
        if other:
            tensors[other] = torch.ones(3)

    edit_weights(folder, spoil)
    also = [f"{other} has shape [3], expected [48]"] if other else []
    assert_refused(folder, f"{name} has shape {list(shape)}, expected {expected}", *also)


@pytest.mark.parametrize("size", [0, 5, 1000, 20000])
def test_truncated_safetensors(tiny_llama, save, size):
    folder = save(tiny_llama())
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert_refused(folder, str(path), "truncated", "fetch the file again")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("fraction", [0.0, 0.0001, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_truncated_pickles(tiny_llama, save, fraction, zipped):
    model = tiny_llama()
    folder = save(model)
    pickled(folder, model, _use_new_zipfile_serialization=zipped)
    path = folder / "pytorch_model.bin"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    assert_refused(folder, str(path), "truncated", "fetch the file again")


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_not_executed(tiny_llama, save, tmp_path, zipped):
    model, payload = tiny_llama(), Payload(tmp_path / "executed")
    folder = save(model)
    pickled(folder, model)
    path = folder / "pytorch_model.bin"
    torch.save(
        model.state_dict() | {"model.extra": payload}, path, _use_new_zipfile_serialization=zipped
    )
    assert_refused(folder, str(path), "more than tensors")
    path.write_bytes(pickle.dumps(payload, protocol=2))
    assert_refused(folder, str(path), "more than tensors")
    assert not payload.path.exists()
    torch.save({"state_dict": {}, "epoch": 3}, path)
    assert_refused(folder, str(path), "holds no dictionary of tensors")
    torch.save([torch.ones(2)], path)
    assert_refused(folder, str(path), "holds no dictionary of tensors")


def test_missing_weights(tiny_llama, save):
    folder = save(tiny_llama(), max_shard_size="20KB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    assert_refused(folder, shard.name, "fetch the missing files")
    index = folder / "model.safetensors.index.json"
    index.write_text("{}")
    assert_refused(folder, "has no weight_map")
    index.unlink()
    assert_refused(folder, "neither of model.safetensors,", "converted to safetensors")


@pytest.mark.parametrize(
    "value", [5, None, ["a"], {"a": 1}, "", "x\0.safetensors", "model.bin", "\x1b[31m" * 900]
)
def test_an_index_names_files(tiny_llama, save, value):
    folder = save(tiny_llama(), max_shard_size="20KB")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = value
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError) as error:
        load_decoder(folder)
    message = str(error.value)
    assert f"{path}: weight_map must name files of the kind .safetensors, got " in message
    assert message.isprintable() and len(message) < len(str(path)) + 300


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensor: tensor.to_sparse(), "is sparse or quantized"),
        (lambda tensor: tensor.to_sparse_csr(), "is sparse or quantized"),
        (lambda tensor: tensor.to("meta"), "has no numbers"),
        (lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8), "is sparse or"),
    ],
)
def test_tensors_that_are_not_plain(tiny_llama, save, monkeypatch, change, reason, zipped):
    model, name = tiny_llama(), "model.layers.0.mlp.up_proj.weight"
    folder = save(model)
    pickled(folder, model)
    state = dict(model.state_dict())
    state[name] = change(state[name])
    path = folder / "pytorch_model.bin"
    with monkeypatch.context() as patch:
        # What is pickled by its name is looked for in every module, and some that transformers
        # loads on demand want packages that are not here.
        for module in [each for each in sys.modules if each.startswith("transformers")]:
            patch.delitem(sys.modules, module)
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
    assert_refused(folder, f"{path}: tensor {name} {reason}")
    torch.save({7: torch.ones(2)}, path, _use_new_zipfile_serialization=zipped)
    assert_refused(folder, f"{path} has the name 7, which is no text")


def test_an_index_does_not_lead_outside_its_folder(tiny_llama, save, tmp_path):
    folder = save(tiny_llama(), max_shard_size="20KB")
    index = folder / "model.safetensors.index.json"
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.rename(tmp_path / shard.name)
    index.write_text(index.read_text().replace(shard.name, f"../{shard.name}"))
    assert (folder / ".." / shard.name).exists()
    assert_refused(folder, shard.name, "fetch the missing files")


def test_progress_is_for_those_who_want_to_know(tiny_llama, save, capsys, caplog, monkeypatch):
    monkeypatch.setattr(checkpoint, "DELAY_SECONDS", 0)
    folder = save(tiny_llama())
    capsys.readouterr()
    load_decoder(folder)
    assert capsys.readouterr().err == ""
    caplog.set_level(logging.INFO, logger="paged_stream.models")
    load_decoder(folder)
    assert "loading: 100%" in capsys.readouterr().err
