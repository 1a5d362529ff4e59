"""MPT: ALiBi, LayerNorm without bias, optionally clipped Q, K and V."""

from __future__ import annotations

import math
from typing import Any

from paged_stream.models.family import Family, Source
from paged_stream.models.hf_config import refuse, standard_config
from paged_stream.models.model_config import LayerConfig, ModelConfig


class MPT(Family):
    model_types = ("mpt",)
    config_class = ("mpt", "MptConfig")
    prefix = "transformer."

    def describe(self, config: Any, length: int | None) -> ModelConfig:
        attention = config.attn_config
        refuse(config, no_bias=True, logit_scale=None, expansion_ratio=4)
        refuse(attention, alibi=True, alibi_bias_max=8, qk_ln=False, prefix_lm=False)
        refuse(attention, attn_type="multihead_attention")
        return standard_config(
            config,
            [LayerConfig()] * config.num_hidden_layers,
            max_position_embeddings=config.max_seq_len,
            intermediate_size=4 * config.hidden_size,
            hidden_act="gelu",
            norm="layer",
            norm_eps=config.layer_norm_epsilon,
            alibi_slopes=alibi_slopes(config.num_attention_heads),
            attention_scale=attention.softmax_scale,
            clip_qkv=attention.clip_qkv or None,
            gated_mlp=False,
        )

    def sources(self, config: ModelConfig) -> dict[str, Source]:
        layer = "transformer.blocks.{}"
        return {
            "embedding": Source("transformer.wte"),
            "layers.{}.attention_norm": Source(f"{layer}.norm_1"),
            "layers.{}.attention.qkv": Source(f"{layer}.attn.Wqkv"),
            "layers.{}.attention.output": Source(f"{layer}.attn.out_proj"),
            "layers.{}.mlp_norm": Source(f"{layer}.norm_2"),
            "layers.{}.mlp.up": Source(f"{layer}.ffn.up_proj"),
            "layers.{}.mlp.down": Source(f"{layer}.ffn.down_proj"),
            "norm": Source("transformer.norm_f"),
            "head": Source("lm_head"),
        }


def alibi_slopes(num_heads: int) -> tuple[float, ...]:
    """2^(-8 i / n) for i = 1 to n, a power of two; of more than are needed, even i come first."""
    power = 2 ** math.ceil(math.log2(num_heads))
    slopes = [2.0 ** (-8 * (head + 1) / power) for head in range(power)]
    if power != num_heads:
        slopes = (slopes[1::2] + slopes[::2])[:num_heads]
    return tuple(slopes)
