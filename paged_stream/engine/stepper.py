"""One step after the other: what the scheduler chooses, the executor computes, and the scheduler
hears of. After a failure there are no more steps."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass

from paged_stream.executor.base import Executor
from paged_stream.scheduler.output import (
    ModelOutput,
    ParkedLostError,
    RestoreTokens,
    SchedulerOutput,
    SequenceUpdate,
)
from paged_stream.scheduler.scheduler import Scheduler

Submitted = tuple[SchedulerOutput, Callable[[], ModelOutput]]


@dataclass(frozen=True, slots=True)
class Step:
    """What was computed, and what it meant for each sequence; ``started`` is of
    ``time.monotonic()``."""

    output: SchedulerOutput
    updates: list[SequenceUpdate]
    started: float


def _weakly(method: Callable[[RestoreTokens], None]) -> Callable[[RestoreTokens], None]:
    """A method that does not keep its object, so that nothing waits for the garbage collector."""
    reference = weakref.WeakMethod(method)

    def call(operation: RestoreTokens) -> None:
        bound = reference()
        assert bound is not None, "the stepper is gone"
        bound(operation)

    return call


class Stepper:
    """Drives a scheduler and an executor."""

    def __init__(self, scheduler: Scheduler, executor: Executor) -> None:
        self.num_computed_tokens = 0
        self.num_steps = 0
        self.step_seconds = 0.0
        self._scheduler = scheduler
        self._executor = executor
        self._failure: BaseException | None = None
        self._ahead: Submitted | None = None  # computed while the host is busy with what precedes
        scheduler.restore_through(_weakly(self._bring_back))

    @property
    def has_failed(self) -> bool:
        return self._failure is not None

    def close(self) -> None:
        """End the workers; what they compute ahead is dropped."""
        self._ahead = None
        self._executor.close()

    def flush(self) -> None:
        """Do to the cache now what the scheduler wants done before the next step.

        Raises:
            RuntimeError: the engine has failed before.
        """
        self._check()
        operations = self._scheduler.take_operations()
        if not operations:
            return
        try:
            self._executor.apply(operations)
        except BaseException as error:
            self._failure = error  # some were done, and cannot be done again
            raise

    def _bring_back(self, operation: RestoreTokens) -> None:
        """Bring a sequence back that was parked. Whatever fails costs that sequence alone.

        Raises:
            ParkedLostError: says what failed.
        """
        self.flush()
        try:
            self._executor.apply([operation])
        except ParkedLostError:
            raise
        except Exception as error:
            raise ParkedLostError(repr(error)) from error

    def step(
        self,
        unread: Callable[[], set[int]],
        masked: Callable[[SchedulerOutput], SchedulerOutput],
        ends_with: Callable[[int, int], bool],
    ) -> Step | None:
        """Compute one step, or as many as need no look in between; ``None`` if there was nothing
        to compute.

        Args:
            unread: tells the sequences that sit it out.
            masked: adds masks to what is computed next.
            ends_with: as ``stops`` of `Scheduler.update`.

        Raises:
            RuntimeError: the engine has failed before.
        """
        self._check()
        started = time.monotonic()
        submitted, self._ahead = self._ahead, None
        if submitted is None:
            output = self._scheduler.schedule(unread())
            self.flush()
            if not output.sequences:
                return None
            submitted = output, self._executor.submit(masked(output))
        output, wait = submitted
        if self._executor.runs_ahead:
            self._ahead = self._submit_following(output, unread())
        try:
            result = wait()
        except BaseException:
            self._ahead = None
            raise
        for scheduled, token_ids in zip(output.sequences, result.token_ids, strict=True):
            # What a step samples is what the next one computes.
            self.num_computed_tokens += scheduled.num_known_tokens + max(0, len(token_ids) - 1)
        self.num_steps += output.num_steps
        return Step(output, self._scheduler.update(output, result, ends_with), started)

    def _submit_following(self, output: SchedulerOutput, unread: set[int]) -> Submitted | None:
        """Let the device go on, if that is sure to be what comes next."""
        following = self._scheduler.schedule_following(output, unread)
        self.flush()
        return None if following is None else (following, self._executor.submit(following))

    def _check(self) -> None:
        if self._failure is not None:
            raise RuntimeError("the engine has failed and must be replaced") from self._failure
