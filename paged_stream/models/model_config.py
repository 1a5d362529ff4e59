"""Declarative description of one decoder-only model: shapes and choices, no tensors, no files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from paged_stream.models.kv_tokens import row_size
from paged_stream.system.short_text import short

# Which elements of Q and K one normalisation covers, and which of them share weights: each head
# with one weight for all of them, each head with its own, or all heads together.
QKNorm = Literal["head", "per_head", "full"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryConfig:
    """Fixed rotary frequencies.

    Args:
        inv_freq: float32 values exactly as transformers computes them, rotary_dim / 2 of them.
        attention_scaling: factor on the cosines and sines.
        min_length: fewest tokens a query may see at most (sinks plus window) for these
            frequencies to be the model's; some kinds of scaling depend on it.
        max_length: most tokens, or ``None`` for any number.
    """

    inv_freq: tuple[float, ...]
    attention_scaling: float
    min_length: int = 1
    max_length: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerConfig:
    """What may differ from layer to layer.

    Args:
        rotary: ``None`` leaves Q and K as they are.
        local_window: most recent tokens that the layer was trained to see, the query's own
            included; ``None`` is all of them.
    """

    rotary: RotaryConfig | None = None
    local_window: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Everything the decoder, the KV cache and the engine need to know about a checkpoint.

    What is left out is as in Llama: RMSNorm in front of attention and of a gated feed-forward
    block, one after the other, no biases.

    Args:
        max_position_embeddings: the trained length.
        eos_token_ids: any of them ends a sequence; empty if the checkpoint names none.
        dtype: the checkpoint's own dtype.
        norm: kind of every normalisation outside attention.
        norm_bias: a bias in every LayerNorm.
        pre_norm: normalise the input of attention and of the feed-forward block.
        post_norm: normalise their outputs, before these join the residual.
        parallel_residual: attention and feed-forward block read the same input.
        shared_norm: they share one normalisation too.
        qkv_bias: a bias in the projections of Q, K and V; so have ``output_bias`` that of
            attention's output, ``mlp_bias`` those of the feed-forward block, ``head_bias`` the
            head.
        qk_norm: normalise Q and K before they are rotated.
        clip_qkv: clamp Q, K and V to plus and minus this.
        attention_scale: factor on the scores; ``None`` is 1 / sqrt(head_dim).
        attention_softcap: bend scores to stay below this, ``cap * tanh(score / cap)``.
        interleaved_rotary: rotate pairs (2i, 2i + 1), not (i, i + rotary_dim / 2).
        alibi_slopes: per head, what a score loses per token of distance.
        gated_mlp: ``down(act(gate(x)) * up(x))``, not ``down(act(up(x)))``.
        head_padding: zeros at the end of every head, which the checkpoint does not have, because
            kernels take heads of a multiple of 8.
        embedding_scale: factor on token embeddings, rounded to their dtype.
        learned_positions: rows of a table of absolute position embeddings, 0 for none.
        logits_softcap: as ``attention_softcap``, for the logits.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layers: tuple[LayerConfig, ...]
    max_position_embeddings: int
    eos_token_ids: tuple[int, ...]
    dtype: torch.dtype
    hidden_act: str
    norm_eps: float
    tie_word_embeddings: bool
    norm: Literal["rms", "layer"] = "rms"
    norm_bias: bool = False
    pre_norm: bool = True
    post_norm: bool = False
    parallel_residual: bool = False
    shared_norm: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: QKNorm | None = None
    clip_qkv: float | None = None
    attention_scale: float | None = None
    attention_softcap: float | None = None
    interleaved_rotary: bool = False
    alibi_slopes: tuple[float, ...] | None = None
    gated_mlp: bool = True
    mlp_bias: bool = False
    head_padding: int = 0
    embedding_scale: float = 1.0
    learned_positions: int = 0
    head_bias: bool = False
    logits_softcap: float | None = None

    def check(self) -> None:
        """Refuse what the kernels cannot compute.

        Raises:
            ValueError: names the field.
        """
        self._check_numbers()
        head_dim = self.head_dim - self.head_padding
        if head_dim % 2 or self.head_dim % 8 or not 2 <= head_dim <= 256:
            raise ValueError(f"head_dim must be an even number up to 256, got {head_dim}")
        if self.head_padding and self.qk_norm is not None:
            raise ValueError(
                "head_dim must be a multiple of 8 in a model that normalises Q and K, got "
                f"{head_dim}"
            )
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_heads}) must be a multiple of "
                f"num_key_value_heads, got {self.num_kv_heads}"
            )
        for layer in self.layers:
            if layer.local_window is not None and layer.local_window < 1:
                raise ValueError(f"sliding_window must be >= 1, got {layer.local_window}")
            rotary_dim = 2 * len(layer.rotary.inv_freq) if layer.rotary else 0
            if rotary_dim > head_dim:
                raise ValueError(
                    f"rotary dimensions must be at most head_dim ({head_dim}), got {rotary_dim}"
                )
        for token_id in self.eos_token_ids:
            if type(token_id) is not int or not 0 <= token_id < self.vocab_size:
                raise ValueError(
                    f"eos_token_id must be in [0, {self.vocab_size}), got {token_id!r}"
                )

    def _check_numbers(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {short(value)}")
        if not self.layers:
            raise ValueError("num_hidden_layers must be at least 1")
        for name in ("norm_eps", "clip_qkv", "attention_scale", "attention_softcap") + (
            "embedding_scale",
            "logits_softcap",
        ):
            value = getattr(self, name)
            is_number = isinstance(value, int | float)
            if value is not None and not (is_number and 0 < value < math.inf):
                raise ValueError(f"{name} must be finite and above 0, got {short(value)}")
        for layer in self.layers:
            rotary = layer.rotary
            if rotary is not None and not all(
                map(math.isfinite, (*rotary.inv_freq, rotary.attention_scaling))
            ):
                raise ValueError(
                    "rope_parameters (rope_theta, factor and the like) must give finite "
                    "frequencies, and do not"
                )

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def num_projections(self) -> int:
        """Matrices that activations are multiplied by: four in a layer, and the head."""
        return 4 * self.num_layers + 1

    @property
    def query_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def local_window(self) -> int | None:
        """Most recent tokens that any layer was trained to see; ``None`` is all of them."""
        windows = [layer.local_window for layer in self.layers]
        return None if None in windows else max(w for w in windows if w is not None)

    def is_exact_at(self, length: int) -> bool:
        """Whether the rotary frequencies are the model's when ``length`` tokens are visible."""
        return all(
            layer.rotary is None
            or layer.rotary.min_length <= length <= (layer.rotary.max_length or length)
            for layer in self.layers
        )

    def attention_features(self) -> list[str]:
        """What attention does beside scaled products with sinks and a window, in words."""
        features = {
            "ALiBi": self.alibi_slopes is not None,
            "a soft cap": self.attention_softcap is not None,
            "layers with a window of their own": any(layer.local_window for layer in self.layers),
        }
        return [name for name, is_there in features.items() if is_there]

    @property
    def num_parameters(self) -> int:
        """Weights of the matrices; norms and biases are too few to count."""
        attention = self.hidden_size * (2 * self.query_size + 2 * self.kv_size)
        mlp = (3 if self.gated_mlp else 2) * self.hidden_size * self.intermediate_size
        rows = self.vocab_size * (1 if self.tie_word_embeddings else 2) + self.learned_positions
        return self.num_layers * (attention + mlp) + rows * self.hidden_size

    def kv_bytes_per_token(self, kv_dtype: torch.dtype) -> int:
        """Bytes of K and V that one token of one stream occupies over all layers."""
        row_bytes = row_size(self.head_dim, kv_dtype) * kv_dtype.itemsize
        return 2 * self.num_layers * self.num_kv_heads * row_bytes
