"""The decoder: token ids and a paged KV cache in, hidden states and logits out.

One step runs T tokens of many sequences side by side; only attention knows which is whose.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from paged_stream import ops
from paged_stream.attention.backend import AttentionBackend
from paged_stream.attention.metadata import AttentionMetadata
from paged_stream.layers.linear import Linear, empty_parameter
from paged_stream.layers.mlp import GatedMLP
from paged_stream.layers.norm import RMSNorm
from paged_stream.layers.rotary import RotaryEmbedding
from paged_stream.models.config import ModelConfig


class Attention(torch.nn.Module):
    """Self-attention of one layer; writes the step's K and V before it attends."""

    def __init__(
        self,
        config: ModelConfig,
        backend: AttentionBackend,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.backend = backend
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        self.split = [config.query_size, config.kv_size, config.kv_size]
        hidden = config.hidden_size
        self.qkv = Linear(hidden, sum(self.split), bias=config.qkv_bias, dtype=dtype, device=device)
        self.output = Linear(
            config.query_size, hidden, bias=config.output_bias, dtype=dtype, device=device
        )

    def forward(
        self,
        hidden: torch.Tensor,
        metadata: AttentionMetadata,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
    ) -> torch.Tensor:
        # Views of one product: [T, heads, head_dim] with the row stride of qkv.
        query, key, value = (
            part.unflatten(-1, (-1, self.head_dim))
            for part in self.qkv(hidden).split(self.split, dim=-1)
        )
        sink_query = None
        if metadata.sink_rotary is not None:
            sink_query = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        ops.rotary_and_cache(
            query,
            sink_query,
            key,
            value,
            k_cache,
            v_cache,
            metadata.rotary,
            metadata.sink_rotary,
            metadata.slot_mapping,
            interleaved=False,
        )
        context = self.backend.forward(
            query, sink_query, k_cache, v_cache, metadata, scale=self.scale
        )
        return self.output(context.flatten(1))


class DecoderLayer(torch.nn.Module):
    def __init__(
        self,
        config: ModelConfig,
        backend: AttentionBackend,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.attention_norm = RMSNorm(size, eps=eps, dtype=dtype, device=device)
        self.attention = Attention(config, backend, dtype=dtype, device=device)
        self.mlp_norm = RMSNorm(size, eps=eps, dtype=dtype, device=device)
        self.mlp = GatedMLP(
            size,
            config.intermediate_size,
            activation=config.hidden_act,
            bias=config.mlp_bias,
            dtype=dtype,
            device=device,
        )

    def forward(
        self,
        residual: torch.Tensor,
        delta: torch.Tensor | None,
        metadata: AttentionMetadata,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
    ) -> torch.Tensor:
        """Add the last layer's ``delta`` to ``residual`` in place; return this layer's."""
        normed = self.attention_norm(residual, delta)
        delta = self.attention(normed, metadata, k_cache, v_cache)
        return self.mlp(self.mlp_norm(residual, delta))


class Decoder(torch.nn.Module):
    """A whole model; its parameters are uninitialised memory until a checkpoint fills them.

    ``rotary`` makes the tables that ``AttentionMetadata`` carries.
    """

    def __init__(
        self,
        config: ModelConfig,
        attention: AttentionBackend,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        device = torch.device(device)
        self.config = config
        self.rotary = RotaryEmbedding(
            config.rotary.inv_freq, config.rotary.attention_scaling, device
        )
        table = (config.vocab_size, config.hidden_size)
        self.embedding = empty_parameter(*table, dtype=dtype, device=device)
        self.layers = torch.nn.ModuleList(
            DecoderLayer(config, attention, dtype=dtype, device=device)
            for _ in range(config.num_layers)
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype, device=device)
        # A tied head shares the Parameter, which named_parameters() lists once, as "embedding".
        self.head = Linear(
            config.hidden_size,
            config.vocab_size,
            bias=False,
            dtype=dtype,
            device=device,
            weight=self.embedding if config.tie_word_embeddings else None,
        )

    def pack_weights(self) -> None:
        """Bring all projections into the layout of the CPU kernels, one at a time."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.pack()

    def forward(
        self,
        token_ids: torch.Tensor,
        metadata: AttentionMetadata,
        kv_caches: Sequence[tuple[torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor:
        """Run one step.

        Args:
            token_ids: int64 [T].
            metadata: the step's batch.
            kv_caches: K and V of each layer, written at ``metadata.slot_mapping``, then read.

        Returns:
            [T, hidden_size] after the final norm.
        """
        residual, delta = F.embedding(token_ids, self.embedding), None
        for layer, (k_cache, v_cache) in zip(self.layers, kv_caches, strict=True):
            delta = layer(residual, delta, metadata, k_cache, v_cache)
        return self.norm(residual, delta)

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return float32 [N, vocab_size] for the [N, hidden_size] rows that are sampled from."""
        return self.head(hidden, float_output=True)
