"""Weights as people download them: variants, padded vocabularies, tied heads under any name,
Mistral's own files."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.checkpoints import assert_same, load_decoder

NAMES = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "tok_embeddings",
    "model.": "",
    "lm_head": "output",
}


def edit_weights(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def assert_refused(folder, *parts):
    with pytest.raises(ValueError) as error:
        load_decoder(folder)
    for part in (str(folder), *parts):
        assert part in str(error.value)


def more_rows(count, *names):
    def edit(tensors):
        for name in names:
            rows = torch.full((count, tensors[name].shape[1]), 7.0)
            tensors[name] = torch.cat([tensors[name], rows])

    return edit


def test_rows_behind_the_vocabulary_are_left_out(tiny_llama, save):
    folder = save(tiny_llama())
    whole = load_decoder(folder)
    edit_weights(folder, more_rows(20, "model.embed_tokens.weight", "lm_head.weight"))
    assert_same(load_decoder(folder), whole)
    edit_weights(folder, more_rows(1100, "lm_head.weight"))
    assert_refused(folder, "lm_head.weight has shape [1420, 32], expected [300, 32]")
    edit_weights(folder, lambda tensors: tensors.update({"lm_head.weight": torch.ones(299, 32)}))
    assert_refused(folder, "lm_head.weight has shape [299, 32], expected [300, 32]")


@pytest.mark.parametrize("variant", ["llama2", "qwen2", "gpt2", "gpt_neox", "opt", "mpt"])
@pytest.mark.parametrize("names", ["embedding", "head", "both"])
def test_a_tied_head_under_either_name(tiny, save, variant, names):
    folder = save(tiny(variant, tie_word_embeddings=True))
    whole = load_decoder(folder)
    (stored,) = (n for n in load_file(folder / "model.safetensors") if is_embedding(n))

    def rename(tensors):
        table = tensors[stored] if names == "both" else tensors.pop(stored)
        head = "embed_out.weight" if variant == "gpt_neox" else "lm_head.weight"
        tensors[stored if names == "embedding" else head] = table.clone()

    edit_weights(folder, rename)
    assert_same(load_decoder(folder), whole)


def is_embedding(name):
    tables = ("embed_tokens.weight", "wte.weight", "embed_in.weight")
    return name.endswith(tables) and "embed_positions" not in name


def test_a_head_alone_is_no_embedding_of_a_model_that_has_two(tiny_llama, save):
    folder = save(tiny_llama())
    edit_weights(folder, lambda tensors: tensors.pop("model.embed_tokens.weight"))
    assert_refused(folder, "missing model.embed_tokens.weight")


def test_a_variant_stands_in_for_the_weights(tiny_llama, save):
    folder = save(tiny_llama())
    whole = load_decoder(folder)
    variant = folder / "model.fp16.safetensors"
    (folder / "model.safetensors").rename(variant)
    assert_same(load_decoder(folder), whole)
    assert_same(load_decoder(variant), whole)
    other = folder / "model.bf16.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(variant).items()}, other)
    assert_refused(folder, "model.bf16.safetensors, model.fp16.safetensors; pass the path of")
    assert_same(load_decoder(variant), whole)
    assert not torch.equal(load_decoder(other).head.weight, whole.head.weight)


def test_the_weights_without_a_variant_come_first(tiny_llama, save):
    folder = save(tiny_llama())
    whole = load_decoder(folder)
    tensors = {k: v + 1 for k, v in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.fp16.safetensors")
    save_file(tensors, folder / "consolidated.safetensors")
    assert_same(load_decoder(folder), whole)
    changed = load_decoder(folder / "model.fp16.safetensors").head.weight
    assert torch.equal(changed, whole.head.weight + 1)


def test_a_variant_in_several_files(tiny_llama, save):
    model = tiny_llama()
    whole = load_decoder(save(model))
    folder = save(model, max_shard_size="50KB", variant="fp16")
    assert len(list(folder.glob("model.fp16-*.safetensors"))) > 2
    assert (folder / "model.safetensors.index.fp16.json").is_file()
    assert_same(load_decoder(folder), whole)


def consolidated(folder, model, **changes):
    """Write what Mistral releases: its names, pairs that rotate together side by side."""
    config, tensors = model.config, {}
    for name, tensor in model.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        if count := heads.get(name.split(".")[-2]):
            halves = tensor.reshape(count, 2, -1, tensor.shape[1])
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
        for usual, short in NAMES.items():
            name = name.replace(usual, short)
        if not (name == "output.weight" and config.tie_word_embeddings):
            tensors[name] = tensor.contiguous()
    for path in folder.glob("model*.safetensors"):
        path.unlink()
    save_file(tensors, folder / "consolidated.safetensors")
    params = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "head_dim": config.head_dim,
        "hidden_dim": config.intermediate_size,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "norm_eps": config.rms_norm_eps,
        "vocab_size": config.vocab_size,
        "rope_theta": config.rope_parameters["rope_theta"],
        "tied_embeddings": config.tie_word_embeddings,
    }
    (folder / "params.json").write_text(json.dumps(params | changes))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("sliding_window", [None, 9])
def test_mistrals_own_files(tiny, save, tied, sliding_window):
    model = tiny(
        "mistral",
        tie_word_embeddings=tied,
        sliding_window=sliding_window,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        eos_token_id=2,
    )
    folder = save(model)
    edit_config(folder, dtype="bfloat16")  # which params.json does not say
    whole = load_decoder(folder)
    consolidated(folder, model, sliding_window=sliding_window, max_seq_len=4096)
    assert_same(load_decoder(folder), whole)
    (folder / "config.json").unlink()
    assert_same(load_decoder(folder), whole)
    assert_same(load_decoder(folder / "consolidated.safetensors"), whole)


def test_params_that_are_not_understood(tiny, save):
    model = tiny("mistral")
    folder = save(model)
    consolidated(folder, model, moe={"num_experts": 8}, yarn={}, causal=True, use_biases=True)
    (folder / "config.json").unlink()
    assert_refused(folder, "params.json: moe, use_biases not understood; pass the folder with")
    (folder / "params.json").write_text(json.dumps({"dim": 64, "n_layers": 2}))
    assert_refused(folder, "params.json: it lacks hidden_dim, n_heads, norm_eps, vocab_size")
    (folder / "params.json").write_text("[]")
    assert_refused(folder, "params.json holds no JSON object")
