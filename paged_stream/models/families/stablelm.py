"""StableLM: partial rotary, LayerNorm, optionally a parallel residual and a norm per head."""

from __future__ import annotations

from typing import Any

from paged_stream.models.families.llama import LlamaLike
from paged_stream.models.family import Source
from paged_stream.models.hf_config import rotary_config, standard_config
from paged_stream.models.model_config import LayerConfig, ModelConfig


class StableLM(LlamaLike):
    model_types = ("stablelm",)
    config_class = ("stablelm", "StableLmConfig")

    def describe(self, config: Any, length: int | None) -> ModelConfig:
        layer = LayerConfig(rotary=rotary_config(config, length))
        return standard_config(
            config,
            [layer] * config.num_hidden_layers,
            norm="layer",
            norm_bias=True,
            norm_eps=config.layer_norm_eps,
            qkv_bias=config.use_qkv_bias,
            qk_norm="per_head" if config.qk_layernorm else None,
            parallel_residual=config.use_parallel_residual,
            shared_norm=config.use_parallel_residual,
        )

    def sources(self, config: ModelConfig) -> dict[str, Source]:
        attention = "model.layers.{}.self_attn"
        queries, keys = range(config.num_heads), range(config.num_kv_heads)
        return super().sources(config) | {
            "layers.{}.attention.query_norm": Source(
                *(f"{attention}.q_layernorm.norms.{head}" for head in queries)
            ),
            "layers.{}.attention.key_norm": Source(
                *(f"{attention}.k_layernorm.norms.{head}" for head in keys)
            ),
        }
