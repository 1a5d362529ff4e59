"""GPT-NeoX and Pythia: partial rotary, LayerNorm, usually a parallel residual."""

from __future__ import annotations

from typing import Any

from paged_stream.models.family import Family, Source, grouped_qkv
from paged_stream.models.hf_config import rotary_config, standard_config
from paged_stream.models.model_config import LayerConfig, ModelConfig


class GPTNeoX(Family):
    model_types = ("gpt_neox",)
    config_class = ("gpt_neox", "GPTNeoXConfig")
    prefix = "gpt_neox."

    def describe(self, config: Any, length: int | None) -> ModelConfig:
        layer = LayerConfig(rotary=rotary_config(config, length))
        return standard_config(
            config,
            [layer] * config.num_hidden_layers,
            norm="layer",
            norm_bias=True,
            norm_eps=config.layer_norm_eps,
            parallel_residual=config.use_parallel_residual,
            qkv_bias=config.attention_bias,
            output_bias=config.attention_bias,
            gated_mlp=False,
            mlp_bias=True,
        )

    def sources(self, config: ModelConfig) -> dict[str, Source]:
        layer = "gpt_neox.layers.{}"
        return {
            "embedding": Source("gpt_neox.embed_in"),
            "layers.{}.attention_norm": Source(f"{layer}.input_layernorm"),
            "layers.{}.attention.qkv": Source(
                f"{layer}.attention.query_key_value", transform=grouped_qkv
            ),
            "layers.{}.attention.output": Source(f"{layer}.attention.dense"),
            "layers.{}.mlp_norm": Source(f"{layer}.post_attention_layernorm"),
            "layers.{}.mlp.up": Source(f"{layer}.mlp.dense_h_to_4h"),
            "layers.{}.mlp.down": Source(f"{layer}.mlp.dense_4h_to_h"),
            "norm": Source("gpt_neox.final_layer_norm"),
            "head": Source("lm_head"),
        }

    def rename(self, name: str) -> str:
        return super().rename(name.replace("embed_out.", "lm_head.", 1))

    def ignored(self, config: ModelConfig, name: str) -> bool:
        """Old files keep the causal mask beside the weights."""
        masks = ("attention.bias", "attention.masked_bias")
        return name.endswith(masks) or super().ignored(config, name)
