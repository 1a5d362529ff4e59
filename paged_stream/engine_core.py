"""The engine's inside: turns of sequences, advanced step by step and delivered as text.

A turn is one generation: a request's, one of its copies', or a stream's. `LLMEngine` starts turns;
the core runs the scheduler and the executor, and turns tokens into deltas.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from paged_stream.detokenizer import CONTEXT_TOKENS, Detokenizer
from paged_stream.executor.base import Executor
from paged_stream.outputs import DeltaQueue, Inbox, RequestDelta
from paged_stream.scheduler.output import SchedulerOutput, SequenceUpdate
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.scheduler.scheduler import Scheduler
from paged_stream.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# Deltas of one request that may wait for `step` while others drive the engine.
_MAX_UNDELIVERED = 1024


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
    ``generates``, and beside it ``num_copies`` copies.
    """

    request_id: str
    index: int
    params: SamplingParams
    seed: int = 0
    detokenizer: Detokenizer | None = None
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
        self.streams: dict[int, StreamRecord] = {}  # by seq_id
        self.requests: dict[str, list[int]] = {}  # request_id to its unfinished seq_ids
        self.undelivered: list[RequestDelta] = []
        self.counters = Counters()
        self._eos_token_ids = eos_token_ids
        self._failure: BaseException | None = None

    def generate(self, seq_id: int, turn: Turn) -> None:
        """Let a sequence that has tokens generate."""
        params = turn.params
        stop_token_ids = tuple(params.stop_token_ids or ())
        if not params.ignore_eos:
            stop_token_ids += self._eos_token_ids
        if self.tokenizer is not None:
            context = self.scheduler.sequences[seq_id].last_token_ids(CONTEXT_TOKENS)
            turn.detokenizer = Detokenizer(self.tokenizer, params.stop or (), context)
        turn.generates = True
        self.scheduler.start_turn(seq_id, params, stop_token_ids=stop_token_ids, seed=turn.seed)

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
        for turn_id, turn in turns.items():
            self.generate(turn_id, turn)

    def step(self) -> bool:
        """Compute one step; False if there was nothing to compute.

        Raises:
            RuntimeError: the engine has failed before.
        """
        if self._failure is not None:
            raise RuntimeError("the engine has failed and must be replaced") from self._failure
        started = time.monotonic()
        output = self.scheduler.schedule(self.unread())
        self.flush()
        if not output.sequences:
            return False
        result = self.executor.execute(output)
        counters = self.counters
        for scheduled in output.sequences:
            counters.num_computed_tokens += len(scheduled.token_ids)
            turn = self.turns.get(scheduled.seq_id)
            if turn is not None and turn.is_queued:
                turn.is_queued = False
                waited = started - turn.queued_at
                counters.num_started_turns += 1
                counters.queue_seconds += waited
                if (record := self.streams.get(scheduled.seq_id)) is not None:
                    record.queue_seconds = waited
        for update in self.scheduler.update(output, result):
            self._deliver(update)
        self._note_evictions(output)
        counters.num_steps += 1
        counters.step_seconds += time.monotonic() - started
        return True

    def unread(self) -> set[int]:
        """Sequences that wait for their reader and sit out the steps until then: whoever reads
        slowly holds up what it reads only, and deltas do not pile up."""
        backlog: Counter[str] = Counter()
        if len(self.undelivered) >= _MAX_UNDELIVERED:
            backlog.update(delta.request_id for delta in self.undelivered)
        return {
            seq_id
            for seq_id, turn in self.turns.items()
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

    def _note_evictions(self, output: SchedulerOutput) -> None:
        """Count what left its window in this step, and tell who wants to know."""
        for scheduled in output.sequences:
            window = scheduled.sink_window
            record = self.streams.get(scheduled.seq_id)
            computed = scheduled.num_computed_tokens
            if record is not None:
                # Fewer than now if the cache had the first ones already.
                computed = min(computed, record.num_computed_tokens)
                record.num_computed_tokens = scheduled.num_tokens
            before = window.window_start(computed)
            after = window.window_start(scheduled.num_tokens)
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
            self.streams[update.seq_id].last_used = time.monotonic()
        turn = self.turns.get(update.seq_id)
        if turn is None:  # tokens appended to a stream were computed
            return
        text, finish_reason = "", update.finish_reason
        if update.token_id >= 0:
            self.counters.num_generated_tokens += 1
        if turn.num_copies and not turn.generates:
            if finish_reason is not None:  # the prompt is computed
                self.fan_out(update.seq_id, turn)
                finish_reason = None
        elif turn.detokenizer is not None:
            text, stopped = self._detokenize(turn, update)
            if stopped:
                finish_reason = "stop"
                self.scheduler.end_turn(update.seq_id)
        delta = RequestDelta(
            request_id=turn.request_id,
            index=turn.index,
            delta_text=text,
            delta_token_ids=[update.token_id] if update.token_id >= 0 else [],
            finished=finish_reason is not None,
            finish_reason=finish_reason,
            logprobs=[update.logprob] if update.logprob is not None else None,
            prompt_logprobs=update.prompt_logprobs or None,
        )
        if delta.finished:
            self._forget(update.seq_id, turn)
        if delta.finished or delta.delta_token_ids or delta.prompt_logprobs:
            (self.undelivered if turn.inbox is None else turn.inbox).append(delta)

    def _detokenize(self, turn: Turn, update: SequenceUpdate) -> tuple[str, bool]:
        """Text of an update, and whether it completed a stop string. A stop token has no text."""
        assert turn.detokenizer is not None
        text, stopped = "", False
        stop_token = update.finish_reason == "stop"
        if update.token_id >= 0 and not stop_token:
            text, stopped = turn.detokenizer.append(update.token_id)
        if update.finish_reason is not None and not stopped:
            rest, stopped = turn.detokenizer.finish()
            text += rest
        return text, stopped

    def _forget(self, seq_id: int, turn: Turn) -> None:
        del self.turns[seq_id]
        if seq_id in self.streams:
            return
        unfinished = self.requests[turn.request_id]
        unfinished.remove(seq_id)
        if not unfinished:
            del self.requests[turn.request_id]
