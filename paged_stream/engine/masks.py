"""Which tokens turns with a structure may generate next, worked out while the model computes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property

from paged_stream.engine.turn import Turn
from paged_stream.scheduler.output import ScheduledSequence, SchedulerOutput, TokenMask

_NUM_THREADS = 2  # they sleep most of the time, and the model wants all processors


class Masks:
    """Adds masks to steps.

    Attributes:
        turns: those with a structure, by seq_id.
    """

    def __init__(self) -> None:
        self.turns: dict[int, Turn] = {}

    def added_to(self, output: SchedulerOutput) -> SchedulerOutput:
        """The same step, with masks for those of ``turns`` that it samples for. No token may be
        added to these turns until the step is computed."""
        if not self.turns:
            return output
        return replace(output, sequences=tuple(map(self._with_mask, output.sequences)))

    def _with_mask(self, scheduled: ScheduledSequence) -> ScheduledSequence:
        turn = self.turns.get(scheduled.seq_id)
        if turn is None or turn.progress is None or not scheduled.samples:
            return scheduled
        work = self._threads.submit(turn.progress.allowed, turn.stop_token_ids)
        return replace(scheduled, mask=TokenMask(work))

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_NUM_THREADS, "paged_stream masks")
