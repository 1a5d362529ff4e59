"""Phi-3, Phi-3.5 and Phi-4: Mistral with fused projections in the checkpoint, and longrope."""

from __future__ import annotations

from paged_stream.models.families.mistral import Mistral
from paged_stream.models.family import Source
from paged_stream.models.model_config import ModelConfig


class Phi3(Mistral):
    model_types = ("phi3",)
    config_class = ("phi3", "Phi3Config")

    def sources(self, config: ModelConfig) -> dict[str, Source]:
        return super().sources(config) | {
            "layers.{}.attention.qkv": Source("model.layers.{}.self_attn.qkv_proj"),
            "layers.{}.mlp.up": Source("model.layers.{}.mlp.gate_up_proj"),
        }
