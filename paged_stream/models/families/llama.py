"""Llama, SmolLM2 and others of the same architecture; the tensor names that many others share."""

from __future__ import annotations

from typing import Any

import numpy as np

from paged_stream.models.config import LayerConfig, ModelConfig
from paged_stream.models.family import Family, Source
from paged_stream.models.hf_config import rotary_config, standard_config


class Llama(Family):
    model_types = ("llama",)
    config_class = ("llama", "LlamaConfig")
    gguf_architecture: str | None = "llama"

    def describe(self, config: Any, length: int | None) -> ModelConfig:
        layer = LayerConfig(rotary=rotary_config(config, length))
        return standard_config(
            config,
            [layer] * config.num_hidden_layers,
            norm_eps=config.rms_norm_eps,
            qkv_bias=config.attention_bias,
            output_bias=config.attention_bias,
            mlp_bias=config.mlp_bias,
        )

    def sources(self, config: ModelConfig) -> dict[str, Source]:
        layer = "model.layers.{}"
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        return {
            "embedding": Source("model.embed_tokens"),
            "layers.{}.attention_norm": Source(f"{layer}.input_layernorm"),
            "layers.{}.attention.qkv": Source(
                f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj"
            ),
            "layers.{}.attention.query_norm": Source(f"{attention}.q_norm"),
            "layers.{}.attention.key_norm": Source(f"{attention}.k_norm"),
            "layers.{}.attention.output": Source(f"{attention}.o_proj"),
            "layers.{}.mlp_norm": Source(f"{layer}.post_attention_layernorm"),
            "layers.{}.mlp.up": Source(f"{mlp}.gate_proj", f"{mlp}.up_proj"),
            "layers.{}.mlp.down": Source(f"{mlp}.down_proj"),
            "norm": Source("model.norm"),
            "head": Source("lm_head"),
        }

    def from_gguf(self, config: ModelConfig, source: str, tensor: np.ndarray) -> np.ndarray:
        """llama.cpp rotates adjacent pairs, so its files hold Q and K rows interleaved."""
        heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}
        num_heads = heads.get(source.split(".")[-2])
        if num_heads is None:
            return tensor
        half = tensor.shape[0] // num_heads // 2
        pairs = tensor.reshape(num_heads, half, 2, *tensor.shape[1:])
        return pairs.swapaxes(1, 2).reshape(tensor.shape)
