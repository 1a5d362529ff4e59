"""Continuous batching: which tokens of which sequences are computed in the next step.

One rule covers everything: every sequence has pending tokens, and a step computes some of them
within a token budget. Sequences with one pending token (they decode) come first, then those with
more in order of priority, then as many waiting ones as fit. Nothing that runs is ever preempted,
because admission reserves all that a sequence can need; to make room, streams that do not run are
parked, least recently used first.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
from array import array
from collections.abc import Collection, Iterable

from .config import SchedulerConfig
from .kv_cache_manager import NO_HIT, KVCacheManager, PrefixHit, hash_block, hash_seed
from .output import (
    DropParked,
    KVOperation,
    ModelOutput,
    ParkTokens,
    RestoreTokens,
    ScheduledSequence,
    SchedulerOutput,
    SequenceUpdate,
)
from .sampling_params import SamplingParams
from .sequence import Sequence, SequenceState, SequenceStatus
from .sink_window import SinkWindow

# Priority, arrival (which is unique), sequence.
_Entry = tuple[int, int, Sequence]
_NO_TOKENS: array[int] = array("i")


class Scheduler:
    """Owns the sequences and their blocks; knows nothing of text, tensors or processes."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.kv = KVCacheManager(
            config.num_blocks,
            config.block_size,
            enable_prefix_caching=config.enable_prefix_caching,
        )
        self.sequences: dict[int, Sequence] = {}
        self._arrivals = itertools.count()
        self._waiting: list[_Entry] = []  # heap of sequences that hold no blocks yet
        self._resumed: list[_Entry] = []  # heap of sequences that have theirs
        self._running: list[_Entry] = []  # sorted
        self._idle: dict[int, None] = {}  # streams with blocks between turns, oldest first
        self.num_prefix_queries = 0  # prompt tokens looked for in the cache
        self.num_prefix_hits = 0  # and found

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

    def restore(self, seq_id: int, state: SequenceState) -> Sequence:
        """Create an idle stream from a saved state. What it had computed is parked.

        Raises:
            ValueError: as `open`.
        """
        self.open(seq_id, state.sink_window, is_stream=True)
        sequence = Sequence.restore(seq_id, state, max_tokens=self.sequences[seq_id].max_tokens)
        self.sequences[seq_id] = sequence
        return sequence

    def append(self, seq_id: int, token_ids: Iterable[int]) -> None:
        """Add known tokens, to be computed when their turn comes: behind the present turn if it
        generates, at once otherwise."""
        sequence = self.sequences[seq_id]
        if sequence.generates:
            sequence.queued.extend(token_ids)
            return
        sequence.append(token_ids)
        sequence.num_prompt_tokens = sequence.num_tokens
        if sequence.status is SequenceStatus.IDLE and sequence.num_pending_tokens:
            self._enqueue(sequence)

    def start_turn(
        self,
        seq_id: int,
        sampling_params: SamplingParams,
        *,
        generates: bool = True,
        stop_token_ids: tuple[int, ...] = (),
        seed: int = 0,
    ) -> None:
        """Let a sequence that has tokens generate, or (to score them) only compute them."""
        sequence = self.sequences[seq_id]
        assert not sequence.generates and sequence.num_tokens, "generating already, or empty"
        if generates and sequence.num_computed_tokens == sequence.num_tokens:
            sequence.reread()
            if seq_id in self.kv:
                self.kv.truncate(seq_id, sequence.num_computed_tokens)
        sequence.num_prompt_tokens = sequence.num_tokens
        sequence.sampling_params = sampling_params
        sequence.generates = generates
        sequence.stop_token_ids = stop_token_ids
        sequence.seed = seed
        if sequence.status is SequenceStatus.IDLE:
            assert sequence.num_pending_tokens > 0, "nothing to compute"
            self._enqueue(sequence)

    def _enqueue(self, sequence: Sequence) -> None:
        sequence.status = SequenceStatus.WAITING
        self._idle.pop(sequence.seq_id, None)
        queue = self._resumed if sequence.seq_id in self.kv else self._waiting
        heapq.heappush(queue, (sequence.priority, next(self._arrivals), sequence))

    def end_turn(self, seq_id: int) -> None:
        """Stop a sequence between steps: a stream becomes idle, or goes on with what was appended
        meanwhile; another one is gone. A sequence that is unknown or idle is left alone."""
        sequence = self.sequences.get(seq_id)
        if sequence is None or sequence.status is SequenceStatus.IDLE:
            return
        if not sequence.is_stream:
            self.close(seq_id)
            return
        self._dequeue(sequence)
        sequence.status = SequenceStatus.IDLE
        sequence.generates = False
        if seq_id in self.kv:
            self.kv.fit(seq_id, sequence.num_computed_tokens, 1, may_grow=False)
            self._idle[seq_id] = None
        if sequence.queued or sequence.num_pending_tokens:
            queued, sequence.queued = sequence.queued, array("i")
            self.append(seq_id, queued)

    def close(self, seq_id: int) -> None:
        """Forget a sequence and free its blocks; an unknown one is left alone."""
        sequence = self.sequences.pop(seq_id, None)
        if sequence is None:
            return
        self._dequeue(sequence)
        sequence.status = SequenceStatus.FINISHED
        self._idle.pop(seq_id, None)
        if seq_id in self.kv:
            self.kv.free(seq_id)
        elif sequence.is_parked:
            self.kv.operations.append(DropParked(seq_id))

    def _dequeue(self, sequence: Sequence) -> None:
        if sequence.status is SequenceStatus.RUNNING:
            self._running = [entry for entry in self._running if entry[2] is not sequence]
        elif sequence.status is SequenceStatus.WAITING:
            for queue in (self._waiting, self._resumed):
                queue[:] = [entry for entry in queue if entry[2] is not sequence]
                heapq.heapify(queue)

    # Editing streams between turns

    def fork(self, seq_id: int, child_id: int) -> Sequence:
        """Create an idle sequence with the same tokens, which shares what was computed of them.

        If the cache has no room for both to go on, the copy is a parked one.

        Raises:
            RuntimeError: as `make_resident`.
        """
        parent = self.sequences[seq_id]
        assert child_id not in self.sequences and not parent.generates
        self.make_resident(seq_id)
        child = self.sequences[child_id] = parent.fork(child_id)
        if parent.num_computed_tokens == 0:
            return child
        if self.kv.fork(seq_id, child_id, parent.num_computed_tokens):
            self._idle[child_id] = None
        else:
            child.is_parked = True
            self.kv.operations.append(ParkTokens(child_id, self.kept_slots(seq_id)))
        return child

    def cut(self, seq_id: int, start: int, end: int) -> None:
        """Take the tokens at ``[start, end)`` out of an idle stream and close the gap."""
        sequence = self.sequences[seq_id]
        assert sequence.status is SequenceStatus.IDLE
        self.make_resident(seq_id)
        self.kv.close_gap(seq_id, sequence.first_kept, start, end)
        sequence.cut(start, end)

    def rewind(self, seq_id: int, num_tokens: int) -> None:
        """Forget an idle stream's tokens from position ``num_tokens`` on."""
        sequence = self.sequences[seq_id]
        assert sequence.status is SequenceStatus.IDLE
        if num_tokens < sequence.num_computed_tokens:
            self.make_resident(seq_id)
            self.kv.truncate(seq_id, num_tokens)
        sequence.rewind(num_tokens)

    def park(self, seq_id: int) -> None:
        """Move what a stream has computed out of the cache, unless it runs or has nothing there."""
        sequence = self.sequences[seq_id]
        if seq_id not in self.kv or sequence.status is SequenceStatus.RUNNING:
            return
        if sequence.num_computed_tokens:
            self.kv.operations.append(ParkTokens(seq_id, self.kept_slots(seq_id)))
            sequence.is_parked = True
        self.kv.free(seq_id)
        self._idle.pop(seq_id, None)
        sequence.trim(sequence.num_computed_tokens, slack=0)
        if sequence.status is SequenceStatus.WAITING:
            entry = next(entry for entry in self._resumed if entry[2] is sequence)
            self._remove(self._resumed, entry)
            heapq.heappush(self._waiting, entry)

    def make_resident(self, seq_id: int) -> None:
        """Bring a parked stream back into the cache, parking others if need be.

        Raises:
            RuntimeError: what runs leaves no room.
        """
        sequence = self.sequences[seq_id]
        if not sequence.is_parked:
            return
        assert sequence.status is SequenceStatus.IDLE
        while not self._restore(sequence):
            if not self._park_one():
                raise RuntimeError(
                    "the cache has no room for this stream beside what runs now; let it finish"
                )
        self._idle[seq_id] = None

    def kept_slots(self, seq_id: int) -> array[int]:
        """Slots of the computed tokens that later ones can see: sinks, then the window."""
        sequence = self.sequences[seq_id]
        computed = sequence.num_computed_tokens
        if not computed:
            return array("q")
        sinks = min(sequence.sink_window.num_sink_tokens, computed)
        slots = self.kv.slots(seq_id, 0, sinks)
        return slots + self.kv.slots(seq_id, sequence.first_kept, computed)

    def take_operations(self) -> list[KVOperation]:
        """What must be done to the cache, in order, before anything else is done with it."""
        operations, self.kv.operations = self.kv.operations, []
        return operations

    def idle_streams(self) -> Iterable[int]:
        """Streams that hold blocks between turns, least recently used first."""
        return self._idle.keys()

    def _restore(self, sequence: Sequence) -> bool:
        if not self.kv.admit_parked(
            sequence.seq_id,
            sequence.sink_window,
            sequence.max_tokens,
            sequence.num_computed_tokens,
        ):
            return False
        sequence.is_parked = False
        slots = self.kept_slots(sequence.seq_id)
        self.kv.operations.append(RestoreTokens(sequence.seq_id, slots))
        return True

    def _park_one(self, paused: Collection[int] = ()) -> bool:
        """Park the stream that has not run for longest, idle ones first."""
        waiting = (entry[2].seq_id for entry in self._resumed if entry[2].seq_id in paused)
        for seq_id in itertools.chain(self._idle, waiting):
            self.park(seq_id)
            return True
        return False

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
            paused: sequences that sit this step out. Others that wait get their places.
        """
        if paused and self.num_waiting:
            self._set_aside(paused)
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
        for sequence in prefilling:
            if budget == 0:
                break
            scheduled.append(self._take(sequence, budget, may_grow=self._may_grow))
            budget -= len(scheduled[-1].token_ids)
        while budget > 0 and (admitted := self._admit(budget, paused)) is not None:
            scheduled.append(self._take(admitted, budget, may_grow=self._may_grow))
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
            sequence.trim(
                self.kv.remember(sequence.seq_id, sequence.num_computed_tokens, sequence.token_ids)
            )
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
                assert not (holds_blocks and sequence.is_parked)
        queued = len(self._running) + self.num_waiting
        idle = sum(s.status is SequenceStatus.IDLE for s in self.sequences.values())
        assert queued + idle == len(self.sequences), "a sequence is queued twice or not at all"
        resident = {
            seq_id
            for seq_id, sequence in self.sequences.items()
            if sequence.status is SequenceStatus.IDLE and seq_id in self.kv
        }
        assert resident == self._idle.keys()

    @property
    def _may_grow(self) -> bool:
        """A larger ring for one sequence must not keep a waiting one out for good."""
        return not self._waiting or self.num_running >= self.config.max_num_seqs

    def _take(self, sequence: Sequence, budget: int, *, may_grow: bool) -> ScheduledSequence:
        """Cut the sequence's next chunk and see to its blocks."""
        seq_id, start = sequence.seq_id, sequence.num_computed_tokens
        wanted = min(sequence.num_pending_tokens, budget)
        chunk = self.kv.fit(seq_id, start, wanted, may_grow=may_grow)
        # Beside idle streams that fill the cache, a prompt would take a few tokens per step.
        while chunk < wanted and may_grow and self._park_one():
            chunk = self.kv.fit(seq_id, start, wanted, may_grow=True)
        end = start + chunk
        self.kv.allocate(seq_id, end)
        table = self.kv[seq_id]
        params = sequence.sampling_params
        samples = end == sequence.num_tokens
        return ScheduledSequence(
            seq_id=seq_id,
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

    def _set_aside(self, paused: Collection[int]) -> None:
        running, self._running = self._running, []
        for entry in running:
            if entry[2].seq_id in paused:
                entry[2].status = SequenceStatus.WAITING
                heapq.heappush(self._resumed, entry)
            else:
                self._running.append(entry)

    def _admit(self, budget: int, paused: Collection[int]) -> Sequence | None:
        """Let in the next waiting sequence, in order; one that has its blocks may pass one that
        has to wait for them."""
        if self.num_running >= self.config.max_num_seqs:
            return None
        heads = [self._head(queue, paused) for queue in (self._waiting, self._resumed)]
        for entry in sorted(entry for entry in heads if entry is not None):
            sequence = entry[2]
            had_blocks = sequence.seq_id in self.kv
            if not had_blocks and not self._give_blocks(sequence, budget, paused):
                continue
            self._remove(self._resumed if had_blocks else self._waiting, entry)
            bisect.insort(self._running, entry)
            sequence.status = SequenceStatus.RUNNING
            return sequence
        return None

    @staticmethod
    def _remove(queue: list[_Entry], entry: _Entry) -> None:
        if entry is queue[0]:
            heapq.heappop(queue)
        else:
            queue.remove(entry)
            heapq.heapify(queue)

    @staticmethod
    def _head(queue: list[_Entry], paused: Collection[int]) -> _Entry | None:
        if not queue:
            return None
        if queue[0][2].seq_id not in paused:
            return queue[0]
        return min((entry for entry in queue if entry[2].seq_id not in paused), default=None)

    def _give_blocks(self, sequence: Sequence, budget: int, paused: Collection[int]) -> bool:
        """Find room for a waiting sequence, and what the cache holds of it already."""
        hit = NO_HIT if sequence.is_parked else self._find_prefix(sequence)
        while True:
            if sequence.is_parked:
                admitted = self._restore(sequence)
            else:
                chunk = min(sequence.num_pending_tokens, budget)
                admitted = self._admit_new(sequence, chunk, hit)
            if admitted or not self._would_fit(sequence, paused) or not self._park_one(paused):
                return admitted

    def _would_fit(self, sequence: Sequence, paused: Collection[int]) -> bool:
        """Whether parking all that can be parked might make room: else none need leave."""
        parkable = itertools.chain(
            self._idle, (entry[2].seq_id for entry in self._resumed if entry[2].seq_id in paused)
        )
        most = sum(len(self.kv[seq_id].row) for seq_id in parkable)
        needed = self.kv.min_blocks(sequence.sink_window, sequence.max_tokens)
        return needed <= self.kv.num_unreserved_blocks + most

    def _admit_new(self, sequence: Sequence, chunk: int, hit: PrefixHit) -> bool:
        last_hash = sequence.block_hashes[hit.num_blocks - 1] if hit.num_blocks else b""
        window, max_tokens = sequence.sink_window, sequence.max_tokens
        if not self.kv.admit(sequence.seq_id, window, max_tokens, chunk, hit, last_hash):
            return False
        sequence.advance(hit.num_blocks * self.config.block_size)
        sequence.block_hashes = []
        self.num_prefix_hits += sequence.num_computed_tokens
        self.num_prefix_queries += sequence.num_tokens
        return True

    def _find_prefix(self, sequence: Sequence) -> PrefixHit:
        """Look for the sequence's leading full blocks in the cache; one token stays to compute."""
        params = sequence.sampling_params
        if not self.config.enable_prefix_caching or params.prompt_logprobs is not None:
            return NO_HIT
        size, hashes = self.config.block_size, sequence.block_hashes
        previous = hashes[-1] if hashes else hash_seed(sequence.sink_window)
        count = (sequence.num_pending_tokens - 1) // size
        for block in range(len(hashes), count):
            previous = hash_block(previous, sequence.token_ids(block * size, (block + 1) * size))
            hashes.append(previous)
        # There may be more of them, since a turn that generates has one more token to compute.
        return self.kv.find_prefix(sequence.sink_window, hashes[:count])

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
