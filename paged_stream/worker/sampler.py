"""From logits to tokens. A request gets what its own logits, parameters and seed say, no more."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import torch

from paged_stream import ops
from paged_stream.scheduler.output import ScheduledSequence, TokenLogprob
from paged_stream.worker.logits import NoTokenError, change_logits
from paged_stream.worker.staging import to_device

logger = logging.getLogger(__name__)

NO_TOKEN = -1


def sampling_tensors(sequences: Sequence[ScheduledSequence]) -> ops.SamplingTensors:
    """Collect on the host the parameters of sequences that sample."""
    params = [s.sampling_params for s in sequences]
    return ops.SamplingTensors(
        temperature=_float64([0.0 if p.greedy else p.temperature for p in params]),
        min_p=_float64([p.min_p for p in params]),
        top_k=_int64([p.top_k for p in params]),
        top_p=_float64([p.top_p for p in params]),
        seeds=_int64([_as_int64(s.seed) for s in sequences]),
    )


class Draw(NamedTuple):
    """What the sampling of a step needs on the device of its logits.

    Args:
        rows: int64 [N], the rows of the batch's tokens that are sampled from.
        positions: int64 [N], where the sampled tokens will stand.
        sampling: of the N sequences.
    """

    rows: torch.Tensor
    positions: torch.Tensor
    sampling: ops.SamplingTensors


def prepare_draw(
    sequences: Sequence[ScheduledSequence], rows: Sequence[int], device: torch.device
) -> Draw:
    """Bring what sampling needs to the device, before the step is computed there."""
    positions = [sequence.num_tokens for sequence in sequences]
    host = _int64(rows), _int64(positions), *sampling_tensors(sequences)
    moved = to_device(host, device)
    return Draw(moved[0], moved[1], ops.SamplingTensors(*moved[2:]))


def sample(
    logits: torch.Tensor, sequences: list[ScheduledSequence], draw: Draw
) -> tuple[list[int], list[TokenLogprob | None]]:
    """Sample one token per row.

    The order is vLLM's: log-probabilities are of the raw logits; then come the changes of
    `change_logits`, temperature, min_p, top_k, top_p.

    Args:
        logits: float32 [N, vocab]; changed in place.
        sequences: N sequences that sample.
        draw: from `prepare_draw`, for these sequences.

    Returns:
        The tokens, `NO_TOKEN` where none can be, and their log-probabilities where
        asked for.
    """
    nums_top = {
        row: sequence.sampling_params.logprobs
        for row, sequence in enumerate(sequences)
        if sequence.sampling_params.logprobs is not None
    }
    raw = torch.log_softmax(logits[list(nums_top)], dim=-1) if nums_top else None
    failed = []
    for row, sequence in enumerate(sequences):
        if sequence.changes_logits:
            try:
                change_logits(logits[row], sequence)
            except NoTokenError:
                logger.exception("sequence %d is aborted", sequence.seq_id)
                failed.append(row)
    tokens: list[int] = ops.sample_tokens(logits, draw.sampling, draw.positions).tolist()
    logprobs: list[TokenLogprob | None] = [None] * len(sequences)
    if raw is not None:
        chosen = [tokens[row] for row in nums_top]
        for row, entry in zip(
            nums_top, token_logprobs(raw, chosen, list(nums_top.values())), strict=True
        ):
            logprobs[row] = entry
    for row in failed:
        tokens[row], logprobs[row] = NO_TOKEN, None
    return tokens, logprobs


def token_logprobs(
    logprobs: torch.Tensor, token_ids: list[int], nums_top: list[int]
) -> list[TokenLogprob]:
    """Log-probability and rank of one token per row, with the row's most likely tokens.

    Args:
        logprobs: float32 [N, vocab].
        token_ids: N ids.
        nums_top: N times how many of the most likely tokens to report; more than there are means
            all.
    """
    ids = torch.tensor(token_ids, device=logprobs.device)[:, None]
    chosen = logprobs.gather(1, ids)
    ranks = (logprobs > chosen).sum(dim=1, dtype=torch.int32).add_(1).tolist()
    top = torch.topk(logprobs, min(max(nums_top), logprobs.shape[1]), dim=1)
    return [
        TokenLogprob(token_id, value, rank, dict(zip(top_ids[:num], top_values[:num], strict=True)))
        for token_id, value, rank, top_ids, top_values, num in zip(
            token_ids,
            chosen[:, 0].tolist(),
            ranks,
            top.indices.tolist(),
            top.values.tolist(),
            nums_top,
            strict=True,
        )
    ]


# Through arrays: torch looks at each number of a list several times.


def _float64(values: Sequence[float]) -> torch.Tensor:
    return torch.frombuffer(array("d", values), dtype=torch.float64)


def _int64(values: Sequence[int]) -> torch.Tensor:
    return torch.frombuffer(array("q", values), dtype=torch.int64)


def _as_int64(value: int) -> int:
    """The signed integer with the value's last 64 bits."""
    return (value + 2**63) % 2**64 - 2**63
