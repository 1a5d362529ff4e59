"""The scheduler's fixed limits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits of one scheduler.

    Args:
        num_blocks: blocks in the cache.
        block_size: tokens per block.
        max_num_seqs: sequences in one step.
        max_num_batched_tokens: tokens in one step, over all sequences.
        max_model_len: longest sequence under full attention; windows have no limit.
        num_decode_steps: steps that sequences may decode by themselves, without a look in between.
        chunk_size: cut prompts at multiples of so many tokens and nowhere else, which must fit
            beside single tokens of all others; ``None`` cuts them as the budget allows.
        enable_prefix_caching: look for the leading blocks of new sequences in the cache.

    Raises:
        ValueError: a limit below 1, or a token budget that cannot hold one token per sequence.
    """

    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    num_decode_steps: int = 1
    chunk_size: int | None = None
    enable_prefix_caching: bool = True

    def __post_init__(self) -> None:
        names = ("num_blocks", "block_size", "max_num_seqs", "max_model_len", "num_decode_steps")
        for name in names:
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens must be >= max_num_seqs ({self.max_num_seqs}), so that "
                f"every sequence can decode, got {self.max_num_batched_tokens}"
            )
        fits = self.max_num_seqs - 1 + (self.chunk_size or 1) <= self.max_num_batched_tokens
        assert fits, "a chunk would wait for ever"
