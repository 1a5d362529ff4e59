"""Phi-3, Phi-3.5 and Phi-4: Llama with fused projections in the checkpoint, and longrope."""

from __future__ import annotations

from typing import Any

from paged_stream.models.config import LayerConfig, ModelConfig
from paged_stream.models.families.llama import LlamaLike
from paged_stream.models.family import Source
from paged_stream.models.hf_config import local_windows, rotary_config, standard_config


class Phi3(LlamaLike):
    model_types = ("phi3",)
    config_class = ("phi3", "Phi3Config")

    def describe(self, config: Any, length: int | None) -> ModelConfig:
        rotary = rotary_config(config, length)
        return standard_config(
            config,
            [LayerConfig(rotary=rotary, local_window=w) for w in local_windows(config)],
            norm_eps=config.rms_norm_eps,
        )

    def sources(self, config: ModelConfig) -> dict[str, Source]:
        return super().sources(config) | {
            "layers.{}.attention.qkv": Source("model.layers.{}.self_attn.qkv_proj"),
            "layers.{}.mlp.up": Source("model.layers.{}.mlp.gate_up_proj"),
        }
