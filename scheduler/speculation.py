"""Guesses of what sequences that decode will sample next, so that one step computes several tokens.

A step computes the guessed tokens behind the last known one and samples behind each of them. What
is sampled before the first wrong guess, and in its place, is what single steps would have sampled:
results do not depend on what is computed beside them. What was written behind that is as what
sequences that decode for several steps write beyond their turn's end.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from .kv_cache_manager import KVCacheManager
from .output import ScheduledSequence
from .sequence import Sequence as TokenSequence

# A step takes about as long for so many tokens as the reading of the weights does, so guesses are
# for steps of few sequences.
MAX_STEP_TOKENS = 16
MAX_GUESSES = MAX_STEP_TOKENS - 1  # of a sequence
_MAX_REST = 16  # tokens without a guess, after guesses that were wrong


class Guesser(Protocol):
    """Guesses how sequences go on.

    Attributes:
        num_tokens: the most that are guessed at once, at most `MAX_GUESSES`. Every ring has room
            for a chunk of so many and one more.
    """

    @property
    def num_tokens(self) -> int: ...

    def guess(self, wanted: Sequence[tuple[TokenSequence, int]]) -> list[array[int]]:
        """The tokens that follow each sequence's last one: up to as many as stand beside it."""

    def forget(self, seq_id: int) -> None:
        """A sequence is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLookup:
    """Guess what followed when the last tokens were seen before (prompt lookup decoding, Saxena
    2023).

    Args:
        num_tokens: the most that are guessed at once.
        max_ngram: the most last tokens that are looked for.
        min_ngram: the fewest.
    """

    num_tokens: int
    max_ngram: int
    min_ngram: int

    def guess(self, wanted: Sequence[tuple[TokenSequence, int]]) -> list[array[int]]:
        return [self.look_up(sequence.visible_token_ids(), count) for sequence, count in wanted]

    def forget(self, seq_id: int) -> None: ...

    def look_up(self, seen: array[int], count: int) -> array[int]:
        """The ``count`` tokens that followed the latest place where most of the last tokens stand
        as well; none if not even ``min_ngram`` of them do. Where what followed ends with ``seen``
        itself, the text is taken to go round."""
        start = None
        for length in range(self.min_ngram, min(self.max_ngram, len(seen) - 1) + 1):
            if (found := _find_before(seen, length)) is None:
                break
            start = found + length
        if start is None:
            return array("i")
        period = len(seen) - start
        rounds = -(-count // period)
        return (seen[start:] * rounds)[:count]


def _find_before(seen: array[int], length: int) -> int | None:
    """Where the last ``length`` tokens were seen last before the end."""
    size, data = seen.itemsize, memoryview(seen).cast("B").tobytes()
    wanted = data[len(data) - length * size :]
    end = len(data) - 1
    while (at := data.rfind(wanted, 0, end)) >= 0:
        if at % size == 0:
            return at // size
        end = at + len(wanted) - 1
    return None


@dataclass(slots=True)
class Pace:
    """How many tokens of a sequence are guessed at once: more while guesses are right."""

    length: int
    rest: int = 0  # tokens to go without a guess
    num_misses: int = 0  # steps in a row

    def note(self, num_guessed: int, num_right: int, most: int) -> None:
        """Learn from a step."""
        if num_right == num_guessed:
            self.length = min(most, max(self.length, 2 * num_guessed))
        else:
            self.length = min(most, num_right + 1)
        self.num_misses = 0 if num_right else self.num_misses + 1
        self.rest = min(_MAX_REST, (1 << self.num_misses) - 2) if self.num_misses else 0


class Speculator:
    """Extends steps by guesses.

    Attributes:
        num_draft_tokens: tokens that were guessed and computed.
        num_accepted_tokens: those of them that were right.
    """

    def __init__(
        self,
        kv: KVCacheManager,
        guesser: Guesser,
        sequences: Mapping[int, TokenSequence],
    ) -> None:
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0
        self._kv = kv
        self._guesser = guesser
        self._sequences = sequences
        self._paces: dict[int, Pace] = {}

    def forget(self, seq_id: int) -> None:
        """A sequence is gone."""
        self._paces.pop(seq_id, None)
        self._guesser.forget(seq_id)

    def extend(self, shares: Sequence[ScheduledSequence], budget: int) -> list[ScheduledSequence]:
        """Add guesses to the shares of sequences that decode, where there are any.

        Args:
            budget: tokens that the step can still take.
        """
        extended = list(shares)
        decoding = [index for index, share in enumerate(shares) if share.decodes_alone]
        room = min(budget, MAX_STEP_TOKENS - sum(len(share.token_ids) for share in shares))
        if room < len(decoding):
            return extended
        counts = {index: self._wanted(shares[index], room // len(decoding)) for index in decoding}
        counts = {index: count for index, count in counts.items() if count}
        wanted = [(self._sequences[shares[index].seq_id], count) for index, count in counts.items()]
        guesses = self._guesser.guess(wanted) if wanted else []
        for index, guessed in zip(counts, guesses, strict=True):
            if guessed:
                extended[index] = self._extend(shares[index], guessed)
        return extended

    def steps_until_guess(self, shares: Sequence[ScheduledSequence]) -> int:
        """How many steps these may decode for before there is anything to guess."""
        if 2 * len(shares) > MAX_STEP_TOKENS:  # no room for a guess of each
            return sys.maxsize
        return max(1, min((self._pace(share.seq_id).rest for share in shares), default=1))

    def note(self, share: ScheduledSequence, num_sampled: int) -> None:
        """Learn from what a step has sampled behind a share."""
        pace = self._pace(share.seq_id)
        if share.num_draft_tokens:
            num_right = max(0, num_sampled - 1)
            self.num_draft_tokens += share.num_draft_tokens
            self.num_accepted_tokens += num_right
            pace.note(share.num_draft_tokens, num_right, self._guesser.num_tokens)
        else:
            pace.rest = max(0, pace.rest - num_sampled)

    def _pace(self, seq_id: int) -> Pace:
        pace = self._paces.get(seq_id)
        if pace is None:
            pace = self._paces[seq_id] = Pace(length=self._guesser.num_tokens)
        return pace

    def _wanted(self, share: ScheduledSequence, most: int) -> int:
        """How many tokens to guess for a share."""
        pace = self._pace(share.seq_id)
        if pace.rest:
            return 0
        count = 1 + min(most, pace.length, share.max_new_tokens - 1)
        start = share.num_computed_tokens
        return self._kv.fit(share.seq_id, start, count, may_grow=False) - 1 if count > 1 else 0

    def _extend(self, share: ScheduledSequence, guessed: array[int]) -> ScheduledSequence:
        token_ids = share.token_ids + guessed
        self._kv.allocate(share.seq_id, share.num_computed_tokens + len(token_ids))
        return replace(
            share,
            token_ids=token_ids,
            block_row=self._kv[share.seq_id].hand_out(),
            num_draft_tokens=len(guessed),
        )
