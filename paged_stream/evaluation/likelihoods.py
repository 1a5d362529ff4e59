"""How likely texts are, many at a time: continuations of contexts, and whole texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from paged_stream.engine.api import EngineApi
from paged_stream.engine.outputs import TokenLogprob
from paged_stream.scheduler.sampling_params import SamplingParams

# Tokens whose log-probabilities are in memory at a time, at about 200 bytes for each.
_TOKENS_AT_ONCE = 1 << 20

Item = TypeVar("Item")


class Pair(NamedTuple):
    """Token ids of a context and of what may follow it; neither is empty."""

    context: list[int]
    continuation: list[int]

    @property
    def num_tokens(self) -> int:
        return len(self.context) + len(self.continuation)


class Likelihood(NamedTuple):
    """Of a continuation: the sum of its tokens' natural log-probabilities, and whether each of them
    is the most likely one at its place."""

    logprob: float
    is_greedy: bool


def continuation_likelihoods(
    engine: EngineApi, pairs: Sequence[Pair], max_length: int | None = None
) -> Iterator[Likelihood]:
    """Tell how likely each continuation is behind its context.

    Args:
        max_length: leave out the beginnings of contexts so that no token has more than so many
            before it; ``None`` leaves out nothing.

    Raises:
        ValueError: a continuation is longer than ``max_length``, or as `EngineApi.generate`.
    """
    for _, continuation in pairs:
        if max_length is not None and len(continuation) > max_length:
            raise ValueError(
                f"a continuation must have at most max_length={max_length} tokens, "
                f"got {len(continuation)}"
            )
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    for batch in batches(pairs, [pair.num_tokens for pair in pairs]):
        prompts = [(context + continuation) for context, continuation in batch]
        if max_length is not None:
            prompts = [prompt[-(max_length + 1) :] for prompt in prompts]
        outputs = engine.generate(prompts, params, use_tqdm=False)
        for pair, output in zip(batch, outputs, strict=True):
            yield _likelihood(output.prompt_logprobs or [], len(pair.continuation))


def _likelihood(entries: Sequence[TokenLogprob | None], count: int) -> Likelihood:
    """Of the last ``count`` tokens."""
    known = [entry for entry in entries[len(entries) - count :] if entry is not None]
    assert len(known) == count, "nothing precedes the first token"
    return Likelihood(sum(entry.logprob for entry in known), all(e.rank == 1 for e in known))


def batches(items: Sequence[Item], sizes: Iterable[int]) -> Iterator[list[Item]]:
    """Cut a list where the sizes reach what may be in memory at a time; each part has an item."""
    batch: list[Item] = []
    total = 0
    for item, size in zip(items, sizes, strict=True):
        if batch and total + size > _TOKENS_AT_ONCE:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size
    if batch:
        yield batch
