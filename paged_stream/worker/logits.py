"""What a request changes in its logits before temperature and the like, from its parameters and the
tokens that it sees. A function of these, so the same in any company."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch

from paged_stream.scheduler.output import ScheduledSequence
from paged_stream.scheduler.sampling_params import LogitsProcessor
from paged_stream.system.short_text import short

# What is said of a row that the request's own parameters have changed.
ALL_BARRED = (
    "no token can be sampled: allowed_token_ids, bad_words, logit_bias, logits_processors and "
    "min_tokens together bar every token, or make a logit NaN or infinite"
)


class NoTokenError(RuntimeError):
    """No token can be sampled: a function of the user's has raised, or returned no logits; or no
    token of the vocabulary goes on with the text that was asked for."""


def not_finite(position: int) -> str:
    """What is said of logits that the model has given: one is NaN, or the largest is infinite.

    Args:
        position: of the token that they are for.
    """
    return f"the model's logits for position {position} are not finite"


def change_logits(row: torch.Tensor, sequence: ScheduledSequence) -> None:
    """Change one sequence's logits in place, in vLLM's order: allowed tokens, bad words, the bar on
    stop tokens, biases, the user's functions, penalties; last, the mask of a structure.

    Args:
        row: float32 [vocab].

    Raises:
        NoTokenError: says why.
    """
    mask = sequence.mask
    if mask is None:
        _change(row, sequence)
        return
    raw = row.clone() if sequence.edits_logits else None
    _change(row, sequence)
    _apply_mask(row, raw, mask.bits())


def _change(row: torch.Tensor, sequence: ScheduledSequence) -> None:
    params = sequence.sampling_params
    if params.allowed_token_ids is not None:
        _allow_only(row, params.allowed_token_ids)
    if params.needs_history:
        history = torch.frombuffer(sequence.history, dtype=torch.int32)
        generated = generated_tokens(history, sequence)
    if params.bad_words:
        _bar_bad_words(row, sequence.bad_words, generated.tolist())
    if params.min_tokens > sequence.num_output_tokens:
        row[list(sequence.stop_token_ids)] = -math.inf
    if params.logit_bias:
        values = torch.tensor(list(params.logit_bias.values()), device=row.device)
        row[list(params.logit_bias)] += values
    for processor in _functions(params.logits_processors):
        _process(row, processor, generated.tolist())
    if params.has_penalties:
        _apply_penalties(row, sequence, history.to(row.device), generated.to(row.device))


def generated_tokens(history: torch.Tensor, sequence: ScheduledSequence) -> torch.Tensor:
    """The part of the visible tokens that was generated: of the sinks as well as of the window."""
    sinks = sequence.sink_window.num_sink_tokens
    window_start = sequence.sink_window.window_start(sequence.num_tokens - 1)
    if window_start <= sinks:  # nothing is missing between them
        return history[sequence.num_prompt_tokens :]
    window = history[sinks:][max(0, sequence.num_prompt_tokens - window_start) :]
    return torch.cat((history[sequence.num_prompt_tokens : sinks], window))


def _allow_only(row: torch.Tensor, token_ids: Iterable[int]) -> None:
    ids = torch.tensor(list(token_ids), device=row.device)
    allowed = row[ids]
    row.fill_(-math.inf)
    row[ids] = allowed


def _bar_bad_words(
    row: torch.Tensor, bad_words: Iterable[tuple[int, ...]], generated: list[int]
) -> None:
    """Bar the last token of each word whose other tokens were generated last."""
    barred = [
        last
        for *others, last in bad_words
        if last < len(row) and generated[len(generated) - len(others) :] == others
    ]
    row[barred] = -math.inf


def _functions(processors: object) -> tuple[LogitsProcessor, ...]:
    assert isinstance(processors, tuple)  # `SamplingParams` has checked them
    return processors


def _process(row: torch.Tensor, processor: LogitsProcessor, token_ids: list[int]) -> None:
    try:
        logits = processor(token_ids, row)
        if logits.shape != row.shape:
            raise ValueError(f"it must return {list(row.shape)} logits, not {list(logits.shape)}")
        row.copy_(logits)
    except Exception as error:  # it is the user's
        raise NoTokenError(
            f"the logits processor {short(processor)} failed: {short(error)}"
        ) from error


def _apply_penalties(
    row: torch.Tensor,
    sequence: ScheduledSequence,
    history: torch.Tensor,
    generated: torch.Tensor,
) -> None:
    """Penalise the tokens still visible: what has left the window is forgotten here as well."""
    params = sequence.sampling_params
    if params.repetition_penalty != 1.0:
        seen = history.long()
        values = row[seen]  # a token that is there twice is written twice, and is the same
        penalty = params.repetition_penalty
        row[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if params.presence_penalty or params.frequency_penalty:
        ids, counts = torch.unique(generated.long(), return_counts=True)
        row[ids] -= params.presence_penalty + params.frequency_penalty * counts


def _apply_mask(row: torch.Tensor, raw: torch.Tensor | None, bits: bytes) -> None:
    """Bar what a mask does not allow. Where other changes have barred all that it allows, they
    count for nothing.

    Args:
        raw: the row before these; ``None`` if there were none.
        bits: one for each token, the lowest of a byte first; 1 allows it.
    """
    packed = np.invert(np.frombuffer(bits, np.uint8))
    size = min(len(row), 8 * len(packed))
    unpacked = np.unpackbits(packed, count=size, bitorder="little").view(np.bool_)
    if unpacked.all():
        raise NoTokenError("no token of the vocabulary goes on with what structured_outputs wants")
    barred = torch.from_numpy(unpacked).to(row.device)
    row[:size].masked_fill_(barred, -math.inf)
    row[size:] = -math.inf
    if raw is not None and not torch.isfinite(row).any():
        row[:size] = raw[:size].masked_fill_(barred, -math.inf)
