"""The engine's inside: turns of sequences, advanced step by step and delivered as text.

A turn is one generation: a request's, one of its copies', or a stream's. `LLMEngine` starts turns;
the core runs the scheduler and the executor, and turns tokens into deltas.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from paged_stream.engine.lifetime import Errands, finish_before_exit
from paged_stream.engine.outputs import DeltaQueue, Inbox, RequestDelta
from paged_stream.executor.base import Executor
from paged_stream.scheduler.output import ModelOutput, SchedulerOutput, SequenceUpdate
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.scheduler.scheduler import Scheduler
from paged_stream.text.detokenizer import CONTEXT_TOKENS, Detokenizer
from paged_stream.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

Submitted = tuple[SchedulerOutput, Callable[[], ModelOutput]]
# A stream (its seq_id) to be closed, or whose turn is to end if it is the one that fills the inbox.
Errand = tuple[int, Inbox | None]

# Deltas of one request that may wait for `step` while others drive the engine.
_MAX_UNDELIVERED = 1024
# Tokens of an interrupted turn that are looked at again for text that was held back.
_DETOKENIZED_AGAIN = 512


@dataclass(slots=True)
class Counters:
    """Since the engine's start."""

    num_computed_tokens: int = 0
    num_generated_tokens: int = 0
    num_evicted_tokens: int = 0
    num_steps: int = 0
    step_seconds: float = 0.0
    num_started_turns: int = 0
    queue_seconds: float = 0.0


@dataclass(slots=True, kw_only=True)
class Turn:
    """What the engine remembers of a running turn of one sequence.

    ``inbox`` is where a stream's deltas go. Once the prompt of a request is computed, its sequence
    ``generates``, and beside it ``num_copies`` copies. ``new_text`` belongs to the next delta.
    """

    request_id: str
    index: int
    params: SamplingParams
    seed: int = 0
    detokenizer: Detokenizer | None = None
    new_text: str = ""
    inbox: Inbox | None = None
    num_copies: int = 0
    generates: bool = False
    queued_at: float = field(default_factory=time.monotonic)
    is_queued: bool = True


@dataclass(slots=True)
class StreamRecord:
    """What the engine remembers of an open stream."""

    last_used: float
    on_evict: Callable[[int, int], None] | None
    num_computed_tokens: int = 0  # of which evictions were told
    queue_seconds: float = 0.0


