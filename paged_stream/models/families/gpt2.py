"""GPT-2: learned absolute positions, so full attention up to the trained length only."""

from __future__ import annotations

from typing import Any

from paged_stream.models.family import Family, Source, transposed
from paged_stream.models.hf_config import refuse, standard_config
from paged_stream.models.model_config import LayerConfig, ModelConfig


class GPT2(Family):
    model_types = ("gpt2",)
    config_class = ("gpt2", "GPT2Config")
    prefix = "transformer."

    def describe(self, config: Any, length: int | None) -> ModelConfig:
        refuse(config, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
        return standard_config(
            config,
            [LayerConfig()] * config.num_hidden_layers,
            intermediate_size=config.n_inner or 4 * config.hidden_size,
            hidden_act=config.activation_function,
            norm="layer",
            norm_bias=True,
            norm_eps=config.layer_norm_epsilon,
            qkv_bias=True,
            output_bias=True,
            attention_scale=None if config.scale_attn_weights else 1.0,
            gated_mlp=False,
            mlp_bias=True,
            learned_positions=config.max_position_embeddings,
        )

    def sources(self, config: ModelConfig) -> dict[str, Source]:
        layer = "transformer.h.{}"
        return {
            "embedding": Source("transformer.wte"),
            "positions": Source("transformer.wpe"),
            "layers.{}.attention_norm": Source(f"{layer}.ln_1"),
            "layers.{}.attention.qkv": Source(f"{layer}.attn.c_attn", transform=transposed),
            "layers.{}.attention.output": Source(f"{layer}.attn.c_proj", transform=transposed),
            "layers.{}.mlp_norm": Source(f"{layer}.ln_2"),
            "layers.{}.mlp.up": Source(f"{layer}.mlp.c_fc", transform=transposed),
            "layers.{}.mlp.down": Source(f"{layer}.mlp.c_proj", transform=transposed),
            "norm": Source("transformer.ln_f"),
            "head": Source("lm_head"),
        }

    def ignored(self, config: ModelConfig, name: str) -> bool:
        """Old files keep the causal mask beside the weights."""
        masks = ("attn.bias", "attn.masked_bias")
        return name.endswith(masks) or super().ignored(config, name)
