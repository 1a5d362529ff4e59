"""GPT-J: interleaved partial rotary, and one norm for attention and feed-forward block."""

from __future__ import annotations

from typing import Any

from paged_stream.models.family import Family, Source
from paged_stream.models.hf_config import default_frequencies, standard_config
from paged_stream.models.model_config import LayerConfig, ModelConfig, RotaryConfig


class GPTJ(Family):
    model_types = ("gptj",)
    config_class = ("gptj", "GPTJConfig")
    prefix = "transformer."

    def describe(self, config: Any, length: int | None) -> ModelConfig:
        frequencies = default_frequencies(10000, config.rotary_dim)
        rotary = RotaryConfig(inv_freq=tuple(frequencies.tolist()), attention_scaling=1.0)
        return standard_config(
            config,
            [LayerConfig(rotary=rotary)] * config.num_hidden_layers,
            intermediate_size=config.n_inner or 4 * config.hidden_size,
            hidden_act=config.activation_function,
            norm="layer",
            norm_bias=True,
            norm_eps=config.layer_norm_epsilon,
            parallel_residual=True,
            shared_norm=True,
            interleaved_rotary=True,
            gated_mlp=False,
            mlp_bias=True,
            head_bias=True,
        )

    def sources(self, config: ModelConfig) -> dict[str, Source]:
        layer = "transformer.h.{}"
        attention = f"{layer}.attn"
        return {
            "embedding": Source("transformer.wte"),
            "layers.{}.attention_norm": Source(f"{layer}.ln_1"),
            "layers.{}.attention.qkv": Source(
                f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj"
            ),
            "layers.{}.attention.output": Source(f"{attention}.out_proj"),
            "layers.{}.mlp.up": Source(f"{layer}.mlp.fc_in"),
            "layers.{}.mlp.down": Source(f"{layer}.mlp.fc_out"),
            "norm": Source("transformer.ln_f"),
            "head": Source("lm_head"),
        }

    def ignored(self, config: ModelConfig, name: str) -> bool:
        """Old files keep the causal mask beside the weights."""
        masks = ("attn.bias", "attn.masked_bias")
        return name.endswith(masks) or super().ignored(config, name)
