"""Dense Qwen2, Qwen2.5 and Qwen3: Llama with biases on Q, K and V, or with norms on Q and K."""

from __future__ import annotations

from typing import Any

from paged_stream.models.families.llama import LlamaLike
from paged_stream.models.hf_config import local_windows, rotary_config, standard_config
from paged_stream.models.model_config import LayerConfig, ModelConfig


class Qwen2(LlamaLike):
    model_types = ("qwen2",)
    config_class = ("qwen2", "Qwen2Config")
    gguf_architecture = "qwen2"

    def describe(self, config: Any, length: int | None) -> ModelConfig:
        rotary = rotary_config(config, length)
        return standard_config(
            config,
            [LayerConfig(rotary=rotary, local_window=w) for w in local_windows(config)],
            norm_eps=config.rms_norm_eps,
            **self.attention(config),
        )

    def attention(self, config: Any) -> dict[str, Any]:
        return {"qkv_bias": True}


class Qwen3(Qwen2):
    model_types = ("qwen3",)
    config_class = ("qwen3", "Qwen3Config")
    gguf_architecture = "qwen3"

    def attention(self, config: Any) -> dict[str, Any]:
        return {
            "qkv_bias": config.attention_bias,
            "output_bias": config.attention_bias,
            "qk_norm": "head",
        }
