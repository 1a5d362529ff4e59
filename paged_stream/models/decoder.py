"""The decoder: token ids and a paged KV cache in, hidden states and logits out.

One decoder serves every family: what a `ModelConfig` declares is put together when the model is
built, so a step asks little. It runs T tokens of many sequences side by side; only attention knows
which is whose. Inside, ``forward`` is called instead of the module: looking for hooks takes as long
as the smaller kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from paged_stream import ops
from paged_stream.attention.backend import AttentionBackend
from paged_stream.attention.forward_batch import ForwardBatch
from paged_stream.layers.embedding import Embedding
from paged_stream.layers.large_pages import Arena
from paged_stream.layers.linear import Linear
from paged_stream.layers.low_rank import StepAdapters
from paged_stream.layers.rank_group import RankGroup
from paged_stream.layers.rotary import RotaryEmbedding, RotaryTables
from paged_stream.models.decoder_layer import DecoderLayer, make_norm
from paged_stream.models.model_config import ModelConfig, RotaryConfig
from paged_stream.models.sharding import WHOLE, Rank, shard_config, vocabulary_of


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
        self.dtype = dtype
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
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, DecoderLayer)
            for projection, linear in layer.projections.items():
                linear.place = index, projection
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
        # Told what each part has given, by its name, for finding faults.
        self.watch: Callable[..., None] | None = None

    def pack_weights(self) -> None:
        """Bring all projections into the layout of the CPU kernels, one at a time, if that is where
        they are. From then on neither parameters nor parts may be replaced."""
        if self.embedding.device.type == "cpu":
            arena = Arena()
            for layer in self.layers:
                assert isinstance(layer, DecoderLayer)
                layer.pack(arena)
            self.head.pack(arena)
            is_tied = self.config.tie_word_embeddings and self.group is None
            self.embedding.pack(arena, self.head.packed_weight if is_tied else None)
            self.fused_layers = self._fuse_layers()
        for module in self.modules():
            # Plain attributes: torch would search for each of them in Python, 20 times per layer.
            module.__dict__.update(module._modules | module._parameters | module._buffers)

    def _fuse_layers(self) -> ops.DecoderLayers | None:
        attention, mlp = [], []
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            if layer.fused_attention is None or layer.fused_mlp is None:
                return None
            if layer.post_attention_norm is not None or layer.group is not None:
                return None
            attention.append(layer.fused_attention)
            mlp.append(layer.fused_mlp)
        return ops.DecoderLayers(attention, mlp, self.layer_rotary)

    def forward(
        self,
        batch: ForwardBatch,
        kv_caches: Iterable[tuple[torch.Tensor, torch.Tensor]],
        adapters: StepAdapters | None = None,
    ) -> torch.Tensor:
        """Run one step.

        Args:
            batch: the step's batch of T tokens.
            kv_caches: K and V of each layer, written at the batch's slots, then read; each is asked
                for when its layer is next.
            adapters: of the tokens that have one; ``None`` if none has.

        Returns:
            [T, hidden_size] after the final norm.
        """
        tensors = batch.tensors
        residual, delta = self.embedding.forward(tensors.token_ids), None
        if self.positions is not None:
            residual += self.positions.forward(tensors.positions)
        if self.watch is not None:
            self.watch("the embedding", residual)
        sink_positions = tensors.sink_positions if batch.has_gap else None
        tables = [r.tables(tensors.positions, sink_positions) for r in self.rotaries]
        if self.fused_layers is not None and self.watch is None:
            delta = self._run_fused(
                self.fused_layers, residual, tables, tensors, kv_caches, adapters
            )
            return self.norm.forward(residual, delta)
        for index, (layer, rotary, (k_cache, v_cache)) in enumerate(
            zip(self.layers, self.layer_rotary, kv_caches, strict=True)
        ):
            delta = layer.forward(
                residual, delta, tables[rotary], batch, k_cache, v_cache, adapters
            )
            if self.watch is not None:
                self.watch(f"layer {index}", residual, delta)
        return self.norm.forward(residual, delta)

    @staticmethod
    def _run_fused(
        layers: ops.DecoderLayers,
        residual: torch.Tensor,
        tables: list[RotaryTables],
        batch: ops.BatchTensors,
        kv_caches: Iterable[tuple[torch.Tensor, torch.Tensor]],
        adapters: StepAdapters | None,
    ) -> torch.Tensor:
        k_caches, v_caches = zip(*kv_caches, strict=True)
        sink_rotary = []
        if any(table.sink_rotary is not None for table in tables):
            # Only a table without angles has none for the sinks then.
            sink_rotary = [t.rotary if t.sink_rotary is None else t.sink_rotary for t in tables]
        rotary = [table.rotary for table in tables]
        return ops.decoder_layers(
            residual,
            layers,
            rotary,
            sink_rotary,
            k_caches,
            v_caches,
            batch,
            () if adapters is None else adapters.laid_out,
            None if adapters is None else adapters.row_adapters,
        )

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return float32 [N, vocab_size] for the [N, hidden_size] rows that are sampled from."""
        logits = self.head.forward(hidden, float_output=True)
        if self.group is not None:
            logits = self.group.join_columns(logits, self.head_widths)
        cap = self.config.logits_softcap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def make_rotary(config: RotaryConfig | None, device: torch.device) -> RotaryEmbedding:
    if config is None:
        return RotaryEmbedding((), 1.0, device)
    return RotaryEmbedding(config.inv_freq, config.attention_scaling, device)
