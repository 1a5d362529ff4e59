"""What users hand in, checked where it enters: prompts, sinks and windows."""

from __future__ import annotations

import logging
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import SupportsIndex

from paged_stream.models.config import ModelConfig
from paged_stream.scheduler.sink_window import SinkWindow

logger = logging.getLogger(__name__)

Prompt = str | Sequence[int]


def resolve_sink_window(
    model_config: ModelConfig, num_sink_tokens: int, window_size: int | None
) -> SinkWindow:
    """Check sinks and window against the model, and let the window default to what it can use.

    That is the trained length less the sinks, or the model's own window if all its layers have
    one. A model that cannot stream gets full attention.

    Raises:
        ValueError: the sinks leave no room, or the model cannot have a window.
    """
    trained = model_config.max_position_embeddings
    sink_window = SinkWindow(num_sink_tokens, window_size)  # refuses what is no size at all
    if model_config.learned_positions:
        if window_size is not None:
            raise ValueError(
                f"window_size={window_size}: {model_config.model_type} has learned an embedding "
                f"for each of {trained} absolute positions, so no window can move on; leave "
                f"window_size out for full attention up to {trained} tokens"
            )
        return SinkWindow(0, None)
    if num_sink_tokens >= trained:
        raise ValueError(
            f"num_sink_tokens must be less than the model's trained length ({trained}), "
            f"got {num_sink_tokens}"
        )
    if window_size is None:
        usable = trained - num_sink_tokens
        return SinkWindow(num_sink_tokens, min(usable, model_config.local_window or usable))
    local_window = model_config.local_window
    if num_sink_tokens and local_window is not None and window_size >= local_window:
        logger.warning(
            "no layer sees the sink tokens beyond window_size = %d: all have a window of their own "
            "of at most %d; choose window_size <= %d to keep them visible",
            window_size,
            local_window,
            local_window - num_sink_tokens,
        )
    if num_sink_tokens + window_size > trained:
        logger.warning(
            "num_sink_tokens + window_size = %d exceeds the model's trained length of %d",
            num_sink_tokens + window_size,
            trained,
        )
    return sink_window


def check_rotary_length(model_config: ModelConfig, sink_window: SinkWindow) -> None:
    """Refuse a stream whose sinks and window would need other rotary frequencies.

    Raises:
        ValueError: says what the engine would have to be started with.
    """
    if not model_config.is_exact_at(visible_tokens(model_config, sink_window)):
        raise ValueError(
            f"num_sink_tokens={sink_window.num_sink_tokens} and window_size="
            f"{sink_window.window_size}: this model's rotary frequencies depend on their sum, and "
            "the engine computed them for another; start one with these values"
        )


def visible_tokens(model_config: ModelConfig, sink_window: SinkWindow) -> int:
    """Tokens that a query sees at most."""
    if sink_window.window_size is None:
        return model_config.max_position_embeddings
    return sink_window.num_sink_tokens + sink_window.window_size


def as_token_ids(prompt: Sequence[int]) -> list[int]:
    """Check that a prompt is a flat sequence of integers (arrays and tensors of them count)."""
    values = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    if isinstance(values, bytes | Mapping) or not isinstance(values, Iterable):
        raise ValueError(
            f"prompt must be text or a list of token ids, got {prompt!r}{_prompt_hint(values)}"
        )
    return [_as_token_id(value) for value in values]


def _as_token_id(value: SupportsIndex) -> int:
    try:
        if not isinstance(value, bool):  # of a mask
            return operator.index(value)
    except TypeError:
        pass
    raise ValueError(f"prompt token ids must be ints, got {value!r}")


def _prompt_hint(value: object) -> str:
    if isinstance(value, bytes):
        return "; decode it first"
    for key in ("prompt_token_ids", "prompt"):
        if isinstance(value, Mapping) and key in value:
            return f"; pass what stands under {key!r}"
    return ""


@contextmanager
def naming_item(name: str, index: int, count: int) -> Iterator[None]:
    """Let a `ValueError` say which of ``count`` items it is about, if there are several."""
    try:
        yield
    except ValueError as error:
        if count == 1:
            raise
        message = str(error).removeprefix(f"{name}: ")
        raise ValueError(f"{name}[{index}]: {message}") from error


def check_range(token_ids: Sequence[int], vocab_size: int) -> None:
    """Refuse an empty prompt and ids that the model does not have."""
    if not token_ids:
        raise ValueError("prompt must not be empty")
    lowest, highest = min(token_ids), max(token_ids)
    if lowest < 0 or highest >= vocab_size:
        bad = lowest if lowest < 0 else highest
        raise ValueError(f"prompt token ids must be in [0, {vocab_size}), got {bad}")
