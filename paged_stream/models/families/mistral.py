"""Mistral: Llama whose layers may all have a window of their own."""

from __future__ import annotations

from typing import Any

from paged_stream.models.families.llama import LlamaLike
from paged_stream.models.hf_config import local_windows, rotary_config, standard_config
from paged_stream.models.model_config import LayerConfig, ModelConfig


class Mistral(LlamaLike):
    model_types = ("mistral",)
    config_class = ("mistral", "MistralConfig")

    def describe(self, config: Any, length: int | None) -> ModelConfig:
        rotary = rotary_config(config, length)
        return standard_config(
            config,
            [LayerConfig(rotary=rotary, local_window=w) for w in local_windows(config)],
            norm_eps=config.rms_norm_eps,
        )
