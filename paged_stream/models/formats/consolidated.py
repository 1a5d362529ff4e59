"""``consolidated.safetensors`` with ``params.json``, as Mistral releases models: the same tensors
under other names, and rows of Q and K in the order of pairs that are rotated together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from paged_stream.models.formats.files import PARAMS_FILE, ModelFiles
from paged_stream.models.formats.shards import SafetensorsShard
from paged_stream.models.model_config import ModelConfig
from paged_stream.system.short_text import some

# What params.json says, by the names of config.json.
_FIELDS = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "hidden_dim": "intermediate_size",
    "n_heads": "num_attention_heads",
    "norm_eps": "rms_norm_eps",
    "vocab_size": "vocab_size",
}
_OPTIONAL = {
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "max_seq_len": "max_position_embeddings",
    "max_position_embeddings": "max_position_embeddings",
    "sliding_window": "sliding_window",
    "tied_embeddings": "tie_word_embeddings",
}
# Other fields that change nothing as long as they have this value.
_HARMLESS = {"causal": True, "use_biases": False, "model_type": "transformer", "model_parallel": 1}
_LENGTH = 32768  # of the models whose files say nothing
_MODULES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_OUTER = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}


def read_fields(files: ModelFiles) -> tuple[Path, dict[str, Any]]:
    """The fields of config.json, or of params.json where there is no other, and the file's path.

    Raises:
        ValueError: it is damaged, or params.json has something that is not understood.
    """
    path = files.folder / "config.json"
    if path.is_file() or not (files.folder / PARAMS_FILE).is_file():
        return path, files.read_json("config.json")
    path = files.folder / PARAMS_FILE
    try:
        return path, config_fields(files.read_json(PARAMS_FILE))
    except ValueError as error:
        raise ValueError(f"{'' if str(path) in str(error) else f'{path}: '}{error}") from None


def config_fields(params: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json would say.

    Raises:
        ValueError: names fields that are missing or not understood.
    """
    if missing := sorted(_FIELDS.keys() - params.keys()):
        raise ValueError(f"it lacks {', '.join(missing)}")
    names = _FIELDS | _OPTIONAL
    fields = {names[key]: value for key, value in params.items() if key in names}
    others = {key: value for key, value in params.items() if key not in {*names, "rope_theta"}}
    unknown = [key for key, value in others.items() if value and value != _HARMLESS.get(key)]
    if unknown:
        raise ValueError(f"{some(unknown)} not understood; pass the folder with config.json")
    return {
        "model_type": "mistral",
        "max_position_embeddings": _LENGTH,
        "num_key_value_heads": params["n_heads"],
        "sliding_window": None,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": params.get("rope_theta", 1e4)},
        "dtype": "bfloat16",
        **fields,
    }


class ConsolidatedShard(SafetensorsShard):
    """A file whose tensors have the names of config.json's folder here.

    Args:
        config: of the model.

    Raises:
        ValueError: two tensors have the same name here, or it is no such file.
    """

    def __init__(self, path: Path, stack: ExitStack, config: ModelConfig) -> None:
        super().__init__(path, stack)
        self._heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}
        self._stored = {usual_name(name): name for name in self.names}
        if len(self._stored) < len(self.names):
            raise ValueError(f"{path} has tensors under two names; fetch the file again")
        self.names = list(self._stored)

    def describe(self, name: str) -> tuple[list[int], str]:
        return super().describe(self._stored[name])

    def read(self, name: str) -> torch.Tensor:
        tensor = super().read(self._stored[name])
        num_heads = self._heads.get(name.split(".")[-2])
        if num_heads is None or self._stored[name] == name:
            return tensor
        pairs = tensor.unflatten(0, (num_heads, -1, 2))
        return pairs.transpose(1, 2).flatten(0, 2)


def usual_name(name: str) -> str:
    """``layers.3.attention.wq.weight`` is ``model.layers.3.self_attn.q_proj.weight``."""
    module, _, kind = name.rpartition(".")
    if module in _OUTER:
        return f"{_OUTER[module]}.{kind}"
    layer = re.fullmatch(r"layers\.(\d+)\.(.+)", module)
    if layer is None or layer[2] not in _MODULES:
        return name
    return f"model.layers.{layer[1]}.{_MODULES[layer[2]]}.{kind}"
