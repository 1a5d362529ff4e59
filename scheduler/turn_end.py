"""What ends a turn: stop tokens, the tokens asked for, the sequence's limit, whoever reads it."""

from __future__ import annotations

from collections.abc import Callable

from .output import FinishReason
from .sequence import Sequence


def max_new_tokens(sequence: Sequence) -> int:
    """Tokens that a sequence may gain before its turn is over."""
    most, limit = sequence.limit - sequence.num_tokens, sequence.sampling_params.max_tokens
    if limit is not None:
        most = min(most, limit - sequence.num_output_tokens)
    return max(1, most)


def gain(
    sequence: Sequence, token_ids: list[int], stops: Callable[[int, int], bool]
) -> tuple[list[int], FinishReason | None]:
    """Append what was sampled, up to what ends the turn. All but the last are computed.

    Args:
        stops: as in `Scheduler.update`.

    Returns:
        The tokens that were appended, and why the turn has ended: ``"stop"``, ``"length"`` or
        ``None``.
    """
    for count, token_id in enumerate(token_ids, 1):
        if count > 1:
            sequence.advance(1)
        sequence.append((token_id,))
        reason = _finish_reason(sequence, token_id)
        if reason != "stop" and stops(sequence.seq_id, token_id):
            reason = "stop"
        if reason is not None:
            return token_ids[:count], reason
    return token_ids, None


def _finish_reason(sequence: Sequence, token_id: int) -> FinishReason | None:
    params = sequence.sampling_params
    num_output = sequence.num_output_tokens
    if token_id in sequence.stop_token_ids and num_output > params.min_tokens:
        return "stop"
    if params.max_tokens is not None and num_output >= params.max_tokens:
        return "length"
    if sequence.num_tokens >= sequence.limit:
        return "length"
    return None
