"""Attention logits and probabilities of every layer and head, which kernels never write down.

A recording backend takes the kernels' place: attention over a short text in plain torch, from the
queries and keys that the model itself has rotated.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from paged_stream.attention.backend import AttentionBackend
from paged_stream.attention.forward_batch import ForwardBatch
from paged_stream.config import EngineConfig
from paged_stream.models.decoder import Decoder
from paged_stream.models.formats.resolve import resolve_model
from paged_stream.models.loader import load_config, load_model
from paged_stream.models.model_config import ModelConfig
from paged_stream.ops import FULL_ATTENTION, Scoring, SequenceColumns, lay_out_batch
from paged_stream.setting_kinds import Dtype, Quantization
from paged_stream.system.progress_bar import progress_bar
from paged_stream.worker.kv_cache import KVCache
from paged_stream.worker.worker import resolve_dtype

_QUERIES = 256  # attended to at a time; bounds memory, changes nothing


class RecordingBackend(AttentionBackend):
    """Full causal attention over one text that is computed in a single step.

    Args:
        num_sinks: first tokens whose share of the attention is recorded.

    After each pass ``shares`` has [num_heads, T, num_sinks] per layer, and ``logits``, if they
    ``keep_logits``, [num_heads, T, T] with NaN where a query sees no key.
    """

    def __init__(self, num_sinks: int, *, keep_logits: bool = False) -> None:
        self.num_sinks = num_sinks
        self.keep_logits = keep_logits
        self.shares: list[torch.Tensor] = []
        self.logits: list[torch.Tensor] = []

    def forward(
        self,
        query: torch.Tensor,
        sink_query: torch.Tensor | None,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        batch: ForwardBatch,
        scoring: Scoring,
    ) -> torch.Tensor:
        assert len(batch.tensors.seq_lens) == 1 and sink_query is None, "one text, nothing evicted"
        num_tokens, num_heads, _ = query.shape
        groups = num_heads // k_cache.shape[1]
        # The text is in the only block, in order: [heads, T, head_dim].
        key, value = (
            cache[0, :, :num_tokens].float().repeat_interleave(groups, dim=0)
            for cache in (k_cache, v_cache)
        )
        positions = batch.tensors.positions
        outputs, logits, shares = [], [], []
        for part in positions.split(_QUERIES):
            scores = query[part].float().transpose(0, 1) @ key.mT * scoring.scale
            distance = part[:, None] - positions
            if scoring.alibi_slopes is not None:
                scores -= distance * scoring.alibi_slopes[:, None, None]
            if scoring.softcap is not None:
                scores = scoring.softcap * (scores / scoring.softcap).tanh()
            hidden = distance < 0
            if scoring.local_window is not None:
                hidden |= distance >= scoring.local_window
            weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
            outputs.append(weights @ value)
            shares.append(weights[:, :, : self.num_sinks])
            if self.keep_logits:
                logits.append(scores.masked_fill(hidden, torch.nan))
        self.shares.append(torch.cat(shares, dim=1))
        if self.keep_logits:
            self.logits.append(torch.cat(logits, dim=1))
        return torch.cat(outputs, dim=1).transpose(0, 1).to(query.dtype)


class AttentionProbe:
    """A model whose attention is recorded.

    Raises:
        ValueError: as `LLMEngine`.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: Dtype = "auto",
        quantization: Quantization | None = "auto",
        cache_dir: str | os.PathLike[str] | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        num_threads: int | None = None,
        show_progress: bool = False,
    ) -> None:
        config = EngineConfig(
            model=model,
            cache_dir=cache_dir,
            tokenizer=tokenizer,
            dtype=dtype,
            quantization=quantization,
            num_threads=num_threads,
        )
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self._show_progress = show_progress
        files = resolve_model(
            config.model, cache_dir=config.cache_dir, with_tokenizer=config.tokenizer is None
        )
        self.config: ModelConfig = load_config(files)
        self._backend = RecordingBackend(0)
        self._dtype = resolve_dtype(config.dtype, self.config.dtype)
        self._decoder: Decoder = load_model(
            files, self.config, self._dtype, "cpu", self._backend, config.actual_quantization
        )
        self._decoder.pack_weights()

    def average_logits(self, samples: Sequence[Sequence[int]]) -> torch.Tensor:
        """Logits averaged over texts of one length T: [layers, heads, T, T], NaN where a query
        sees no key. The paper's figure 2 has 256 texts of 16 tokens."""
        total: torch.Tensor | None = None
        for sample in progress_bar(
            samples, unit=" samples", desc="attention maps", disable=not self._show_progress
        ):
            _, logits = self._run(sample, num_sinks=0, keep_logits=True)
            assert logits is not None
            total = logits if total is None else total + logits
        assert total is not None, "no samples"
        return total / len(samples)

    def sink_shares(
        self, token_ids: Sequence[int], *, num_sinks: int, first_query: int
    ) -> torch.Tensor:
        """Share of attention that each of the first ``num_sinks`` tokens gets, averaged over the
        queries from ``first_query`` on: [layers, heads, num_sinks]."""
        shares, _ = self._run(token_ids, num_sinks=num_sinks)
        return shares[:, :, first_query:].mean(dim=2)

    @torch.inference_mode()
    def _run(
        self, token_ids: Sequence[int], *, num_sinks: int, keep_logits: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        backend, config, length = self._backend, self.config, len(token_ids)
        backend.num_sinks, backend.keep_logits = num_sinks, keep_logits
        backend.shares, backend.logits = [], []
        cache = KVCache(
            num_layers=config.num_layers,
            num_blocks=1,
            num_kv_heads=config.num_kv_heads,
            block_size=length,
            head_dim=config.head_dim,
            dtype=self._dtype,
            device=torch.device("cpu"),
        )
        self._decoder.forward(_one_text(token_ids), cache.layers)
        logits = torch.stack(backend.logits) if keep_logits else None
        return torch.stack(backend.shares), logits


def _one_text(token_ids: Sequence[int]) -> ForwardBatch:
    """A step that computes one text whole, in a single block as long as it is."""
    length = len(token_ids)
    sequence = SequenceColumns([length], [0], [0], [FULL_ATTENTION], [0], [1], [1])
    block_row = torch.zeros(1, dtype=torch.int32)
    ids = torch.tensor(token_ids, dtype=torch.int32)
    tensors, has_gap = lay_out_batch(ids, block_row, sequence, length)
    return ForwardBatch(tensors=tensors, has_gap=has_gap, host=tensors)
