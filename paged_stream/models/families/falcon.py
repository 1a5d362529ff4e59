"""Falcon: the 7B layout (multi-query), the 40B layout (grouped, two norms), and ALiBi variants."""

from __future__ import annotations

import math
from typing import Any

import torch

from paged_stream.models.family import Family, Source, grouped_qkv
from paged_stream.models.hf_config import rotary_config, standard_config
from paged_stream.models.model_config import LayerConfig, ModelConfig


class Falcon(Family):
    model_types = ("falcon",)
    config_class = ("falcon", "FalconConfig")
    prefix = "transformer."

    def describe(self, config: Any, length: int | None) -> ModelConfig:
        num_heads = config.num_attention_heads
        if config.new_decoder_architecture:
            num_kv_heads = config.num_kv_heads
        else:
            num_kv_heads = 1 if config.multi_query else num_heads
        parallel = config.new_decoder_architecture or config.parallel_attn
        two_norms = config.new_decoder_architecture and config.num_ln_in_parallel_attn != 1
        layer, slopes = LayerConfig(), None
        if config.alibi:
            slopes = alibi_slopes(num_heads, config.hidden_size // num_heads)
        else:
            layer = LayerConfig(rotary=rotary_config(config, length))
        return standard_config(
            config,
            [layer] * config.num_hidden_layers,
            num_kv_heads=num_kv_heads,
            intermediate_size=config.ffn_hidden_size,
            hidden_act=config.activation,
            norm="layer",
            norm_bias=True,
            norm_eps=config.layer_norm_epsilon,
            parallel_residual=parallel,
            shared_norm=parallel and not two_norms,
            alibi_slopes=slopes,
            qkv_bias=config.bias,
            output_bias=config.bias,
            gated_mlp=False,
            mlp_bias=config.bias,
        )

    def sources(self, config: ModelConfig) -> dict[str, Source]:
        layer = "transformer.h.{}"
        attention_norm, mlp_norm = "input_layernorm", "post_attention_layernorm"
        if config.parallel_residual and not config.shared_norm:
            attention_norm, mlp_norm = "ln_attn", "ln_mlp"
        return {
            "embedding": Source("transformer.word_embeddings"),
            "layers.{}.attention_norm": Source(f"{layer}.{attention_norm}"),
            "layers.{}.attention.qkv": Source(
                f"{layer}.self_attention.query_key_value", transform=grouped_qkv
            ),
            "layers.{}.attention.output": Source(f"{layer}.self_attention.dense"),
            "layers.{}.mlp_norm": Source(f"{layer}.{mlp_norm}"),
            "layers.{}.mlp.up": Source(f"{layer}.mlp.dense_h_to_4h"),
            "layers.{}.mlp.down": Source(f"{layer}.mlp.dense_4h_to_h"),
            "norm": Source("transformer.ln_f"),
            "head": Source("lm_head"),
        }


def alibi_slopes(num_heads: int, head_dim: int) -> tuple[float, ...]:
    """Slopes as Falcon was trained with: in bfloat16, and scaled together with the scores.

    Heads beyond a power of two take every other slope of twice as many heads.
    """
    power = 2 ** int(math.log2(num_heads))
    slopes = [2.0 ** (-8 * (head + 1) / power) for head in range(power)]
    slopes += [2.0 ** (-8 * (head + 0.5) / power) for head in range(num_heads - power)]
    rounded = torch.tensor(slopes).bfloat16().float() * head_dim**-0.5
    return tuple(rounded.tolist())
