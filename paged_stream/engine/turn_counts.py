"""What the finished requests and turns of an engine were like, counted."""

from __future__ import annotations

from collections import Counter

from paged_stream.engine.histogram import Tally
from paged_stream.engine.outputs import RequestMetrics, TurnStats
from paged_stream.scheduler.output import FinishReason

_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0),
)
_TOKENS = tuple(float(2**power) for power in range(0, 21, 2))


class TurnCounts:
    """Of one engine, since it began."""

    def __init__(self) -> None:
        self._reasons: Counter[FinishReason] = Counter()
        self._queue_seconds = Tally(_SECONDS)
        self._first_token_seconds = Tally(_SECONDS)
        self._token_seconds = Tally(_SECONDS)
        self._turn_seconds = Tally(_SECONDS)
        self._prompt_tokens = Tally(_TOKENS)
        self._generated_tokens = Tally(_TOKENS)

    def add(
        self,
        metrics: RequestMetrics,
        reason: FinishReason,
        num_prompt_tokens: int,
        num_generated_tokens: int,
    ) -> None:
        """Count one that is finished. Stages that it did not come to are left out."""
        self._reasons[reason] += 1
        self._prompt_tokens.add(num_prompt_tokens)
        self._generated_tokens.add(num_generated_tokens)
        first, last = metrics.first_token_time, metrics.finished_time
        if metrics.time_in_queue is not None:
            self._queue_seconds.add(metrics.time_in_queue)
        if first is not None:
            self._first_token_seconds.add(first - metrics.arrival_time)
        if last is not None:
            self._turn_seconds.add(last - metrics.arrival_time)
        if first is not None and last is not None and num_generated_tokens > 1:
            self._token_seconds.add((last - first) / (num_generated_tokens - 1))

    def stats(self) -> TurnStats:
        """All until now."""
        return TurnStats(
            finish_reasons=dict(self._reasons),
            queue_seconds=self._queue_seconds.histogram(),
            first_token_seconds=self._first_token_seconds.histogram(),
            token_seconds=self._token_seconds.histogram(),
            turn_seconds=self._turn_seconds.histogram(),
            prompt_tokens=self._prompt_tokens.histogram(),
            generated_tokens=self._generated_tokens.histogram(),
        )
