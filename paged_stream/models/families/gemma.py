"""Gemma-2 and Gemma-3 text: norms on both sides, scaled embeddings, local and global layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from paged_stream.models.families.llama import LlamaLike
from paged_stream.models.family import Source, plus_one
from paged_stream.models.hf_config import local_windows, refuse, rotary_config, standard_config
from paged_stream.models.model_config import LayerConfig, ModelConfig


class Gemma2(LlamaLike):
    model_types = ("gemma2",)
    config_class = ("gemma2", "Gemma2Config")
    gguf_architecture = "gemma2"

    def describe(self, config: Any, length: int | None) -> ModelConfig:
        rotary = rotary_config(config, length)
        layers = [LayerConfig(rotary=rotary, local_window=w) for w in local_windows(config)]
        return self.assemble(config, layers)

    def assemble(self, config: Any, layers: list[LayerConfig], **features: Any) -> ModelConfig:
        if config.use_bidirectional_attention is not None:
            refuse(config, use_bidirectional_attention=False)
        return standard_config(
            config,
            layers,
            hidden_act=config.hidden_activation,
            norm_eps=config.rms_norm_eps,
            post_norm=True,
            qkv_bias=config.attention_bias,
            output_bias=config.attention_bias,
            attention_scale=config.query_pre_attn_scalar**-0.5,
            attention_softcap=config.attn_logit_softcapping,
            embedding_scale=config.hidden_size**0.5,
            logits_softcap=config.final_logit_softcapping,
            **features,
        )

    def sources(self, config: ModelConfig) -> dict[str, Source]:
        layer = "model.layers.{}"
        sources = super().sources(config) | {
            "layers.{}.post_attention_norm": Source(f"{layer}.post_attention_layernorm"),
            "layers.{}.mlp_norm": Source(f"{layer}.pre_feedforward_layernorm"),
            "layers.{}.post_mlp_norm": Source(f"{layer}.post_feedforward_layernorm"),
        }
        return {
            name: Source(*source.names, transform=plus_one if name.endswith("norm") else None)
            for name, source in sources.items()
        }

    def from_gguf(self, config: ModelConfig, source: str, tensor: np.ndarray) -> np.ndarray:
        """llama.cpp's files hold 1 + weight for norms."""
        return tensor - 1 if source.endswith("norm.weight") else tensor


class Gemma3(Gemma2):
    model_types = ("gemma3_text",)
    config_class = ("gemma3", "Gemma3TextConfig")
    gguf_architecture = "gemma3"

    def describe(self, config: Any, length: int | None) -> ModelConfig:
        refuse(config, attn_logit_softcapping=None)  # transformers ignores it here
        rotaries = {kind: rotary_config(config, length, kind) for kind in set(config.layer_types)}
        layers = [
            LayerConfig(rotary=rotaries[kind], local_window=window)
            for kind, window in zip(config.layer_types, local_windows(config), strict=True)
        ]
        return self.assemble(config, layers, qk_norm="head")
