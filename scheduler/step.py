"""A step in the making: whose chunks it takes, and what is left of its budget."""

from __future__ import annotations

from collections.abc import Iterable

from .output import ScheduledSequence


class Step:
    """A step's shares, one per sequence.

    Attributes:
        budget: tokens that it can still take.
    """

    def __init__(self, max_num_tokens: int) -> None:
        self.budget = max_num_tokens
        self._shares: dict[int, ScheduledSequence] = {}

    @property
    def sequences(self) -> list[ScheduledSequence]:
        return list(self._shares.values())

    def add(self, share: ScheduledSequence) -> None:
        self._shares[share.seq_id] = share
        self.budget -= len(share.token_ids)

    def drop(self, seq_ids: Iterable[int]) -> None:
        """Leave sequences out, whether they have a share or not: what was prepared for one that
        has is as after a step that failed."""
        for seq_id in seq_ids:
            if (share := self._shares.pop(seq_id, None)) is not None:
                self.budget += len(share.token_ids)

    def budget_without(self, seq_id: int | None) -> int:
        """The budget if a sequence were left out."""
        share = None if seq_id is None else self._shares.get(seq_id)
        return self.budget + (0 if share is None else len(share.token_ids))
