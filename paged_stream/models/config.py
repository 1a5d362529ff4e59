"""Declarative description of one decoder-only model: shapes and choices, no tensors, no files."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryConfig:
    """Fixed rotary frequencies.

    Args:
        inv_freq: float32 values exactly as transformers computes them, rotary_dim / 2 of them.
        attention_scaling: factor on the cosines and sines.
    """

    inv_freq: tuple[float, ...]
    attention_scaling: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Everything the decoder, the KV cache and the engine need to know about a checkpoint.

    Args:
        max_position_embeddings: the trained length.
        eos_token_ids: any of them ends a sequence; empty if the checkpoint names none.
        dtype: the checkpoint's own dtype.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    hidden_act: str
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    tie_word_embeddings: bool
    eos_token_ids: tuple[int, ...]
    dtype: torch.dtype
    rotary: RotaryConfig

    def check(self) -> None:
        """Refuse what the kernels cannot compute.

        Raises:
            ValueError: names the field.
        """
        if self.head_dim % 8 or not 8 <= self.head_dim <= 256:
            raise ValueError(f"head_dim must be a multiple of 8 up to 256, got {self.head_dim}")
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_heads}) must be a multiple of "
                f"num_key_value_heads, got {self.num_kv_heads}"
            )
        for token_id in self.eos_token_ids:
            if type(token_id) is not int or not 0 <= token_id < self.vocab_size:
                raise ValueError(
                    f"eos_token_id must be in [0, {self.vocab_size}), got {token_id!r}"
                )

    @property
    def query_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def num_parameters(self) -> int:
        """Weights of the matrices; norms and biases are too few to count."""
        attention = self.hidden_size * (2 * self.query_size + 2 * self.kv_size)
        mlp = 3 * self.hidden_size * self.intermediate_size
        tables = 1 if self.tie_word_embeddings else 2
        return self.num_layers * (attention + mlp) + tables * self.vocab_size * self.hidden_size

    def kv_bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes of K and V that one token of one stream occupies over all layers."""
        return 2 * self.num_layers * self.kv_size * dtype.itemsize
