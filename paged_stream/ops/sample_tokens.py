"""From logits to tokens."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from paged_stream.ops.library import ops

NO_TOKEN = -1


class SamplingTensors(NamedTuple):
    """What N rows of logits are sampled by, on the device of the logits.

    The op takes it as one ``Tensor[]``, in the order of the fields; ``csrc/include/
    sampling_checks.h`` reads it.

    Args:
        temperature: float64 [N], 0 or in [1e-5, 1e30]. 0 takes the first of the largest logits.
        min_p: float64 [N], in [0, 1].
        top_k: int64 [N]; 0 and less keep all.
        top_p: float64 [N], in (0, 1].
        seeds: int64 [N].
    """

    temperature: Tensor
    min_p: Tensor
    top_k: Tensor
    top_p: Tensor
    seeds: Tensor


def sample_tokens(logits: Tensor, sampling: SamplingTensors, positions: Tensor) -> Tensor:
    """Sample one token per row; a row's is the same bits whatever rows stand beside it.

    A token's weight is ``exp((logit - largest) / temperature)`` in float64. Kept are the tokens
    whose weight is at least min_p and whose logit is at least the top_k-th largest; of these, in
    descending order (equal ones by id), those before which the others have not reached top_p of
    the weight yet. The kept tokens' cumulative distribution, by id, is inverted at a number that
    is a hash of seed and position.

    Args:
        logits: float32 [N, vocab], rows strided.
        sampling: of each row.
        positions: int64 [N], where the sampled tokens will stand.

    Returns:
        int64 [N]; `NO_TOKEN` for a row that has no distribution: any of its logits is NaN, or the
        largest is infinite.
    """
    return ops.sample_tokens.default(logits, sampling, positions)