class EngineCore:
    """Owns the scheduler, the executor and what the engine remembers of turns and streams."""

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        tokenizer: Tokenizer | None,
        eos_token_ids: tuple[int, ...],
    ) -> None:
        self.scheduler = scheduler
        self.executor = executor
        self.tokenizer = tokenizer
        self.seq_ids = itertools.count()
        self.turns: dict[int, Turn] = {}  # by seq_id
        self._begun: dict[int, Turn] = {}  # those that may have delivered something
        self.streams: dict[int, StreamRecord] = {}  # by seq_id
        self.requests: dict[str, list[int]] = {}  # request_id to its unfinished seq_ids
        self.undelivered: list[RequestDelta] = []
        self.errands: Errands[Errand] = Errands()
        self.counters = Counters()
        self.clock: Callable[[], float] = time.monotonic  # seconds; tells how long a stream rests
        self._eos_token_ids = eos_token_ids
        self._failure: BaseException | None = None
        self._stepping = threading.Lock()
        self._ahead: Submitted | None = None  # computed while the host is busy with what precedes

    def generate(self, seq_id: int, turn: Turn, num_generated: int = 0) -> None:
        """Let a sequence that has tokens generate; its last ``num_generated`` are of this turn."""
        params = turn.params
        stop_token_ids = tuple(params.stop_token_ids or ())
        if not params.ignore_eos:
            stop_token_ids += self._eos_token_ids
        if self.tokenizer is not None:
            turn.detokenizer = self._detokenizer(seq_id, params, num_generated)
        turn.generates = True
        self.scheduler.start_turn(
            seq_id,
            params,
            stop_token_ids=stop_token_ids,
            seed=turn.seed,
            num_generated=num_generated,
        )

    def _detokenizer(self, seq_id: int, params: SamplingParams, num_generated: int) -> Detokenizer:
        """One that has seen the turn's last tokens, whose end may be no whole character yet, or
        the beginning of a stop string."""
        assert self.tokenizer is not None
        count = min(num_generated, _DETOKENIZED_AGAIN)
        ids = self.scheduler.sequences[seq_id].last_token_ids(count + CONTEXT_TOKENS)
        split = max(0, len(ids) - count)
        context, again = ids[:split], ids[split:]
        detokenizer = Detokenizer(self.tokenizer, params.stop or (), context)
        for token_id in again:
            detokenizer.append(token_id)
        return detokenizer

    def fan_out(self, seq_id: int, leader: Turn) -> None:
        """Let a sequence generate, and copies of it beside it, each with a seed of its own."""
        turns = {seq_id: leader}
        for index in range(1, leader.num_copies + 1):
            child_id = next(self.seq_ids)
            self.scheduler.fork(seq_id, child_id).is_stream = False
            turns[child_id] = replace(leader, index=index, seed=leader.seed + index)
            self.requests[leader.request_id].append(child_id)
        self.scheduler.sequences[seq_id].is_stream = False
        self.turns |= turns
        if leader.num_copies:  # which have one inbox
            self._begun |= turns
        for turn_id, turn in turns.items():
            self.generate(turn_id, turn)

    @finish_before_exit
    def step(self) -> bool:
        """Compute one step, or as many as need no look in between; False if there was nothing to
        compute.

        Raises:
            RuntimeError: the engine has failed before, or is within a step, of another thread for
                example.
        """
        with self._alone():
            return self._step()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._stepping.acquire(blocking=False):
            raise RuntimeError(
                "the engine is within a step; let one thread at a time use it, or use "
                "AsyncLLMEngine, which serves any number of threads"
            )
        try:
            yield
        finally:
            self._stepping.release()

    def run_errands(self) -> None:
        """Do what finalizers have asked for; within a step, that waits for its end."""
        while self.errands and not self._stepping.locked():
            with self._alone():
                seq_id, inbox = self.errands.take()
                if inbox is None:
                    self.close_stream(seq_id)
                else:
                    self.end_turn(seq_id, inbox)

    def end_turn(self, seq_id: int, inbox: Inbox | None) -> None:
        """Stop a stream's turn, if it is the one that fills ``inbox`` or that is not given."""
        turn = self.turns.get(seq_id)
        if turn is not None and (inbox is None or inbox is turn.inbox):
            self.drop_turn(seq_id)
            self.scheduler.end_turn(seq_id)
            self.streams[seq_id].last_used = self.clock()

    def close_stream(self, seq_id: int) -> None:
        """Free a stream's blocks, or what was parked of it."""
        self.drop_turn(seq_id)
        self.streams.pop(seq_id, None)
        self.scheduler.close(seq_id)
        if not self.has_failed:
            self.flush()  # what was parked goes now, even if nothing is computed any more

    @finish_before_exit
    def close(self) -> None:
        """End the workers and free what they hold.

        Raises:
            RuntimeError: as `step`, for an engine that is within one.
        """
        with self._alone():
            self._ahead = None
            self.executor.close()

    def _step(self) -> bool:
        if self._failure is not None:
            raise RuntimeError("the engine has failed and must be replaced") from self._failure
        started = time.monotonic()
        submitted, self._ahead = self._ahead, None
        if submitted is None:
            output = self.scheduler.schedule(self.unread())
            self.flush()
            if not output.sequences:
                return False
            submitted = output, self.executor.submit(output)
        output, wait = submitted
        if self.executor.runs_ahead:
            self._ahead = self._submit_following(output)
        try:
            result = wait()
        except BaseException:
            self._ahead = None
            raise
        for scheduled, token_ids in zip(output.sequences, result.token_ids, strict=True):
            # What a step samples is what the next one computes.
            computed = len(scheduled.token_ids) + max(0, len(token_ids) - 1)
            self.counters.num_computed_tokens += computed
            self._note_start(scheduled.seq_id, started)
        updates = self.scheduler.update(output, result, self._completes_stop)
        for update in updates:
            self._deliver(update)
        self._note_evictions(output, updates)
        self.counters.num_steps += output.num_steps
        self.counters.step_seconds += time.monotonic() - started
        return True

    def _submit_following(self, output: SchedulerOutput) -> Submitted | None:
        """Let the device go on, if that is sure to be what comes next."""
        following = self.scheduler.schedule_following(output, self.unread())
        self.flush()
        return None if following is None else (following, self.executor.submit(following))

    def _note_start(self, seq_id: int, started: float) -> None:
        """Count how long a turn has waited, if this was its first step."""
        turn = self.turns.get(seq_id)
        if turn is None or not turn.is_queued:
            return
        turn.is_queued = False
        self._begun[seq_id] = turn
        waited = started - turn.queued_at
        self.counters.num_started_turns += 1
        self.counters.queue_seconds += waited
        if (record := self.streams.get(seq_id)) is not None:
            record.queue_seconds = waited

    def unread(self) -> set[int]:
        """Sequences that wait for their reader and sit out the steps until then: whoever reads
        slowly holds up what it reads only, and deltas do not pile up."""
        begun = self._begun.items()  # not all turns: any number may wait for their first step
        backlog: Counter[str] = Counter()
        if len(self.undelivered) >= _MAX_UNDELIVERED:
            backlog.update(delta.request_id for delta in self.undelivered)
        return {
            seq_id
            for seq_id, turn in begun
            if (
                backlog[turn.request_id] >= _MAX_UNDELIVERED
                if turn.inbox is None
                else turn.inbox.is_full
            )
        }

    def at_rest(self) -> set[int]:
        """Sequences that may leave the cache for an edit of another stream: those that `unread`
        tells, and those that are read in the caller's thread, which is not reading now."""
        turns = self.turns.items()
        return self.unread() | {i for i, turn in turns if isinstance(turn.inbox, DeltaQueue)}

    @property
    def has_failed(self) -> bool:
        return self._failure is not None

    @finish_before_exit
    def flush(self) -> None:
        """Do to the cache now what the scheduler wants done before the next step.

        Raises:
            RuntimeError: the engine has failed before.
        """
        if self._failure is not None:
            raise RuntimeError("the engine has failed and must be replaced") from self._failure
        operations = self.scheduler.take_operations()
        if not operations:
            return
        try:
            self.executor.apply(operations)
        except BaseException as error:
            self._failure = error  # some were done, and cannot be done again
            raise

    def _note_evictions(self, output: SchedulerOutput, updates: list[SequenceUpdate]) -> None:
        """Count what left its window in this step, and tell who wants to know."""
        now = {update.seq_id: update.num_computed_tokens for update in updates}
        for scheduled in output.sequences:
            if scheduled.seq_id not in now:
                continue
            window = scheduled.sink_window
            record = self.streams.get(scheduled.seq_id)
            computed = scheduled.num_computed_tokens
            if record is not None:
                # Fewer than now if the cache had the first ones already.
                computed = min(computed, record.num_computed_tokens)
                record.num_computed_tokens = now[scheduled.seq_id]
            before = window.window_start(computed)
            after = window.window_start(now[scheduled.seq_id])
            first = max(before, window.num_sink_tokens)
            if after <= first:
                continue
            self.counters.num_evicted_tokens += after - first
            if record is None or record.on_evict is None:
                continue
            try:
                record.on_evict(first, after)
            except Exception:
                logger.exception("on_evict failed")  # the step is done, and is others' too

    def _deliver(self, update: SequenceUpdate) -> None:
        if update.seq_id in self.streams:
            self.streams[update.seq_id].last_used = self.clock()
        turn = self.turns.get(update.seq_id)
        if turn is None:  # tokens appended to a stream were computed
            return
        text, finish_reason = "", update.finish_reason
        self.counters.num_generated_tokens += len(update.token_ids)
        if turn.num_copies and not turn.generates:
            if finish_reason is not None:  # the prompt is computed
                self.fan_out(update.seq_id, turn)
                finish_reason = None
        elif turn.detokenizer is not None:
            text, turn.new_text = turn.new_text, ""
            if finish_reason is not None:
                rest, stopped = turn.detokenizer.finish()
                text += rest
                finish_reason = "stop" if stopped else finish_reason
        delta = RequestDelta(
            request_id=turn.request_id,
            index=turn.index,
            delta_text=text,
            delta_token_ids=update.token_ids,
            finished=finish_reason is not None,
            finish_reason=finish_reason,
            logprobs=[update.logprob] if update.logprob is not None else None,
            prompt_logprobs=update.prompt_logprobs or None,
        )
        if delta.finished:
            self._forget(update.seq_id, turn)
        if delta.finished or delta.delta_token_ids or delta.prompt_logprobs:
            (self.undelivered if turn.inbox is None else turn.inbox).append(delta)

    def _completes_stop(self, seq_id: int, token_id: int) -> bool:
        """Add a token's text to its turn; whether that completes a stop string. A stop token has
        no text, and does not come here."""
        turn = self.turns.get(seq_id)
        if turn is None or turn.detokenizer is None:
            return False
        text, stopped = turn.detokenizer.append(token_id)
        turn.new_text += text
        return stopped

    def drop_turn(self, seq_id: int) -> None:
        """Forget a sequence's turn, if it has one."""
        self.turns.pop(seq_id, None)
        self._begun.pop(seq_id, None)

    def _forget(self, seq_id: int, turn: Turn) -> None:
        self.drop_turn(seq_id)
        if seq_id in self.streams:
            return
        unfinished = self.requests[turn.request_id]
        unfinished.remove(seq_id)
        if not unfinished:
            del self.requests[turn.request_id]
