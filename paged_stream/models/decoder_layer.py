"""One layer of a decoder: attention, feed-forward block, norms and residual as a config asks."""

from __future__ import annotations

import torch

from paged_stream import ops
from paged_stream.attention.backend import AttentionBackend
from paged_stream.attention.forward_batch import ForwardBatch
from paged_stream.attention.native import NativeBackend
from paged_stream.layers.large_pages import Arena
from paged_stream.layers.linear import Linear
from paged_stream.layers.low_rank import StepAdapters
from paged_stream.layers.mlp import MLP
from paged_stream.layers.norm import HeadNorm, LayerNorm, NoNorm, RMSNorm
from paged_stream.layers.rank_group import RankGroup
from paged_stream.layers.rotary import RotaryTables
from paged_stream.models.model_config import ModelConfig


class Attention(torch.nn.Module):
    """Self-attention of one layer; writes the step's K and V before it attends."""

    def __init__(
        self,
        config: ModelConfig,
        local_window: int | None,
        backend: AttentionBackend,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.backend = backend
        self.head_dim = config.head_dim
        self.clip = config.clip_qkv
        self.interleaved = config.interleaved_rotary
        self.split = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        hidden, qkv_size = config.hidden_size, sum(self.split) * config.head_dim
        self.qkv = Linear(hidden, qkv_size, bias=config.qkv_bias, dtype=dtype, device=device)
        self.output = Linear(
            config.query_size, hidden, bias=config.output_bias, dtype=dtype, device=device
        )
        self.query_norm = self.key_norm = None
        if config.qk_norm is not None:
            shape = (config.qk_norm, config.num_heads, config.head_dim)
            self.query_norm = HeadNorm(*shape, eps=config.norm_eps, device=device)
            shape = (config.qk_norm, config.num_kv_heads, config.head_dim)
            self.key_norm = HeadNorm(*shape, eps=config.norm_eps, device=device)
        slopes = None
        if config.alibi_slopes is not None:
            slopes = torch.tensor(config.alibi_slopes, dtype=torch.float32, device=device)
        self.scoring = ops.Scoring(
            scale=config.attention_scale or config.head_dim**-0.5,
            alibi_slopes=slopes,
            softcap=config.attention_softcap,
            local_window=local_window,
        )

    def fused_with(self, norm: torch.nn.Module, dtype: torch.dtype) -> ops.AttentionLayer | None:
        """What follows ``norm`` as a single op, if there is one for it; weights are packed."""
        if not isinstance(norm, RMSNorm) or not isinstance(self.backend, NativeBackend):
            return None
        if self.clip is not None or self.query_norm is not None:
            return None
        qkv, output = self.qkv, self.output
        num_heads, num_kv_heads, _ = self.split
        return ops.AttentionLayer(
            ops.AttentionWeights(
                norm.weight, qkv.packed_weight, qkv.bias, output.packed_weight, output.bias
            ),
            ops.HeadShape(num_heads, num_kv_heads, self.head_dim),
            self.scoring,
            eps=norm.eps,
            interleaved=self.interleaved,
            dtype=dtype,
        )

    def forward(
        self,
        hidden: torch.Tensor,
        tables: RotaryTables,
        batch: ForwardBatch,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        adapters: StepAdapters | None,
    ) -> torch.Tensor:
        qkv = self.qkv.adapted(hidden, adapters)
        if self.clip is not None:
            qkv.clamp_(-self.clip, self.clip)
        # Views of one product: [T, heads, head_dim] with the row stride of qkv.
        heads = qkv.view(qkv.shape[0], -1, self.head_dim)
        query, key, value = torch.split_with_sizes(heads, self.split, dim=1)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm.forward(query), self.key_norm.forward(key)
        sink_query = None
        if tables.sink_rotary is not None:
            sink_query = torch.empty_like(query, memory_format=torch.contiguous_format)
        ops.rotary_and_cache(
            query,
            sink_query,
            key,
            value,
            k_cache,
            v_cache,
            tables.rotary,
            tables.sink_rotary,
            batch.tensors.slot_mapping,
            interleaved=self.interleaved,
        )
        context = self.backend.forward(query, sink_query, k_cache, v_cache, batch, self.scoring)
        return self.output.adapted(context.flatten(1), adapters)


class DecoderLayer(torch.nn.Module):
    """Attention and feed-forward block, with norms and residual where the config places them.

    Args:
        group: ranks that have a part of every block each; what these give is added up.
    """

    def __init__(
        self,
        config: ModelConfig,
        local_window: int | None,
        backend: AttentionBackend,
        *,
        dtype: torch.dtype,
        device: torch.device,
        group: RankGroup | None = None,
    ) -> None:
        super().__init__()
        self.group = group
        self.dtype = dtype
        self.parallel = config.parallel_residual
        self.attention_norm = self._input_norm(config, dtype, device)
        self.attention = Attention(config, local_window, backend, dtype=dtype, device=device)
        self.mlp_norm: torch.nn.Module | None = None
        if not config.shared_norm:
            self.mlp_norm = self._input_norm(config, dtype, device)
        self.mlp = MLP(
            config.hidden_size,
            config.intermediate_size,
            activation=config.hidden_act,
            gated=config.gated_mlp,
            bias=config.mlp_bias,
            dtype=dtype,
            device=device,
        )
        # Each half with its norm as a single op, where there is one, once weights are packed.
        self.fused_attention: ops.AttentionLayer | None = None
        self.fused_mlp: ops.GatedMLP | None = None
        self.post_attention_norm: torch.nn.Module | None = None
        self.post_mlp_norm: torch.nn.Module | None = None
        if config.post_norm:
            self.post_attention_norm = make_norm(config, dtype, device)
            self.post_mlp_norm = make_norm(config, dtype, device)

    @property
    def projections(self) -> dict[ops.Projection, Linear]:
        attention, mlp = self.attention, self.mlp
        products = attention.qkv, attention.output, mlp.up, mlp.down
        return dict(zip(ops.Projection, products, strict=True))

    def pack(self, arena: Arena) -> None:
        """Bring the projections into the layout of the CPU kernels."""
        for linear in self.projections.values():
            linear.pack(arena)
        if not self.parallel:
            assert self.mlp_norm is not None, "only parallel blocks share a norm"
            self.fused_attention = self.attention.fused_with(self.attention_norm, self.dtype)
            self.fused_mlp = self.mlp.fused_with(self.mlp_norm, self.dtype)

    def _attend(
        self,
        residual: torch.Tensor,
        delta: torch.Tensor | None,
        tables: RotaryTables,
        batch: ForwardBatch,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        adapters: StepAdapters | None,
    ) -> torch.Tensor:
        if self.fused_attention is None or adapters is not None:
            normed = self.attention_norm.forward(residual, delta)
            return self.attention.forward(normed, tables, batch, k_cache, v_cache, adapters)
        return ops.attention_layer(
            residual,
            delta,
            self.fused_attention,
            tables.rotary,
            tables.sink_rotary,
            k_cache,
            v_cache,
            batch.tensors,
        )

    def _feed_forward(
        self, residual: torch.Tensor, delta: torch.Tensor, adapters: StepAdapters | None
    ) -> torch.Tensor:
        if self.fused_mlp is not None and adapters is None:
            return ops.gated_mlp(residual, delta, self.fused_mlp)
        assert self.mlp_norm is not None
        return self.mlp.forward(self.mlp_norm.forward(residual, delta), adapters)

    @staticmethod
    def _input_norm(
        config: ModelConfig, dtype: torch.dtype, device: torch.device
    ) -> torch.nn.Module:
        return make_norm(config, dtype, device) if config.pre_norm else NoNorm()

    def forward(
        self,
        residual: torch.Tensor,
        delta: torch.Tensor | None,
        tables: RotaryTables,
        batch: ForwardBatch,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        adapters: StepAdapters | None = None,
    ) -> torch.Tensor:
        """Add the last layer's ``delta`` to ``residual`` in place; return this layer's."""
        if self.parallel:
            normed = self.attention_norm.forward(residual, delta)
            caches = k_cache, v_cache
            attended = self.attention.forward(normed, tables, batch, *caches, adapters)
            if self.mlp_norm is not None:
                normed = self.mlp_norm.forward(residual, None)
            attended.add_(self.mlp.forward(normed, adapters))
            return attended if self.group is None else self.group.sum(attended)
        attended = self._attend(residual, delta, tables, batch, k_cache, v_cache, adapters)
        if self.group is not None:
            attended = self.group.sum(attended)
        if self.post_attention_norm is not None:
            attended = self.post_attention_norm.forward(attended, None)
        delta = self._feed_forward(residual, attended, adapters)
        if self.group is not None:
            delta = self.group.sum(delta)
        if self.post_mlp_norm is not None:
            delta = self.post_mlp_norm.forward(delta, None)
        return delta


def make_norm(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    if config.norm == "rms":
        return RMSNorm(config.hidden_size, eps=config.norm_eps, device=device)
    return LayerNorm(
        config.hidden_size,
        eps=config.norm_eps,
        bias=config.norm_bias,
        dtype=dtype,
        device=device,
    )
