"""What users hand in, checked where it enters: prompts, sinks and windows."""

from __future__ import annotations

import logging
import operator
from collections.abc import Iterable, Mapping, Sequence

from paged_stream.models.config import ModelConfig
from paged_stream.scheduler.sink_window import SinkWindow

logger = logging.getLogger(__name__)

Prompt = str | Sequence[int]


def resolve_sink_window(
    model_config: ModelConfig, num_sink_tokens: int, window_size: int | None
) -> SinkWindow:
    """Check sinks against the trained length, and let the window default to the rest of it.

    Raises:
        ValueError: the sinks leave no room.
    """
    trained = model_config.max_position_embeddings
    sink_window = SinkWindow(num_sink_tokens, window_size)  # refuses what is no size at all
    if num_sink_tokens >= trained:
        raise ValueError(
            f"num_sink_tokens must be less than the model's trained length ({trained}), "
            f"got {num_sink_tokens}"
        )
    if window_size is None:
        return SinkWindow(num_sink_tokens, trained - num_sink_tokens)
    if num_sink_tokens + window_size > trained:
        logger.warning(
            "num_sink_tokens + window_size = %d exceeds the model's trained length of %d",
            num_sink_tokens + window_size,
            trained,
        )
    return sink_window


def as_token_ids(prompt: Sequence[int]) -> list[int]:
    """Check that a prompt is a flat sequence of integers (arrays and tensors of them count)."""
    values = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    if isinstance(values, bytes | Mapping) or not isinstance(values, Iterable):
        raise ValueError(f"prompt must be text or a list of token ids, got {prompt!r}")
    token_ids = []
    for value in values:
        try:
            token_ids.append(operator.index(value))
        except TypeError:
            raise ValueError(f"prompt token ids must be ints, got {value!r}") from None
    return token_ids


def check_text(text: str) -> None:
    """Refuse text that cannot be written as UTF-8, which tokenizers cannot take."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"prompt is not valid text: {error}") from None


def check_range(token_ids: Sequence[int], vocab_size: int) -> None:
    """Refuse an empty prompt and ids that the model does not have."""
    if not token_ids:
        raise ValueError("prompt must not be empty")
    lowest, highest = min(token_ids), max(token_ids)
    if lowest < 0 or highest >= vocab_size:
        bad = lowest if lowest < 0 else highest
        raise ValueError(f"prompt token ids must be in [0, {vocab_size}), got {bad}")
