"""Whole models in every kind of file, for the fuzzer to alter."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.models.conftest import TINY, byte_level_tokenizer
from tests.models.gguf_files import write_gguf

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 2}


def write_originals(root: Path) -> dict[str, Path]:
    """A folder, or a file, of the same model by its kind."""
    torch.manual_seed(0)
    settings = TINY | SHAPE
    model = LlamaForCausalLM(LlamaConfig(**settings)).eval()  # type: ignore[arg-type]
    kinds = {
        kind: root / kind for kind in ("safetensors", "shards", "bin", "old_bin", "bin_shards")
    }
    for kind, folder in kinds.items():
        model.save_pretrained(folder, max_shard_size="50KB" if kind == "shards" else "5GB")
        byte_level_tokenizer().save_pretrained(folder)
        if kind in ("bin", "old_bin", "bin_shards"):
            (folder / "model.safetensors").unlink()
    state = model.state_dict()
    torch.save(state, kinds["bin"] / "pytorch_model.bin")
    torch.save(state, kinds["old_bin"] / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    names = {name: f"pytorch_model-{index % 2}.bin" for index, name in enumerate(state)}
    for shard in set(names.values()):
        part = {name: tensor for name, tensor in state.items() if names[name] == shard}
        torch.save(part, kinds["bin_shards"] / shard)
    index = kinds["bin_shards"] / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    kinds["gguf"] = write_gguf(model, root / "model.gguf")
    return kinds
