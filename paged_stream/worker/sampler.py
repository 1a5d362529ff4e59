"""From logits to tokens. A request gets what its own logits, parameters and seed say, no more."""

from __future__ import annotations

import torch

from paged_stream.scheduler.output import ScheduledSequence, TokenLogprob

_MASK64 = (1 << 64) - 1
_NEG_INF = float("-inf")


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
    wanted = [row for row, s in enumerate(sequences) if s.sampling_params.logprobs is not None]
    raw = dict(zip(wanted, torch.log_softmax(logits[wanted], dim=-1), strict=True))
    for row, sequence in zip(logits, sequences, strict=True):
        _apply_penalties(row, sequence)
        _bar_stop_tokens(row, sequence)
    token_ids = torch.argmax(logits, dim=-1)
    random = [row for row, s in enumerate(sequences) if not s.sampling_params.greedy]
    if random:
        token_ids[random] = _sample_random(logits[random], [sequences[row] for row in random])
    tokens = token_ids.tolist()
    logprobs: list[TokenLogprob | None] = [None] * len(sequences)
    for row in wanted:
        top = sequences[row].sampling_params.logprobs
        logprobs[row] = token_logprobs(raw[row][None], [tokens[row]], top)[0]
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
    if not params.has_penalties:
        return
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


def _bar_stop_tokens(row: torch.Tensor, sequence: ScheduledSequence) -> None:
    if sequence.num_output_tokens < sequence.sampling_params.min_tokens:
        row[list(sequence.stop_token_ids)] = _NEG_INF


def _sample_random(logits: torch.Tensor, sequences: list[ScheduledSequence]) -> torch.Tensor:
    """Invert each row's cumulative distribution at a number that is a hash of its seed and
    position: no generator state, so nothing to save and no neighbour to disturb it."""
    params = [s.sampling_params for s in sequences]

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device)[:, None]

    logits = logits / column([p.temperature for p in params]).float()
    _keep_min_p(logits, column([p.min_p for p in params]))
    _keep_top_k(logits, [p.top_k for p in params])
    _keep_top_p(logits, [p.top_p for p in params])
    cumulative = torch.softmax(logits, dim=-1, dtype=torch.float64).cumsum(dim=-1)
    total = cumulative[:, -1:]
    point = column([_uniform(s.seed, s.num_tokens) for s in sequences]) * total
    # Rounding must not carry the point past the last token that has any probability.
    point = torch.minimum(point, torch.nextafter(total, torch.zeros_like(total)))
    # The clamp is for logits that are NaN: garbage for that row, but no id that does not exist.
    last = logits.shape[-1] - 1
    return torch.searchsorted(cumulative, point, right=True)[:, 0].clamp_(max=last)


def _keep_min_p(logits: torch.Tensor, min_p: torch.Tensor) -> None:
    floor = logits.amax(dim=-1, keepdim=True) + min_p.log().float()
    logits.masked_fill_(logits < floor, _NEG_INF)


def _keep_top_k(logits: torch.Tensor, top_k: list[int]) -> None:
    vocab = logits.shape[-1]
    rows = [row for row, k in enumerate(top_k) if 0 < k < vocab]
    if not rows:
        return
    ks = torch.tensor([top_k[row] for row in rows], device=logits.device)
    kept = logits[rows]
    values = torch.topk(kept, int(ks.max()), dim=-1).values
    floor = values.gather(1, ks[:, None] - 1)
    logits[rows] = kept.masked_fill(kept < floor, _NEG_INF)


def _keep_top_p(logits: torch.Tensor, top_p: list[float]) -> None:
    rows = [row for row, p in enumerate(top_p) if p < 1.0]
    if not rows:
        return
    limit = torch.tensor([[top_p[row]] for row in rows], device=logits.device)
    kept, order = torch.sort(logits[rows], dim=-1, descending=True)
    probs = torch.softmax(kept, dim=-1)
    # A token stays if those before it do not reach top_p yet; the first one always stays.
    drop = probs.cumsum(dim=-1) - probs >= limit
    drop[:, 0] = False
    kept.masked_fill_(drop, _NEG_INF)
    logits[rows] = torch.empty_like(kept).scatter_(1, order, kept)


def _uniform(seed: int, position: int) -> float:
    """A number in [0, 1) from a seed and a position (two rounds of the splitmix64 mixer)."""
    state = _mix(_mix(seed & _MASK64) ^ position)
    return (state >> 11) * 2.0**-53


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)
