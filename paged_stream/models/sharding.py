"""Tensor parallelism: which part of every parameter a rank holds. Nothing else decides it.

Attention heads, the feed-forward block's inner channels and the vocabulary of the head are split;
norms and embeddings are on every rank. A rank's decoder is an ordinary one with fewer heads and
channels, whose attention and feed-forward block each give a part of a sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from paged_stream.models.model_config import ModelConfig


@dataclass(frozen=True, slots=True)
class Rank:
    """Rank ``index`` of ``size``."""

    index: int
    size: int


WHOLE = Rank(0, 1)


@dataclass(frozen=True, slots=True)
class Part:
    """What a rank holds of one parameter.

    Args:
        rows: the spans of the whole parameter's rows that make the rank's, in order. None at all
            means that the rank has zeros: a bias that is added once.
        columns: the span of its columns, or ``None`` for all of them.
    """

    rows: tuple[range, ...]
    columns: range | None = None

    def pieces(self, start: int, stop: int) -> Iterator[tuple[slice, slice]]:
        """What rows ``[start, stop)`` of the whole parameter hold for the rank.

        Yields:
            The rank's rows, and where they are behind ``start``.
        """
        first = 0
        for span in self.rows:
            low, high = max(start, span.start), min(stop, span.stop)
            if low < high:
                mine = first + low - span.start
                yield slice(mine, mine + high - low), slice(low - start, high - start)
            first += len(span)

    def of(self, tensor: torch.Tensor, features: int = 1, per: int = 1) -> torch.Tensor:
        """The rank's part of a whole matrix or vector.

        Args:
            features: a column of ``tensor`` is ``per / features`` of them; quantised blocks have
                ``per`` bytes for ``features`` features.
        """
        if self.columns is None and self.rows == (range(len(tensor)),):
            return tensor
        rows = torch.cat([tensor[span.start : span.stop] for span in self.rows])
        if self.columns is None:
            return rows
        span = self.columns
        return rows[:, span.start // features * per : span.stop // features * per].contiguous()


def check_size(config: ModelConfig, size: int) -> None:
    """Refuse a number of ranks that does not divide the model.

    Raises:
        ValueError: names what cannot be divided.
    """
    name = f"tensor_parallel_size={size}"
    if config.num_heads % size:
        raise ValueError(f"{name} must divide the model's {config.num_heads} attention heads")
    if config.num_kv_heads % size and size % config.num_kv_heads:
        raise ValueError(
            f"{name} must divide the model's {config.num_kv_heads} KV heads or be a multiple of "
            "their number"
        )
    if config.intermediate_size % size:
        raise ValueError(
            f"{name} must divide the feed-forward block's size of {config.intermediate_size}"
        )
    if config.vocab_size < size:
        raise ValueError(f"{name} must be at most the vocabulary's size of {config.vocab_size}")
    if config.qk_norm == "full" and size > 1:
        raise ValueError(
            f"{name}: {config.model_type} normalises Q and K over all heads together, which cannot "
            "be split; leave tensor_parallel_size at 1"
        )


def shard_config(config: ModelConfig, rank: Rank) -> ModelConfig:
    """The configuration of one rank's decoder.

    Raises:
        ValueError: as `check_size`.
    """
    if rank.size == 1:
        return config
    check_size(config, rank.size)
    heads, kv_heads = query_heads(config, rank), kv_heads_of(config, rank)
    slopes = config.alibi_slopes
    return replace(
        config,
        num_heads=len(heads),
        num_kv_heads=len(kv_heads),
        intermediate_size=config.intermediate_size // rank.size,
        alibi_slopes=None if slopes is None else slopes[heads.start : heads.stop],
    )


def query_heads(config: ModelConfig, rank: Rank) -> range:
    """The rank's query heads."""
    return _share(config.num_heads, rank)


def kv_heads_of(config: ModelConfig, rank: Rank) -> range:
    """The rank's KV heads; several ranks have the same one if there are fewer than ranks."""
    if config.num_kv_heads >= rank.size:
        return _share(config.num_kv_heads, rank)
    head = rank.index * config.num_kv_heads // rank.size
    return range(head, head + 1)


def vocabulary_of(config: ModelConfig, rank: Rank) -> range:
    """The tokens whose logits the rank computes."""
    return _share(config.vocab_size, rank)


def part_of(config: ModelConfig, name: str, num_rows: int, rank: Rank) -> Part:
    """What a rank holds of the decoder's parameter ``name``, which has ``num_rows`` rows.

    Args:
        config: of the whole model.
    """
    whole = Part((range(num_rows),))
    if rank.size == 1:
        return whole
    module, kind = name.rsplit(".", 1)
    if module == "head":
        return Part((vocabulary_of(config, rank),))
    if module.endswith("attention.qkv"):
        return Part(_qkv_rows(config, rank))
    if module.endswith("mlp.up"):
        inner, span = config.intermediate_size, _share(config.intermediate_size, rank)
        starts = range(0, num_rows, inner)  # gate and up, or up alone
        return Part(tuple(range(first + span.start, first + span.stop) for first in starts))
    if module.endswith(("attention.output", "mlp.down")):
        if kind == "bias":
            return whole if rank.index == 0 else Part(())
        size = config.query_size if module.endswith("output") else config.intermediate_size
        return Part(whole.rows, _share(size, rank))
    if config.qk_norm == "per_head":
        if module.endswith("query_norm"):
            return Part((_channels(query_heads(config, rank), config.head_dim),))
        if module.endswith("key_norm"):
            return Part((_channels(kv_heads_of(config, rank), config.head_dim),))
    return whole


def whole_rows(config: ModelConfig, name: str, num_rows: int, rank: Rank) -> int:
    """Rows of the parameter ``name``, of which a rank has ``num_rows``."""
    module = name.rsplit(".", 1)[0]
    if module == "head":
        return config.vocab_size
    if module.endswith("attention.qkv"):
        return config.query_size + 2 * config.kv_size
    if module.endswith("mlp.up"):
        return num_rows * rank.size
    if config.qk_norm == "per_head" and module.endswith("query_norm"):
        return config.query_size
    if config.qk_norm == "per_head" and module.endswith("key_norm"):
        return config.kv_size
    return num_rows


def _qkv_rows(config: ModelConfig, rank: Rank) -> tuple[range, ...]:
    queries = _channels(query_heads(config, rank), config.head_dim)
    keys = _channels(kv_heads_of(config, rank), config.head_dim)
    first_key, first_value = config.query_size, config.query_size + config.kv_size
    return (
        queries,
        range(first_key + keys.start, first_key + keys.stop),
        range(first_value + keys.start, first_value + keys.stop),
    )


def _share(count: int, rank: Rank) -> range:
    return range(count * rank.index // rank.size, count * (rank.index + 1) // rank.size)


def _channels(heads: range, head_dim: int) -> range:
    return range(heads.start * head_dim, heads.stop * head_dim)
