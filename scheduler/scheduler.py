"""Continuous batching: which tokens of which sequences are computed in the next step.

One rule covers everything: every sequence has pending tokens, and a step computes some of them
within a token budget. Sequences with one pending token (they decode) come first, then those with
more in order of priority, then as many waiting ones as fit. Nothing is ever preempted, because
admission reserves all that a sequence can need.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
from array import array
from collections.abc import Collection, Iterable

from .config import SchedulerConfig
from .kv_cache_manager import KVCacheManager
from .output import ModelOutput, ScheduledSequence, SchedulerOutput, SequenceUpdate
from .sampling_params import SamplingParams
from .sequence import Sequence, SequenceStatus
from .sink_window import SinkWindow

# Priority, arrival (which is unique), sequence.
_Entry = tuple[int, int, Sequence]
_NO_TOKENS: array[int] = array("i")


class Scheduler:
    """Owns the sequences and their blocks; knows nothing of text, tensors or processes."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.kv = KVCacheManager(config.num_blocks, config.block_size)
        self.sequences: dict[int, Sequence] = {}
        self._arrivals = itertools.count()
        self._waiting: list[_Entry] = []  # heap of sequences that hold no blocks yet
        self._resumed: list[_Entry] = []  # heap of streams that kept theirs between turns
        self._running: list[_Entry] = []  # sorted

    # Coming and going

    def open(
        self,
        seq_id: int,
        sink_window: SinkWindow,
        *,
        is_stream: bool = False,
        max_tokens: int | None = None,
        priority: int = 0,
    ) -> Sequence:
        """Create an idle sequence; it takes blocks when its first turn is admitted.

        Args:
            max_tokens: the most tokens it can ever have. Under full attention never more than
                ``max_model_len``.

        Raises:
            ValueError: the cache is too small for it even when empty.
        """
        assert seq_id not in self.sequences, f"sequence {seq_id} exists"
        if sink_window.window_size is None:
            max_tokens = min(max_tokens or self.config.max_model_len, self.config.max_model_len)
        needed = self.kv.min_blocks(sink_window, max_tokens)
        if needed > self.config.num_blocks:
            raise ValueError(
                f"num_sink_tokens={sink_window.num_sink_tokens} and "
                f"window_size={sink_window.window_size} need {needed} blocks of "
                f"{self.config.block_size} tokens, the whole cache has {self.config.num_blocks}; "
                "lower them or raise kv_cache_memory_bytes"
            )
        sequence = Sequence(
            seq_id,
            sink_window,
            is_stream=is_stream,
            max_tokens=max_tokens,
            priority=priority,
        )
        self.sequences[seq_id] = sequence
        return sequence

    def start_turn(
        self,
        seq_id: int,
        token_ids: Iterable[int],
        sampling_params: SamplingParams,
        *,
        generates: bool = True,
        stop_token_ids: tuple[int, ...] = (),
        seed: int = 0,
    ) -> None:
        """Append tokens to an idle sequence and queue it, to generate or only to compute them.

        There must be something to compute: at least one token not computed yet, two for a turn
        that does not generate.
        """
        sequence = self.sequences[seq_id]
        assert sequence.status is SequenceStatus.IDLE, sequence.status
        sequence.append(token_ids)
        sequence.num_prompt_tokens = sequence.num_tokens
        sequence.sampling_params = sampling_params
        sequence.generates = generates
        sequence.stop_token_ids = stop_token_ids
        sequence.seed = seed
        assert sequence.num_pending_tokens > 0, "nothing to compute"
        sequence.status = SequenceStatus.WAITING
        queue = self._resumed if seq_id in self.kv else self._waiting
        heapq.heappush(queue, (sequence.priority, next(self._arrivals), sequence))

    def end_turn(self, seq_id: int) -> None:
        """Stop a sequence between steps: a stream becomes idle, another one is gone. A sequence
        that is unknown or idle is left alone."""
        sequence = self.sequences.get(seq_id)
        if sequence is None or sequence.status is SequenceStatus.IDLE:
            return
        if not sequence.is_stream:
            self.close(seq_id)
            return
        self._dequeue(sequence)
        sequence.status = SequenceStatus.IDLE
        if seq_id in self.kv:
            self.kv.fit(seq_id, sequence.num_computed_tokens, 1, may_grow=False)

    def close(self, seq_id: int) -> None:
        """Forget a sequence and free its blocks; an unknown one is left alone."""
        sequence = self.sequences.pop(seq_id, None)
        if sequence is None:
            return
        self._dequeue(sequence)
        sequence.status = SequenceStatus.FINISHED
        if seq_id in self.kv:
            self.kv.free(seq_id)

    def _dequeue(self, sequence: Sequence) -> None:
        if sequence.status is SequenceStatus.RUNNING:
            self._running = [entry for entry in self._running if entry[2] is not sequence]
        elif sequence.status is SequenceStatus.WAITING:
            for queue in (self._waiting, self._resumed):
                queue[:] = [entry for entry in queue if entry[2] is not sequence]
                heapq.heapify(queue)

    # Looking

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + len(self._resumed)

    def has_unfinished(self) -> bool:
        return bool(self._running or self._waiting or self._resumed)

    # One step

    def schedule(self, paused: Collection[int] = ()) -> SchedulerOutput:
        """Choose the next step's chunks and give them blocks.

        Args:
            paused: running sequences that sit this step out. They keep their places.
        """
        budget = self.config.max_num_batched_tokens
        scheduled = []
        prefilling = []
        for _, _, sequence in self._running:
            if sequence.seq_id in paused:
                continue
            if sequence.num_pending_tokens > 1:
                prefilling.append(sequence)
            else:
                scheduled.append(self._take(sequence, 1, may_grow=False))
        budget -= len(scheduled)
        # A larger ring for one sequence must not keep a waiting one out for good.
        may_grow = not self._waiting or self.num_running >= self.config.max_num_seqs
        for sequence in prefilling:
            if budget == 0:
                break
            scheduled.append(self._take(sequence, budget, may_grow=may_grow))
            budget -= len(scheduled[-1].token_ids)
        while budget > 0 and (admitted := self._admit(budget)) is not None:
            scheduled.append(self._take(admitted, budget, may_grow=may_grow))
            budget -= len(scheduled[-1].token_ids)
        return SchedulerOutput(tuple(scheduled))

    def update(self, output: SchedulerOutput, result: ModelOutput) -> list[SequenceUpdate]:
        """Advance the sequences by what the step computed; the only place where they advance.

        A sequence whose turn was ended meanwhile is passed over.
        """
        updates = []
        for scheduled, token_id, logprob, prompt_logprobs in zip(
            output.sequences,
            result.token_ids,
            result.logprobs,
            result.prompt_logprobs,
            strict=True,
        ):
            sequence = self.sequences.get(scheduled.seq_id)
            if sequence is None or sequence.status is not SequenceStatus.RUNNING:
                continue
            sequence.advance(len(scheduled.token_ids))
            finish_reason = None
            if token_id >= 0:
                sequence.append((token_id,))
                finish_reason = self._finish_reason(sequence, token_id)
            elif sequence.num_pending_tokens == 0:
                finish_reason = "length"
            if finish_reason is not None:
                self.end_turn(scheduled.seq_id)
            updates.append(
                SequenceUpdate(scheduled.seq_id, token_id, finish_reason, logprob, prompt_logprobs)
            )
        return updates

    def check_integrity(self) -> None:
        """Assert every invariant of the scheduler; for tests, between steps."""
        self.kv.check_integrity()
        assert len(self._running) <= self.config.max_num_seqs
        assert self._running == sorted(self._running)
        for queue, status, holds_blocks in (
            (self._running, SequenceStatus.RUNNING, True),
            (self._waiting, SequenceStatus.WAITING, False),
            (self._resumed, SequenceStatus.WAITING, True),
        ):
            for _, _, sequence in queue:
                assert self.sequences[sequence.seq_id] is sequence
                assert sequence.status is status
                assert (sequence.seq_id in self.kv) == holds_blocks
                assert sequence.num_pending_tokens > 0
        queued = len(self._running) + self.num_waiting
        idle = sum(s.status is SequenceStatus.IDLE for s in self.sequences.values())
        assert queued + idle == len(self.sequences), "a sequence is queued twice or not at all"

    def _take(self, sequence: Sequence, budget: int, *, may_grow: bool) -> ScheduledSequence:
        """Cut the sequence's next chunk and see to its blocks."""
        start = sequence.num_computed_tokens
        chunk = min(sequence.num_pending_tokens, budget)
        chunk = self.kv.fit(sequence.seq_id, start, chunk, may_grow=may_grow)
        end = start + chunk
        self.kv.allocate(sequence.seq_id, end)
        table = self.kv[sequence.seq_id]
        params = sequence.sampling_params
        samples = end == sequence.num_tokens
        return ScheduledSequence(
            seq_id=sequence.seq_id,
            token_ids=sequence.token_ids(start, end),
            num_computed_tokens=start,
            num_prompt_tokens=sequence.num_prompt_tokens,
            next_token_id=-1 if samples else sequence.token_ids(end, end + 1)[0],
            block_row=table.row,
            ring_blocks=table.ring_blocks,
            sink_window=sequence.sink_window,
            sampling_params=params,
            stop_token_ids=sequence.stop_token_ids,
            seed=sequence.seed,
            history=sequence.visible_token_ids()
            if samples and params.has_penalties
            else _NO_TOKENS,
        )

    def _admit(self, budget: int) -> Sequence | None:
        """Let in the next waiting sequence, in order; a stream that has its blocks may pass one
        that has to wait for them."""
        if self.num_running >= self.config.max_num_seqs:
            return None
        queues = [queue for queue in (self._waiting, self._resumed) if queue]
        for queue in sorted(queues, key=lambda queue: queue[0][:2]):
            sequence = queue[0][2]
            chunk = min(sequence.num_pending_tokens, budget)
            if queue is self._resumed or self.kv.admit(
                sequence.seq_id, sequence.sink_window, sequence.max_tokens, chunk
            ):
                bisect.insort(self._running, heapq.heappop(queue))
                sequence.status = SequenceStatus.RUNNING
                return sequence
        return None

    def _finish_reason(self, sequence: Sequence, token_id: int) -> str | None:
        params = sequence.sampling_params
        num_output = sequence.num_output_tokens
        if token_id in sequence.stop_token_ids and num_output > params.min_tokens:
            return "stop"
        if params.max_tokens is not None and num_output >= params.max_tokens:
            return "length"
        if sequence.max_tokens is not None and sequence.num_tokens >= sequence.max_tokens:
            return "length"
        return None
