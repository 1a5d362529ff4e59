"""Llama, SmolLM2 and others of the same architecture; the tensor names that many others share."""

# No `from __future__ import annotations`: `strict` reads the types of the fields.

from typing import Any

import numpy as np
from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from paged_stream.models.family import Family, Source
from paged_stream.models.hf_config import build_config, rotary_config, standard_config
from paged_stream.models.model_config import LayerConfig, ModelConfig


@strict
class LlamaFields(PreTrainedConfig):
    """What is needed of LlamaConfig, whose own module takes a second and a half to import."""

    model_type = "llama"

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    attention_bias: bool = False
    mlp_bias: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        # Rotary scaling is worked out here already, and asks for it.
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)


class LlamaLike(Family):
    """Families that name their tensors as Llama does."""

    def sources(self, config: ModelConfig) -> dict[str, Source]:
        layer = "model.layers.{}"
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        return {
            "embedding": Source("model.embed_tokens"),
            "layers.{}.attention_norm": Source(f"{layer}.input_layernorm"),
            "layers.{}.attention.qkv": Source(
                f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj"
            ),
            "layers.{}.attention.query_norm": Source(f"{attention}.q_norm"),
            "layers.{}.attention.key_norm": Source(f"{attention}.k_norm"),
            "layers.{}.attention.output": Source(f"{attention}.o_proj"),
            "layers.{}.mlp_norm": Source(f"{layer}.post_attention_layernorm"),
            "layers.{}.mlp.up": Source(f"{mlp}.gate_proj", f"{mlp}.up_proj"),
            "layers.{}.mlp.down": Source(f"{mlp}.down_proj"),
            "norm": Source("model.norm"),
            "head": Source("lm_head"),
        }


class Llama(LlamaLike):
    model_types = ("llama",)
    config_class = ("llama", "LlamaConfig")
    gguf_architecture = "llama"

    def read_config(self, fields: dict[str, Any]) -> Any:
        return build_config(LlamaFields, fields)

    def describe(self, config: Any, length: int | None) -> ModelConfig:
        layer = LayerConfig(rotary=rotary_config(config, length))
        return standard_config(
            config,
            [layer] * config.num_hidden_layers,
            norm_eps=config.rms_norm_eps,
            qkv_bias=config.attention_bias,
            output_bias=config.attention_bias,
            mlp_bias=config.mlp_bias,
        )

    def from_gguf(self, config: ModelConfig, source: str, tensor: np.ndarray) -> np.ndarray:
        """llama.cpp rotates adjacent pairs, so its files hold Q and K rows interleaved."""
        heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}
        num_heads = heads.get(source.split(".")[-2])
        if num_heads is None:
            return tensor
        half = tensor.shape[0] // num_heads // 2
        pairs = tensor.reshape(num_heads, half, 2, *tensor.shape[1:])
        return pairs.swapaxes(1, 2).reshape(tensor.shape)
