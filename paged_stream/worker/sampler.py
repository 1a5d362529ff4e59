"""From logits to tokens. A request gets what its own logits, parameters and seed say, no more."""

from __future__ import annotations

import logging
import math
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import torch

from paged_stream import ops
from paged_stream.scheduler.output import ScheduledSequence, TokenLogprob
from paged_stream.worker.logits import ALL_BARRED, NoTokenError, change_logits, not_finite
from paged_stream.worker.staging import to_device

logger = logging.getLogger(__name__)


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
        sequences: N times the sequence that samples. One with guesses is there several times.
        places: N times where the sampled token will stand.
        rows: int64 [N], the rows of the batch's tokens that are sampled from.
        positions: int64 [N], ``places`` on the device.
        sampling: of the N sequences.
    """

    sequences: list[ScheduledSequence]
    places: list[int]
    rows: torch.Tensor
    positions: torch.Tensor
    sampling: ops.SamplingTensors


def prepare_draw(
    sequences: Sequence[ScheduledSequence], ends: Sequence[int], device: torch.device
) -> Draw | None:
    """Bring what sampling needs to the device, before the step is computed there; ``None`` if
    nobody samples.

    Args:
        sequences: of the step.
        ends: where the tokens of each end in the batch.
    """
    drawing: list[ScheduledSequence] = []
    places: list[int] = []
    rows: list[int] = []
    for sequence, end in zip(sequences, ends, strict=True):
        if sequence.samples:
            for back in range(sequence.num_draft_tokens, -1, -1):
                drawing.append(sequence)
                places.append(sequence.num_tokens - back)
                rows.append(end - 1 - back)
    if not drawing:
        return None
    host = _int64(rows), _int64(places), *sampling_tensors(drawing)
    moved = to_device(host, device)
    return Draw(drawing, places, moved[0], moved[1], ops.SamplingTensors(*moved[2:]))


class Sampled(NamedTuple):
    """What was sampled from N rows.

    Args:
        token_ids: the tokens, `NO_TOKEN` where none can be.
        logprobs: their log-probabilities where asked for.
        errors: why there is no token, where there is none.
    """

    token_ids: list[int]
    logprobs: list[TokenLogprob | None]
    errors: list[str | None]


def sample(logits: torch.Tensor, draw: Draw) -> Sampled:
    """Sample one token per row.

    The order is vLLM's: log-probabilities are of the raw logits; then come the changes of
    `change_logits`, temperature, min_p, top_k, top_p. What the op finds out on its way costs
    nothing: whether a row has no distribution. Rows that are changed are looked at before, too,
    because a change may bar the very token whose logit is NaN.

    Args:
        logits: float32 [N, vocab]; changed in place.
        draw: from `prepare_draw`.
    """
    sequences = draw.sequences
    asking = [i for i, s in enumerate(sequences) if s.sampling_params.logprobs is not None]
    raw = torch.log_softmax(logits[asking], dim=-1) if asking else None
    errors: list[str | None] = [None] * len(sequences)
    largest = {}  # of the rows that are changed, NaN if one is
    for row, sequence in enumerate(sequences):
        if sequence.changes_logits:
            largest[row] = logits[row].max()
            try:
                change_logits(logits[row], sequence)
            except NoTokenError as error:
                logger.exception("sequence %d is ended", sequence.seq_id)
                errors[row] = str(error)
    tokens: list[int] = ops.sample_tokens(logits, draw.sampling, draw.positions).tolist()
    values = torch.stack(list(largest.values())).tolist() if largest else []
    for row, value in zip(largest, values, strict=True):
        if not math.isfinite(value):
            errors[row] = not_finite(draw.places[row])
        elif tokens[row] == ops.NO_TOKEN:
            errors[row] = errors[row] or ALL_BARRED
    for row, token_id in enumerate(tokens):
        if token_id == ops.NO_TOKEN:
            errors[row] = errors[row] or not_finite(draw.places[row])
        elif errors[row] is not None:
            tokens[row] = ops.NO_TOKEN
    logprobs: list[TokenLogprob | None] = [None] * len(sequences)
    drawn = [i for i, row in enumerate(asking) if tokens[row] != ops.NO_TOKEN]
    if raw is not None and drawn:
        rows = [asking[i] for i in drawn]
        nums_top = [sequences[row].sampling_params.logprobs or 0 for row in rows]
        chosen = [tokens[row] for row in rows]
        for row, entry in zip(rows, token_logprobs(raw[drawn], chosen, nums_top), strict=True):
            logprobs[row] = entry
    return Sampled(tokens, logprobs, errors)


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
