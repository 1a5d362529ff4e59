"""SmolLM3: Llama with layers that know nothing of positions."""

from __future__ import annotations

from typing import Any

from paged_stream.models.families.llama import LlamaLike
from paged_stream.models.hf_config import local_windows, rotary_config, standard_config
from paged_stream.models.model_config import LayerConfig, ModelConfig


class SmolLM3(LlamaLike):
    model_types = ("smollm3",)
    config_class = ("smollm3", "SmolLM3Config")

    def describe(self, config: Any, length: int | None) -> ModelConfig:
        rotary = rotary_config(config, length)
        if len(config.no_rope_layers) < config.num_hidden_layers:
            raise ValueError(f"no_rope_layers must have {config.num_hidden_layers} entries")
        layers = [
            LayerConfig(rotary=rotary if has_rope else None, local_window=window)
            for has_rope, window in zip(config.no_rope_layers, local_windows(config), strict=False)
        ]
        return standard_config(
            config,
            layers,
            norm_eps=config.rms_norm_eps,
            qkv_bias=config.attention_bias,
            output_bias=config.attention_bias,
            mlp_bias=config.mlp_bias,
        )
