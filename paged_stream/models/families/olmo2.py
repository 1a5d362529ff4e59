"""OLMo-2: norms behind attention and feed-forward block only, and over all of Q and of K."""

from __future__ import annotations

from typing import Any

from paged_stream.models.families.llama import LlamaLike
from paged_stream.models.family import Source
from paged_stream.models.hf_config import rotary_config, standard_config
from paged_stream.models.model_config import LayerConfig, ModelConfig


class Olmo2(LlamaLike):
    model_types = ("olmo2",)
    config_class = ("olmo2", "Olmo2Config")

    def describe(self, config: Any, length: int | None) -> ModelConfig:
        layer = LayerConfig(rotary=rotary_config(config, length))
        return standard_config(
            config,
            [layer] * config.num_hidden_layers,
            norm_eps=config.rms_norm_eps,
            pre_norm=False,
            post_norm=True,
            qkv_bias=config.attention_bias,
            output_bias=config.attention_bias,
            qk_norm="full",
        )

    def sources(self, config: ModelConfig) -> dict[str, Source]:
        layer = "model.layers.{}"
        return super().sources(config) | {
            "layers.{}.post_attention_norm": Source(f"{layer}.post_attention_layernorm"),
            "layers.{}.post_mlp_norm": Source(f"{layer}.post_feedforward_layernorm"),
        }
