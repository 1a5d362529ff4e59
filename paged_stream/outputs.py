"""What the engine gives back."""

from __future__ import annotations

from dataclasses import dataclass, field

from paged_stream.scheduler.output import TokenLogprob

__all__ = [
    "CompletionOutput",
    "EngineStats",
    "RequestDelta",
    "RequestOutput",
    "StreamStats",
    "TokenLogprob",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestDelta:
    """What one step added to one completion of a request.

    Args:
        request_id: the request.
        index: which of its ``n`` completions.
        delta_text: new text. Held back while it could still turn out to be part of a character
            or of a stop string.
        delta_token_ids: new tokens, the stop token included.
        finished: whether this is the completion's last delta.
        finish_reason: ``"stop"`` (a stop token or string) or ``"length"``; ``None`` before.
        logprobs: one per new token, when asked for.
        prompt_logprobs: of the prompt's tokens computed in this step, when asked for. All deltas
            together give them from the second token on (nothing predicts the first).
    """

    request_id: str
    index: int
    delta_text: str
    delta_token_ids: list[int]
    finished: bool
    finish_reason: str | None
    logprobs: list[TokenLogprob] | None
    prompt_logprobs: list[TokenLogprob] | None


@dataclass(slots=True, kw_only=True)
class CompletionOutput:
    """One whole completion."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    finish_reason: str | None = None


@dataclass(slots=True, kw_only=True)
class RequestOutput:
    """A whole request: its prompt and all its completions.

    ``prompt_logprobs``, when asked for, has one entry per prompt token; the first is ``None``.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[TokenLogprob | None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStats:
    """One stream: tokens seen since its start, visible now, evicted; blocks and bytes held."""

    num_tokens: int
    num_visible_tokens: int
    num_evicted_tokens: int
    num_blocks: int
    kv_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """The engine at one moment.

    Args:
        num_running: sequences in the current batch.
        num_waiting: sequences queued for it.
        num_streams: open streams.
        num_blocks: blocks in the cache; ``num_used_blocks`` hold tokens now.
        kv_bytes: bytes of the used blocks.
        num_evicted_tokens: tokens of the present sequences that left their windows.
        num_computed_tokens: tokens that went through the model since the start.
        num_generated_tokens: tokens sampled since the start.
    """

    num_running: int
    num_waiting: int
    num_streams: int
    num_blocks: int
    num_used_blocks: int
    kv_bytes: int
    num_evicted_tokens: int
    num_computed_tokens: int
    num_generated_tokens: int
