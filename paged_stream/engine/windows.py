"""Sinks and windows that users ask for, checked against what a model can have."""

from __future__ import annotations

import logging

from paged_stream.models.model_config import ModelConfig
from paged_stream.scheduler.sink_window import SinkWindow

logger = logging.getLogger(__name__)


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
