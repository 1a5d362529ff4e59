"""The decoder: token ids and a paged KV cache in, hidden states and logits out.

One decoder serves every family: what a `ModelConfig` declares is put together when the model is
built, so a step asks little. It runs T tokens of many sequences side by side; only attention knows
which is whose. Inside, ``forward`` is called instead of the module: looking for hooks takes as long
as the smaller kernels.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from paged_stream import ops
from paged_stream.attention.backend import AttentionBackend
from paged_stream.attention.metadata import AttentionMetadata
from paged_stream.attention.native import NativeBackend
from paged_stream.layers.embedding import Embedding
from paged_stream.layers.linear import Linear
from paged_stream.layers.mlp import MLP
from paged_stream.layers.norm import HeadNorm, LayerNorm, NoNorm, RMSNorm
from paged_stream.layers.rank_group import RankGroup
from paged_stream.layers.rotary import RotaryEmbedding, RotaryTables
from paged_stream.models.config import ModelConfig, RotaryConfig
from paged_stream.models.sharding import WHOLE, Rank, shard_config, vocabulary_of


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
        self.local_window = local_window
        self.head_dim = config.head_dim
        self.scale = config.attention_scale or config.head_dim**-0.5
        self.softcap = config.attention_softcap
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
        self.alibi_slopes: torch.Tensor | None = None
        if config.alibi_slopes is not None:
            self.alibi_slopes = torch.tensor(
                config.alibi_slopes, dtype=torch.float32, device=device
            )

    def fused_with(self, norm: torch.nn.Module) -> ops.AttentionBlock | None:
        """The block after ``norm`` as a single op, if there is one for it; weights are packed."""
        if not isinstance(norm, RMSNorm) or not isinstance(self.backend, NativeBackend):
            return None
        if self.clip is not None or self.query_norm is not None:
            return None
        qkv, output = self.qkv, self.output
        return ops.AttentionBlock(
            norm.weight,
            norm.eps,
            qkv.packed_weight,
            qkv.bias,
            output.packed_weight,
            output.bias,
            self.split[0],
            self.interleaved,
            self.scale,
            self.alibi_slopes,
            self.softcap,
            self.local_window,
        )

    def forward(
        self,
        hidden: torch.Tensor,
        tables: RotaryTables,
        metadata: AttentionMetadata,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
    ) -> torch.Tensor:
        qkv = self.qkv.forward(hidden)
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
            metadata.slot_mapping,
            interleaved=self.interleaved,
        )
        context = self.backend.forward(
            query,
            sink_query,
            k_cache,
            v_cache,
            metadata,
            scale=self.scale,
            alibi_slopes=self.alibi_slopes,
            softcap=self.softcap,
            local_window=self.local_window,
        )
        return self.output.forward(context.flatten(1))


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
        # Norm and block as single ops, where there are such, once weights are packed.
        self.attention_block: ops.AttentionBlock | None = None
        self.mlp_block: ops.GatedMLP | None = None
        self.post_attention_norm: torch.nn.Module | None = None
        self.post_mlp_norm: torch.nn.Module | None = None
        if config.post_norm:
            self.post_attention_norm = make_norm(config, dtype, device)
            self.post_mlp_norm = make_norm(config, dtype, device)

    def pack(self) -> None:
        """Bring the projections into the layout of the CPU kernels."""
        for linear in (self.attention.qkv, self.attention.output, self.mlp.up, self.mlp.down):
            linear.pack()
        if not self.parallel:
            assert self.mlp_norm is not None, "only parallel blocks share a norm"
            self.attention_block = self.attention.fused_with(self.attention_norm)
            self.mlp_block = self.mlp.fused_with(self.mlp_norm)

    def _attend(
        self,
        residual: torch.Tensor,
        delta: torch.Tensor | None,
        tables: RotaryTables,
        metadata: AttentionMetadata,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
    ) -> torch.Tensor:
        if self.attention_block is None:
            normed = self.attention_norm.forward(residual, delta)
            return self.attention.forward(normed, tables, metadata, k_cache, v_cache)
        return ops.attention_block(
            residual,
            delta,
            self.attention_block,
            tables.rotary,
            tables.sink_rotary,
            k_cache,
            v_cache,
            metadata.slot_mapping,
            metadata.block_table,
            metadata.query_start_loc,
            metadata.seq_lens,
            metadata.num_sink_tokens,
            metadata.window_size,
            metadata.window_floor,
            metadata.ring_blocks,
        )

    def _feed_forward(self, residual: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        if self.mlp_block is not None:
            return ops.gated_mlp(residual, delta, self.mlp_block)
        assert self.mlp_norm is not None
        return self.mlp.forward(self.mlp_norm.forward(residual, delta))

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
        metadata: AttentionMetadata,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
    ) -> torch.Tensor:
        """Add the last layer's ``delta`` to ``residual`` in place; return this layer's."""
        if self.parallel:
            normed = self.attention_norm.forward(residual, delta)
            attended = self.attention.forward(normed, tables, metadata, k_cache, v_cache)
            if self.mlp_norm is not None:
                normed = self.mlp_norm.forward(residual, None)
            attended.add_(self.mlp.forward(normed))
            return attended if self.group is None else self.group.sum(attended)
        attended = self._attend(residual, delta, tables, metadata, k_cache, v_cache)
        if self.group is not None:
            attended = self.group.sum(attended)
        if self.post_attention_norm is not None:
            attended = self.post_attention_norm.forward(attended, None)
        delta = self._feed_forward(residual, attended)
        if self.group is not None:
            delta = self.group.sum(delta)
        if self.post_mlp_norm is not None:
            delta = self.post_mlp_norm.forward(delta, None)
        return delta


class Decoder(torch.nn.Module):
    """A model; its parameters are uninitialised memory until a checkpoint fills them.

    Args:
        config: of the whole model.
        rank: whose part of the model this is; ``config`` becomes that of the part.
        group: all ranks, this one included.
    """

    def __init__(
        self,
        config: ModelConfig,
        attention: AttentionBackend,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        rank: Rank = WHOLE,
        group: RankGroup | None = None,
    ) -> None:
        super().__init__()
        device = torch.device(device)
        self.config = config = shard_config(config, rank)
        self.group = group
        # Layers mostly share their angles: one table per kind and step.
        rotaries = list(dict.fromkeys(layer.rotary for layer in config.layers))
        self.rotaries = [make_rotary(rotary, device) for rotary in rotaries]
        self.layer_rotary = [rotaries.index(layer.rotary) for layer in config.layers]
        hidden, vocab = config.hidden_size, config.vocab_size
        self.embedding = Embedding(
            vocab, hidden, scale=config.embedding_scale, dtype=dtype, device=device
        )
        self.positions = None
        if config.learned_positions:
            self.positions = Embedding(config.learned_positions, hidden, dtype=dtype, device=device)
        self.layers = torch.nn.ModuleList(
            DecoderLayer(
                config, layer.local_window, attention, dtype=dtype, device=device, group=group
            )
            for layer in config.layers
        )
        self.norm = make_norm(config, dtype, device)
        # A tied head shares the Parameter, which named_parameters() lists once, as the embedding's.
        tied = self.embedding.weight if config.tie_word_embeddings else None
        self.head_widths = [
            len(vocabulary_of(config, Rank(index, rank.size))) for index in range(rank.size)
        ]
        if tied is not None and rank.size > 1:
            span = vocabulary_of(config, rank)
            tied = torch.nn.Parameter(tied.data[span.start : span.stop], requires_grad=False)
        self.head = Linear(
            hidden,
            self.head_widths[rank.index],
            bias=config.head_bias,
            dtype=dtype,
            device=device,
            weight=tied,
        )
        # All layers as a single op, where there is one, once weights are packed.
        self.fused_layers: ops.DecoderLayers | None = None

    def pack_weights(self) -> None:
        """Bring all projections into the layout of the CPU kernels, one at a time, if that is where
        they are. From then on neither parameters nor parts may be replaced."""
        if self.embedding.weight.device.type == "cpu":
            for layer in self.layers:
                assert isinstance(layer, DecoderLayer)
                layer.pack()
            self.head.pack()
            self.fused_layers = self._fuse_layers()
        for module in self.modules():
            # Plain attributes: torch would search for each of them in Python, 20 times per layer.
            module.__dict__.update(module._modules | module._parameters | module._buffers)

    def _fuse_layers(self) -> ops.DecoderLayers | None:
        attention, mlp = [], []
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            if layer.attention_block is None or layer.mlp_block is None:
                return None
            if layer.post_attention_norm is not None or layer.group is not None:
                return None
            attention.append(layer.attention_block)
            mlp.append(layer.mlp_block)
        config, dtype = self.config, self.embedding.weight.dtype
        heads = (config.num_kv_heads, config.head_dim)
        return ops.DecoderLayers(attention, mlp, self.layer_rotary, *heads, dtype)

    def forward(
        self,
        token_ids: torch.Tensor,
        metadata: AttentionMetadata,
        kv_caches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor:
        """Run one step.

        Args:
            token_ids: int64 [T].
            metadata: the step's batch.
            kv_caches: K and V of each layer, written at ``metadata.slot_mapping``, then read; each
                is asked for when its layer is next.

        Returns:
            [T, hidden_size] after the final norm.
        """
        residual, delta = self.embedding.forward(token_ids), None
        if self.positions is not None:
            residual += self.positions.forward(metadata.positions)
        tables = [r.tables(metadata.positions, metadata.sink_positions) for r in self.rotaries]
        if self.fused_layers is not None:
            delta = self._run_fused(self.fused_layers, residual, tables, metadata, kv_caches)
            return self.norm.forward(residual, delta)
        for layer, rotary, (k_cache, v_cache) in zip(
            self.layers, self.layer_rotary, kv_caches, strict=True
        ):
            delta = layer.forward(residual, delta, tables[rotary], metadata, k_cache, v_cache)
        return self.norm.forward(residual, delta)

    @staticmethod
    def _run_fused(
        layers: ops.DecoderLayers,
        residual: torch.Tensor,
        tables: list[RotaryTables],
        metadata: AttentionMetadata,
        kv_caches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor:
        k_caches, v_caches = zip(*kv_caches, strict=True)
        sink_rotary = []
        if any(table.sink_rotary is not None for table in tables):
            # Only a table without angles has none for the sinks then.
            sink_rotary = [t.rotary if t.sink_rotary is None else t.sink_rotary for t in tables]
        return ops.decoder_layers(
            residual,
            layers,
            [table.rotary for table in tables],
            sink_rotary,
            k_caches,
            v_caches,
            metadata.slot_mapping,
            metadata.block_table,
            metadata.query_start_loc,
            metadata.seq_lens,
            metadata.num_sink_tokens,
            metadata.window_size,
            metadata.window_floor,
            metadata.ring_blocks,
        )

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return float32 [N, vocab_size] for the [N, hidden_size] rows that are sampled from."""
        logits = self.head.forward(hidden, float_output=True)
        if self.group is not None:
            logits = self.group.join_columns(logits, self.head_widths)
        cap = self.config.logits_softcap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


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


def make_rotary(config: RotaryConfig | None, device: torch.device) -> RotaryEmbedding:
    if config is None:
        return RotaryEmbedding((), 1.0, device)
    return RotaryEmbedding(config.inv_freq, config.attention_scaling, device)
