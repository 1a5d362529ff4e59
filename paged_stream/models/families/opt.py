"""OPT: learned absolute positions, so full attention up to the trained length only."""

from __future__ import annotations

from typing import Any

import torch

from paged_stream.models.family import Family, Source
from paged_stream.models.hf_config import refuse, standard_config
from paged_stream.models.model_config import LayerConfig, ModelConfig


class OPT(Family):
    model_types = ("opt",)
    config_class = ("opt", "OPTConfig")
    prefix = "model."

    def describe(self, config: Any, length: int | None) -> ModelConfig:
        refuse(config, do_layer_norm_before=True, _remove_final_layer_norm=False)
        refuse(config, layer_norm_elementwise_affine=True, word_embed_proj_dim=config.hidden_size)
        return standard_config(
            config,
            [LayerConfig()] * config.num_hidden_layers,
            intermediate_size=config.ffn_dim,
            hidden_act=config.activation_function,
            norm="layer",
            norm_bias=True,
            norm_eps=1e-5,
            qkv_bias=config.enable_bias,
            output_bias=config.enable_bias,
            gated_mlp=False,
            mlp_bias=config.enable_bias,
            learned_positions=config.max_position_embeddings,
        )

    def sources(self, config: ModelConfig) -> dict[str, Source]:
        layer = "model.decoder.layers.{}"
        attention = f"{layer}.self_attn"
        return {
            "embedding": Source("model.decoder.embed_tokens"),
            "positions": Source("model.decoder.embed_positions", transform=without_padding),
            "layers.{}.attention_norm": Source(f"{layer}.self_attn_layer_norm"),
            "layers.{}.attention.qkv": Source(
                f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj"
            ),
            "layers.{}.attention.output": Source(f"{attention}.out_proj"),
            "layers.{}.mlp_norm": Source(f"{layer}.final_layer_norm"),
            "layers.{}.mlp.up": Source(f"{layer}.fc1"),
            "layers.{}.mlp.down": Source(f"{layer}.fc2"),
            "norm": Source("model.decoder.final_layer_norm"),
            "head": Source("lm_head"),
        }


def without_padding(tensor: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """The first two rows of OPT's position table belong to padding."""
    return tensor[2:]
