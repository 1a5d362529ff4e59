"""The Llama family: RMSNorm, gated SiLU feed-forward, grouped-query attention, rotary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from paged_stream.models.config import ModelConfig
from paged_stream.models.family import Family, Weight
from paged_stream.models.hf_config import activation, dtype_of, rotary_config, token_ids


class Llama(Family):
    model_types = ("llama",)
    gguf_architecture = "llama"
    defaults = {
        "num_key_value_heads": None,
        "head_dim": None,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "eos_token_id": 2,
        "bos_token_id": 1,
        "dtype": None,
    }

    def describe(self, config: Any) -> ModelConfig:
        num_heads = config.num_attention_heads
        return ModelConfig(
            model_type=config.model_type,
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_layers=config.num_hidden_layers,
            num_heads=num_heads,
            num_kv_heads=config.num_key_value_heads or num_heads,
            head_dim=config.head_dim or config.hidden_size // num_heads,
            rms_norm_eps=config.rms_norm_eps,
            max_position_embeddings=config.max_position_embeddings,
            hidden_act=activation(config),
            qkv_bias=config.attention_bias,
            output_bias=config.attention_bias,
            mlp_bias=config.mlp_bias,
            tie_word_embeddings=config.tie_word_embeddings,
            eos_token_ids=token_ids(config.eos_token_id),
            dtype=dtype_of(config),
            rotary=rotary_config(config),
        )

    def weights(self, config: ModelConfig) -> Iterator[Weight]:
        yield Weight("model.embed_tokens.weight", "embedding")
        query, kv, mlp = config.query_size, config.kv_size, config.intermediate_size
        for index in range(config.num_layers):
            source, target = f"model.layers.{index}", f"layers.{index}"
            yield Weight(f"{source}.input_layernorm.weight", f"{target}.attention_norm.weight")
            yield Weight(f"{source}.post_attention_layernorm.weight", f"{target}.mlp_norm.weight")
            for bias, (part, name), rows in (
                (config.qkv_bias, ("self_attn.q_proj", "attention.qkv"), (0, query)),
                (config.qkv_bias, ("self_attn.k_proj", "attention.qkv"), (query, query + kv)),
                (config.qkv_bias, ("self_attn.v_proj", "attention.qkv"), (query + kv, None)),
                (config.output_bias, ("self_attn.o_proj", "attention.output"), (0, None)),
                (config.mlp_bias, ("mlp.gate_proj", "mlp.gate_up"), (0, mlp)),
                (config.mlp_bias, ("mlp.up_proj", "mlp.gate_up"), (mlp, None)),
                (config.mlp_bias, ("mlp.down_proj", "mlp.down"), (0, None)),
            ):
                for kind in ("weight", "bias") if bias else ("weight",):
                    yield Weight(f"{source}.{part}.{kind}", f"{target}.{name}.{kind}", *rows)
        yield Weight("model.norm.weight", "norm.weight")
        if not config.tie_word_embeddings:
            yield Weight("lm_head.weight", "head.weight")

    def ignored(self, config: ModelConfig, source: str) -> bool:
        # Some files keep a copy of the tied head.
        tied_head = config.tie_word_embeddings and source == "lm_head.weight"
        return tied_head or super().ignored(config, source)

    def from_gguf(self, config: ModelConfig, source: str, tensor: np.ndarray) -> np.ndarray:
        """llama.cpp rotates adjacent pairs, so its files hold Q and K rows interleaved."""
        heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}
        num_heads = heads.get(source.split(".")[-2])
        if num_heads is None:
            return tensor
        half = tensor.shape[0] // num_heads // 2
        pairs = tensor.reshape(num_heads, half, 2, *tensor.shape[1:])
        return pairs.swapaxes(1, 2).reshape(tensor.shape)
