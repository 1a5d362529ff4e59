"""From logits to tokens. A request gets what its own logits, parameters and seed say, no more."""

from __future__ import annotations

import math

import torch

from paged_stream import ops
from paged_stream.scheduler.output import ScheduledSequence, TokenLogprob


def sample(
    logits: torch.Tensor, sequences: list[ScheduledSequence]
) -> tuple[list[int], list[TokenLogprob | None]]:
    """Sample one token per row.

    The order is vLLM's: log-probabilities are of the raw logits; then penalties and the bar on
    stop tokens, temperature, min_p, top_k, top_p.

    Args:
        logits: float32 [N, vocab]; changed in place.
        sequences: N sequences that sample.

    Returns:
        The tokens, and their log-probabilities where asked for.
    """
    raw = {
        row: torch.log_softmax(logits[row], dim=-1)
        for row, sequence in enumerate(sequences)
        if sequence.sampling_params.logprobs is not None
    }
    for row, sequence in enumerate(sequences):
        params = sequence.sampling_params
        if params.has_penalties:
            _apply_penalties(logits[row], sequence)
        if params.min_tokens > sequence.num_output_tokens:
            logits[row, list(sequence.stop_token_ids)] = -math.inf
    tokens = _draw(logits, sequences)
    logprobs: list[TokenLogprob | None] = [None] * len(sequences)
    for row, values in raw.items():
        top = sequences[row].sampling_params.logprobs
        assert top is not None
        logprobs[row] = token_logprobs(values[None], [tokens[row]], top)[0]
    return tokens, logprobs


def token_logprobs(
    logprobs: torch.Tensor, token_ids: list[int], num_top: int
) -> list[TokenLogprob]:
    """Log-probability and rank of one token per row, with the row's most likely tokens.

    Args:
        logprobs: float32 [N, vocab].
        token_ids: N ids.
        num_top: how many of the most likely tokens to report; more than there are means all.
    """
    ids = torch.tensor(token_ids, device=logprobs.device)[:, None]
    chosen = logprobs.gather(1, ids)
    ranks = (logprobs > chosen).sum(dim=1).add_(1).tolist()
    top = torch.topk(logprobs, min(num_top, logprobs.shape[1]), dim=1)
    return [
        TokenLogprob(token_id, value, rank, dict(zip(top_ids, top_values, strict=True)))
        for token_id, value, rank, top_ids, top_values in zip(
            token_ids,
            chosen[:, 0].tolist(),
            ranks,
            top.indices.tolist(),
            top.values.tolist(),
            strict=True,
        )
    ]


def _apply_penalties(row: torch.Tensor, sequence: ScheduledSequence) -> None:
    """Penalise the tokens still visible: what has left the window is forgotten here as well."""
    params = sequence.sampling_params
    history = torch.tensor(sequence.history, dtype=torch.int64, device=row.device)
    if params.repetition_penalty != 1.0:
        seen = torch.unique(history)
        values = row[seen]
        penalty = params.repetition_penalty
        row[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if params.presence_penalty or params.frequency_penalty:
        generated, counts = torch.unique(_generated(history, sequence), return_counts=True)
        row[generated] -= params.presence_penalty + params.frequency_penalty * counts


def _generated(history: torch.Tensor, sequence: ScheduledSequence) -> torch.Tensor:
    """The part of the visible tokens that was generated: of the sinks as well as of the window."""
    sinks = sequence.sink_window.num_sink_tokens
    window_start = sequence.sink_window.window_start(sequence.num_tokens - 1)
    if window_start <= sinks:  # nothing is missing between them
        return history[sequence.num_prompt_tokens :]
    window = history[sinks:][max(0, sequence.num_prompt_tokens - window_start) :]
    return torch.cat((history[sequence.num_prompt_tokens : sinks], window))


def _draw(logits: torch.Tensor, sequences: list[ScheduledSequence]) -> list[int]:
    params = [s.sampling_params for s in sequences]
    tokens: list[int] = ops.sample_tokens(
        logits,
        temperature=[0.0 if p.greedy else p.temperature for p in params],
        min_p=[p.min_p for p in params],
        top_k=[p.top_k for p in params],
        top_p=[p.top_p for p in params],
        seeds=[_as_int64(s.seed) for s in sequences],
        positions=[s.num_tokens for s in sequences],
    ).tolist()
    return tokens


def _as_int64(value: int) -> int:
    """The signed integer with the value's last 64 bits."""
    return (value + 2**63) % 2**64 - 2**63
