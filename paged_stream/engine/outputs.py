"""What the engine gives back."""

from __future__ import annotations

import reprlib
import time
from array import array
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, Protocol, TypeAlias

from paged_stream.engine.histogram import Histogram
from paged_stream.scheduler.output import FinishReason, TokenLogprob

__all__ = [
    "CompletionOutput",
    "DeltaQueue",
    "EmbeddingOutput",
    "EmbeddingRequestOutput",
    "EngineStats",
    "FinishReason",
    "Histogram",
    "Inbox",
    "Location",
    "RequestDelta",
    "RequestMetrics",
    "RequestOutput",
    "StreamStats",
    "TurnStats",
    "VisibleRun",
    "VisibleText",
    "TokenLogprob",
]

# Where a stream's K and V are; nowhere before anything is computed.
Location: TypeAlias = Literal["none", "cache", "host", "disk"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMetrics:
    """When a request, or a turn of a stream, passed its stages: Unix times in seconds, ``None`` for
    what has not happened yet. In a pool, the arrival is timed by the pool and the rest by the
    replica, whose clock may differ.

    Args:
        arrival_time: when it was handed to the engine, tokenized and checked.
        first_scheduled_time: when its first step began.
        first_token_time: when its first token was there.
        finished_time: when the completion was finished; in a `RequestOutput`, the last one. A turn
            that `StreamApi.end_turn` ends has none.
    """

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    finished_time: float | None = None

    @classmethod
    def of_arrival(cls) -> RequestMetrics:
        """Of a request that arrives now."""
        return cls(arrival_time=time.time())

    @property
    def time_in_queue(self) -> float | None:
        """How long it waited for its first step, in seconds."""
        if self.first_scheduled_time is None:
            return None
        return self.first_scheduled_time - self.arrival_time

    def updated(self, later: RequestMetrics) -> RequestMetrics:
        """These and what came later: whatever happens once is as it was noted first."""
        scheduled, first_token = self.first_scheduled_time, self.first_token_time
        return RequestMetrics(
            arrival_time=self.arrival_time,
            first_scheduled_time=later.first_scheduled_time if scheduled is None else scheduled,
            first_token_time=later.first_token_time if first_token is None else first_token,
            finished_time=later.finished_time or self.finished_time,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestDelta:
    """What one step, or several at once, added to one completion of a request.

    Args:
        request_id: the request.
        index: which of its ``n`` completions.
        delta_text: new text. It is held back while it could still turn out to be part of a
            character or of a stop string. A character that a turn of a stream leaves unfinished
            comes out in the turn that finishes it; at the end of a request, it is U+FFFD.
        delta_token_ids: new tokens, the stop token included.
        finished: whether this is the completion's last delta.
        finish_reason: why it ended: ``"stop"`` (a stop token or string), ``"length"``, ``"abort"``
            or ``"error"``; ``None`` while it goes on.
        stop_reason: the stop string that ended it, or the id of the stop token; ``None`` otherwise,
            and for the model's own end tokens.
        logprobs: one entry per new token, when asked for.
        prompt_logprobs: one entry for each of the prompt's tokens that this step computed, when
            asked for. Nothing predicts the first token of a prompt, so all deltas together have an
            entry for each of the others.
        metrics: when the completion passed its stages until now.
        error: what kept it from going on, if that is why it ended.
        template_rewrote: of a turn of `StreamApi.chat`: whether the chat template wrote earlier
            messages otherwise than they were in the stream.
        embedding: what `EngineApi.embed` is about to return, float32.
    """

    request_id: str
    index: int
    delta_text: str
    delta_token_ids: list[int]
    finished: bool
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    logprobs: list[TokenLogprob] | None
    prompt_logprobs: list[TokenLogprob] | None
    metrics: RequestMetrics
    error: str | None = None
    template_rewrote: bool = False
    embedding: array[float] | None = None


class Inbox(Protocol):
    """Where the deltas of one turn go."""

    @property
    def is_full(self) -> bool:
        """Whether the turn must wait until some were taken out."""

    def append(self, delta: RequestDelta, /) -> None: ...

    def end(self, error: RuntimeError, /) -> None:
        """Let whoever reads raise an error behind what there is: the turn is over."""


class DeltaQueue(deque[RequestDelta]):
    """An inbox that holds up its turn as long as anything is unread.

    Attributes:
        error: what ended the turn, to be raised behind the last delta.
    """

    error: RuntimeError | None = None

    @property
    def is_full(self) -> bool:
        return bool(self)

    def end(self, error: RuntimeError, /) -> None:
        self.error = error


_repr = reprlib.Repr()
_repr.maxstring = 120  # characters of a text, from both ends


@dataclass(slots=True, kw_only=True, repr=False)
class CompletionOutput:
    """One whole completion. Its `repr` shortens the text and counts the tokens."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: str | None = None

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(index={self.index}, text={_repr.repr(self.text)}, "
            f"token_ids=<{len(self.token_ids)}>, finish_reason={self.finish_reason!r}, "
            f"stop_reason={self.stop_reason!r})"
        )


@dataclass(slots=True, kw_only=True, repr=False)
class RequestOutput:
    """A whole request: its prompt and all its completions.

    ``prompt`` is the text, if there was one. ``prompt_logprobs``, when asked for, has one entry per
    prompt token; the first is ``None``. ``metrics`` says when the request passed its stages. The
    `repr` shortens the prompt and counts its tokens.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    metrics: RequestMetrics
    prompt_logprobs: list[TokenLogprob | None] | None = None

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(request_id={self.request_id!r}, "
            f"prompt={_repr.repr(self.prompt)}, "
            f"prompt_token_ids=<{len(self.prompt_token_ids)}>, outputs={self.outputs!r})"
        )


@dataclass(slots=True, kw_only=True, repr=False)
class EmbeddingOutput:
    """The embedding of a prompt: as many numbers as the model's hidden states have, each a float32,
    a vector of length 1. Its `repr` counts them."""

    embedding: list[float]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(embedding=<{len(self.embedding)}>)"


@dataclass(slots=True, kw_only=True, repr=False)
class EmbeddingRequestOutput:
    """A prompt and its embedding, ``outputs.embedding``.

    ``prompt`` is the text, if there was one. The `repr` shortens it and counts its tokens.
    """

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: EmbeddingOutput

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(prompt={_repr.repr(self.prompt)}, "
            f"prompt_token_ids=<{len(self.prompt_token_ids)}>, outputs={self.outputs!r})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStats:
    """One stream at one moment.

    Args:
        num_tokens: length of the stream. Positions count from 0 to here.
        num_sink_tokens: how many tokens at the beginning stay visible for ever: those that are
            pinned, if something is. A shorter stream will have so many.
        num_pending_tokens: tokens that are not computed yet, including those that queue behind the
            turn.
        num_visible_tokens: tokens that the last computed token sees.
        num_evicted_tokens: computed tokens that no later token will see: they lie between the sinks
            and ``window_start``, evicted or cut out.
        window_start: first position behind the sinks that the next token to be computed sees. Each
            of the ``num_pending_tokens`` may move it on by one: `StreamApi.park`, among others,
            computes all but the last of them first.
        num_blocks: blocks that the stream holds in the cache.
        kv_bytes: size of its K and V, wherever they are, in bytes.
        location: where its K and V are: ``"cache"``, ``"host"`` or ``"disk"``; ``"none"`` before
            anything is computed.
        num_prefix_queries: tokens that it began with and that were looked for in the cache. A fork
            has none of its own.
        num_prefix_hits: how many of these were found, and not computed again.
        queue_seconds: how long the last turn waited for its first step.
    """

    num_tokens: int
    num_sink_tokens: int
    num_pending_tokens: int
    num_visible_tokens: int
    num_evicted_tokens: int
    window_start: int
    num_blocks: int
    kv_bytes: int
    location: Location
    num_prefix_queries: int
    num_prefix_hits: int
    queue_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VisibleRun:
    """Visible tokens of a stream that follow each other.

    Args:
        start: position of the first.
        token_ids: these tokens.
        text: their text, special tokens included; ``None`` without a tokenizer.
        missing: what is gone right before them: ``"evicted"`` (tokens that have left the window) or
            ``"cut"`` (tokens that were cut out). ``None`` if nothing is: at the beginning of the
            stream, and behind the sink tokens if the rest has only moved up to close a gap.
    """

    start: int
    token_ids: list[int]
    text: str | None
    missing: Literal["evicted", "cut"] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VisibleText:
    """What the next token of a stream will see.

    Args:
        num_sink_tokens: how many of the tokens, from the first on, are sink tokens.
        runs: the tokens in order, a run for each row of positions without a gap. The last run is
            empty if something was cut out at the end of the stream.
    """

    num_sink_tokens: int
    runs: list[VisibleRun]

    @property
    def token_ids(self) -> list[int]:
        """The ids of all runs."""
        return [token_id for run in self.runs for token_id in run.token_ids]

    @property
    def text(self) -> str | None:
        """The texts of all runs, joined; ``None`` without a tokenizer."""
        texts = [run.text for run in self.runs if run.text is not None]
        return "".join(texts) if len(texts) == len(self.runs) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnStats:
    """The completions and turns that an engine has finished. One that was left by its reader, or by
    `StreamApi.end_turn`, is not among them.

    Args:
        finish_reasons: how many ended for which reason.
        queue_seconds: how long they waited for their first step.
        first_token_seconds: how long it took from their arrival to their first token.
        token_seconds: how long each further token took, on the average of a turn.
        turn_seconds: how long it took from their arrival to their end.
        prompt_tokens: how many tokens there were to compute before they generated.
        generated_tokens: how many tokens they generated.
    """

    finish_reasons: Mapping[FinishReason, int]
    queue_seconds: Histogram
    first_token_seconds: Histogram
    token_seconds: Histogram
    turn_seconds: Histogram
    prompt_tokens: Histogram
    generated_tokens: Histogram

    def __add__(self, other: TurnStats) -> TurnStats:
        reasons = Counter(self.finish_reasons) + Counter(other.finish_reasons)
        names = [each.name for each in fields(self) if each.name != "finish_reasons"]
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        return TurnStats(finish_reasons=dict(reasons), **sums)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """The engine at one moment. Counts of tokens, steps and turns begin when the engine does.

    Args:
        num_running: sequences in the current batch.
        num_waiting: sequences that wait to join it, or to join it again.
        num_streams: open streams.
        num_parked_streams: open streams whose K and V are out of the cache.
        num_blocks: blocks in the cache.
        num_used_blocks: blocks that hold tokens now.
        kv_bytes: size of the used blocks, in bytes.
        kv_reserved_bytes: size of the whole cache, in bytes.
        kv_resident_bytes: how much of the cache is in memory, in bytes. On a CPU, the rest is
            address space until its blocks are used.
        parked_host_bytes: K and V of parked streams and requests in host memory, in bytes.
        parked_disk_bytes: K and V of parked streams and requests on disk, in bytes.
        num_evicted_tokens: tokens that have left their windows.
        num_computed_tokens: tokens that have gone through the model.
        num_generated_tokens: tokens that have been sampled.
        num_prefix_queries: tokens that sequences began with and that were looked for in the cache.
            A beginning is looked for if it is longer than a block, unless its log-probabilities
            are asked for.
        num_prefix_hits: how many of these were found, and not computed again.
        num_steps: steps.
        step_seconds: how long these took together.
        num_started_turns: requests and turns that have had their first step.
        queue_seconds: how long these waited for it together.
        num_draft_tokens: tokens that were guessed and computed, with ``speculative_config``.
        num_accepted_tokens: how many of these were right.
        num_preemptions: how often one gave its place in the batch to one of higher priority.
        num_failed_turns: completions and turns that ended with an error: the ``finish_reason``
            ``"error"``, or a stream that was lost.
        turns: what the finished completions and turns were like.
    """

    num_running: int
    num_waiting: int
    num_streams: int
    num_parked_streams: int
    num_blocks: int
    num_used_blocks: int
    kv_bytes: int
    kv_reserved_bytes: int
    kv_resident_bytes: int
    parked_host_bytes: int
    parked_disk_bytes: int
    num_evicted_tokens: int
    num_computed_tokens: int
    num_generated_tokens: int
    num_prefix_queries: int
    num_prefix_hits: int
    num_steps: int
    step_seconds: float
    num_started_turns: int
    queue_seconds: float
    num_draft_tokens: int
    num_accepted_tokens: int
    num_preemptions: int
    num_failed_turns: int
    turns: TurnStats
