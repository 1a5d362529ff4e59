"""A live stream done slowly: the published algorithm in float64, fed the same history."""

from __future__ import annotations

import copy
import functools

import torch

from paged_stream import SamplingParams
from tests.reference import PublishedStream, tiny_llama

NEAR = 1e-3  # float32 may choose another of two logits that are closer than this
VOCAB = 97


def greedy(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)


@functools.cache
def double_llama():
    return tiny_llama(0).to(torch.float64)


class Oracle:
    """`PublishedStream`, with the ids in its cache and the tokens that it has not computed."""

    def __init__(self, num_sink_tokens: int, window_size: int, model=None) -> None:
        self.stream = PublishedStream(model or double_llama(), num_sink_tokens, window_size)
        self.kept: list[int] = []
        self.pending: list[int] = []

    def fork(self) -> Oracle:
        other = copy.copy(self)
        other.stream = copy.copy(self.stream)
        other.stream.keys, other.stream.values = self.stream.keys[:], self.stream.values[:]
        other.kept, other.pending = self.kept[:], self.pending[:]
        return other

    @property
    def num_tokens(self) -> int:
        return self.stream.position + len(self.pending)

    @property
    def num_sinks(self) -> int:
        return self.stream.start_size

    @property
    def first_kept(self) -> int:
        """First position behind the sinks that is still there."""
        return self.stream.position - max(0, len(self.kept) - self.num_sinks)

    @property
    def has_next(self) -> bool:
        return bool(self.pending) or len(self.kept) > self.num_sinks

    def step(self, token_id: int) -> torch.Tensor:
        logits = self.stream.step(token_id)
        self.kept.append(token_id)
        if len(self.kept) > self.num_sinks + self.stream.recent_size:
            del self.kept[self.num_sinks]
        return logits

    def settle(self) -> None:
        while len(self.pending) > 1:
            self.step(self.pending.pop(0))

    def logits(self) -> torch.Tensor:
        """Of the token that comes next; the last one is computed for it, once more if need be."""
        if not self.pending:
            self.pending = [self.kept.pop()]
            self.stream.rewind(1)
        self.settle()
        return self.step(self.pending.pop())

    def take(self, token_id: int) -> None:
        """Go on with what an engine chose, which must be a most likely token."""
        logits = self.logits()
        assert logits[token_id] >= logits.max() - NEAR, "not the most likely token"
        self.pending = [token_id]

    def cut(self, start: int, end: int) -> None:
        self.settle()
        self.stream.cut(start, end)
        begin = self.num_sinks + start - self._window_start(len(self.kept))
        del self.kept[begin : begin + end - start]

    def _window_start(self, length: int) -> int:
        return self.stream.position - (length - self.num_sinks)

    def rewind(self, position: int) -> None:
        self.settle()
        forgotten = self.stream.position - position
        if forgotten > 0:
            self.stream.rewind(forgotten)
            del self.kept[len(self.kept) - forgotten :]
        self.pending = self.pending[: max(0, -forgotten)]


def text_ids(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB, (count,), generator=generator).tolist()


def tokens_of(deltas) -> list[int]:
    return [token for delta in deltas for token in delta.delta_token_ids]
