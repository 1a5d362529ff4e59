"""An adapter that is merged gives what PEFT computes: for every module that it changes,
``W x + scaling * B (A x)``."""

from __future__ import annotations

import pytest
import torch

from paged_stream import LLM
from paged_stream.attention.native import NativeBackend
from paged_stream.models.fingerprint import fingerprint, sample_weights
from paged_stream.models.formats.resolve import resolve_model
from paged_stream.models.loader import load_config, load_model
from paged_stream.models.sharding import WHOLE
from tests.family_reference import VARIANTS
from tests.lora_adapter import Adapter
from tests.models.checkpoints import load_decoder
from tests.models.gguf_files import write_gguf

ONE_PER_FAMILY = {settings["model_type"]: name for name, settings in VARIANTS.items()}
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 2}
IDS = [5, 17, 80, 3, 44, 9, 61, 12]


@pytest.mark.parametrize("config", [{}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 9.5}}])
def test_likelihoods_are_those_of_the_model_with_the_adapter(tiny_llama, save, tmp_path, config):
    model = tiny_llama(head_dim=8)
    folder, adapter = save(model), Adapter(model, **config)
    settings = {"dtype": "float32", "window_size": 24, "kv_cache_memory_bytes": 4_000_000}
    llm = LLM(folder, merge_lora=adapter.save(tmp_path / "adapter"), **settings)
    bare = model(torch.tensor([IDS])).logits
    adapter.apply()
    logits = model(torch.tensor([IDS])).logits
    assert (logits - bare).abs().max() > 0.5
    expected = logits.log_softmax(-1)[0, :-1].gather(1, torch.tensor(IDS[1:])[:, None])[:, 0]
    assert (torch.tensor(llm.score(IDS)[1:]) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("family", ONE_PER_FAMILY)
def test_matrices_of_every_family(family, tiny, save, tmp_path):
    model = tiny(ONE_PER_FAMILY[family])
    folder, adapter = save(model), Adapter(model)
    merged = load_decoder(resolve_model(folder, merge_lora=adapter.save(tmp_path / "adapter")))
    adapter.merge()
    for name, expected in load_decoder(save(model)).named_parameters():
        difference = (merged.get_parameter(name) - expected).abs().max()
        assert difference <= 1e-6 * expected.abs().max(), name


def test_what_is_not_changed_stays_in_its_blocks(tiny_llama, tmp_path):
    """And what is changed is the file's numbers with the adapter's added."""
    model = tiny_llama(**SHAPE)
    path = write_gguf(model, tmp_path / "tiny.gguf")
    adapter = Adapter(model, chosen="layers.0.mlp.up_proj")
    files = resolve_model(path, merge_lora=adapter.save(tmp_path / "adapter"))
    dtype, backend = torch.float32, NativeBackend()
    merged = load_model(files, load_config(files), dtype, "cpu", backend, "auto")
    changed, plain = merged.layers[0].mlp.up, load_decoder(path)
    formats = [
        [linear.block_formats for linear in (each.mlp.up, each.mlp.down)] for each in merged.layers
    ]
    assert formats == [[[], ["Q8_0"]], [["Q8_0"], ["Q8_0"]]]
    expected = plain.layers[0].mlp.up.weight.double()
    (name,) = adapter.pairs
    expected[SHAPE["intermediate_size"] :] += adapter.delta(name)  # behind the gate's rows
    assert torch.allclose(changed.weight.double(), expected, atol=1e-6)


def test_no_stream_of_one_goes_on_in_the_other(tiny_llama, save, tmp_path):
    model = tiny_llama()
    folder = save(model)
    adapter = Adapter(model, chosen="layers.1.self_attn.v_proj").save(tmp_path / "adapter")
    decoders = [load_decoder(resolve_model(folder, merge_lora=each)) for each in (None, adapter)]
    prints = [fingerprint([sample_weights(each, each.config, WHOLE)]) for each in decoders]
    assert prints[0] != prints[1]


def test_an_adapter_beside_the_weights_is_not_ignored_silently(tiny_llama, save, caplog):
    model = tiny_llama()
    folder = Adapter(model).save(save(model))
    load_decoder(folder)
    assert f"merge_lora='{folder}' merges it into them" in caplog.text
    caplog.clear()
    load_decoder(resolve_model(folder, merge_lora=folder))
    assert not caplog.text


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("config", "tensors", "told"),
    [
        ({"peft_type": "IA3"}, {}, "peft_type must be LORA, got IA3"),
        ({"use_dora": True, "bias": "all"}, {}, "adapters with use_dora, bias are not supported"),
        ({"init_lora_weights": "pissa"}, {}, "with init_lora_weights=pissa are not supported"),
        ({"lora_alpha": "much"}, {}, "lora_alpha and alpha_pattern must be numbers"),
        ({"alpha_pattern": {"(": 1}}, {}, "lora_alpha and alpha_pattern must be numbers"),
        ({}, {"base_model.model.x.lora_magnitude_vector": (2,)}, "got base_model.model.x.lora_mag"),
        ({}, {f"{Q}.lora_A.weight": None}, "q_proj do not fit each other"),
        ({}, {f"{Q}.lora_B.weight": (32, 3)}, "q_proj do not fit each other"),
        (
            {},
            {f"{Q}.lora_B.weight": (31, 4)},
            r"adds \[31, 32\] to .*layers.0.self_attn.q_proj.weight, which has shape \[32, 32\]",
        ),
        (
            {},
            {f"{Q}s.lora_A.weight": (4, 32), f"{Q}s.lora_B.weight": (32, 4)},
            "changes what the model lacks: model.layers.0.self_attn.q_projs.weight",
        ),
    ],
)
def test_what_is_no_adapter_of_the_model(tiny_llama, save, tmp_path, config, tensors, told):
    model = tiny_llama()
    made = {name: shape and torch.ones(shape) for name, shape in tensors.items()}
    adapter = Adapter(model, chosen="layers.0.self_attn.q_proj", **config)
    files = resolve_model(save(model), merge_lora=adapter.save(tmp_path / "adapter", **made))
    with pytest.raises(ValueError, match=told):
        load_decoder(files)


def test_a_folder_without_an_adapter(tiny_llama, save, tmp_path):
    folder = save(tiny_llama())
    with pytest.raises(ValueError, match="merge_lora=.* must be the folder of a LoRA adapter"):
        resolve_model(folder, merge_lora=folder)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="it holds an adapter: pass its model, and the folder as"):
        resolve_model(folder)
