"""Continuous batching: which tokens of which sequences are computed in the next step.

One rule covers everything: every sequence has pending tokens, and a step computes some of them
within a token budget. Sequences with one pending token (they decode) come first, then those with
more in order of priority, and as many waiting ones as fit. Admission reserves all that a sequence
can need, so what runs never lacks a block. To make room, streams that do not run are parked, least
recently used first; then what has a lower priority than the sequence that waits. It goes on later,
where it was.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Set

from .decode_steps import give_more_steps, give_steps
from .kv_cache_manager import KVCacheManager
from .output import (
    DropParked,
    KVOperation,
    ModelOutput,
    ParkedLostError,
    ParkTokens,
    RestoreTokens,
    ScheduledSequence,
    SchedulerOutput,
    SequenceUpdate,
)
from .queues import Entry, Queues
from .residency import Residency
from .sampling_params import SamplingParams
from .scheduler_config import SchedulerConfig
from .sequence import Sequence, SequenceState, SequenceStatus
from .sink_window import SinkWindow
from .speculation import Guesser, Speculator
from .step import Step
from .turn_end import gain, max_new_tokens

_NO_TOKENS: array[int] = array("i")


class Scheduler:
    """Owns the sequences and their blocks; knows nothing of text, tensors or processes.

    Args:
        guesser: guesses what sequences will sample; ``None`` computes one token after the other.
    """

    def __init__(self, config: SchedulerConfig, guesser: Guesser | None = None) -> None:
        self.config = config
        self.kv = KVCacheManager(
            config.num_blocks,
            config.block_size,
            min_chunk=max(config.chunk_size or 1, 1 + (guesser.num_tokens if guesser else 0)),
            enable_prefix_caching=config.enable_prefix_caching,
        )
        self.sequences: dict[int, Sequence] = {}
        self.num_preemptions = 0  # places given to a higher priority
        self._queues = Queues()
        self._lost: dict[int, ParkedLostError] = {}
        self._residency = Residency(self.kv, self.sequences, self._queues)
        self._speculator = None
        if guesser is not None:
            self._speculator = Speculator(self.kv, guesser, self.sequences)

    # Coming and going

    def open(
        self,
        seq_id: int,
        sink_window: SinkWindow,
        *,
        is_stream: bool = False,
        max_tokens: int | None = None,
        priority: int = 0,
        adapter: str = "",
    ) -> Sequence:
        """Create an idle sequence; it takes blocks when its first turn is admitted.

        Args:
            max_tokens: the most tokens it can ever have. Under full attention never more than
                ``max_model_len``.
            adapter: as in `Sequence`.

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
            adapter=adapter,
        )
        self.sequences[seq_id] = sequence
        return sequence

    def restore(self, seq_id: int, state: SequenceState, *, adapter: str = "") -> Sequence:
        """Create an idle stream from a saved state. What it had computed is parked.

        Raises:
            ValueError: as `open`.
        """
        limit = self.open(seq_id, state.sink_window, is_stream=True).max_tokens
        sequence = Sequence.restore(seq_id, state, max_tokens=limit, adapter=adapter)
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
            self._queues.enqueue(sequence, has_blocks=seq_id in self.kv)

    def start_turn(
        self,
        seq_id: int,
        sampling_params: SamplingParams,
        *,
        generates: bool = True,
        embeds: bool = False,
        stop_token_ids: tuple[int, ...] = (),
        bad_words: tuple[tuple[int, ...], ...] = (),
        seed: int = 0,
        num_generated: int = 0,
    ) -> None:
        """Let a sequence that has tokens generate, or (to score them) only compute them.

        Args:
            embeds: compute all tokens, and end with the last hidden state instead of a token.
            num_generated: its last so many tokens are of this turn already.
        """
        sequence = self.sequences[seq_id]
        assert not sequence.generates and sequence.num_tokens, "generating already, or empty"
        if generates:
            self.reread(seq_id)
        sequence.num_prompt_tokens = sequence.num_tokens - num_generated
        sequence.sampling_params = sampling_params
        sequence.generates, sequence.embeds = generates, embeds
        sequence.stop_token_ids = stop_token_ids
        sequence.bad_words = bad_words
        sequence.seed = seed
        if sequence.status is SequenceStatus.IDLE:
            assert sequence.num_pending_tokens > 0, "nothing to compute"
            self._queues.enqueue(sequence, has_blocks=seq_id in self.kv)

    def reread(self, seq_id: int) -> None:
        """If all of a sequence is computed, compute its last token again with what comes next, as
        a turn does that begins there."""
        sequence = self.sequences[seq_id]
        if sequence.num_computed_tokens == sequence.num_tokens:
            sequence.reread()

    def end_turn(self, seq_id: int) -> None:
        """Stop a sequence between steps: a stream becomes idle, or goes on with what was appended
        meanwhile; another one is gone. A sequence that is unknown or idle is left alone."""
        sequence = self.sequences.get(seq_id)
        if sequence is None or sequence.status is SequenceStatus.IDLE:
            return
        if not sequence.is_stream:
            self.close(seq_id)
            return
        sequence.generates = sequence.rereads = False
        sequence.sampling_params = SamplingParams()  # what is appended now asks for nothing
        self._rest(sequence)
        if sequence.queued or sequence.num_pending_tokens:
            queued, sequence.queued = sequence.queued, array("i")
            self.append(seq_id, queued)

    def withdraw(self, seq_id: int, start: int, end: int, num_computed: int) -> int:
        """Take back what was appended at ``[start, end)``, but for what is computed and one token
        more: the stream is as if only so much had been appended. Nothing, if it generates or if
        something was appended behind.

        Args:
            num_computed: tokens that were computed when it was appended.

        Returns:
            Where the stream ends.
        """
        sequence = self.sequences[seq_id]
        if not sequence.generates and sequence.num_tokens == end:
            computed = sequence.num_computed_tokens
            keeps_some = computed >= start and computed > num_computed
            self._withdraw(sequence, min(computed + 1, end) if keeps_some else start)
        return sequence.num_tokens

    def _withdraw(self, sequence: Sequence, num_tokens: int) -> None:
        sequence.withdraw(num_tokens)
        if sequence.status is not SequenceStatus.IDLE and not sequence.num_pending_tokens:
            self._rest(sequence)

    def _rest(self, sequence: Sequence) -> None:
        """Let a sequence wait for nothing any more, with what it has in the cache."""
        seq_id = sequence.seq_id
        self._queues.dequeue(sequence)
        sequence.status = SequenceStatus.IDLE
        if seq_id in self.kv:
            self.kv.fit(seq_id, sequence.num_computed_tokens, 1, may_grow=False)
            self._queues.idle[seq_id] = None

    def close(self, seq_id: int) -> None:
        """Forget a sequence and free its blocks; an unknown one is left alone."""
        sequence = self.sequences.pop(seq_id, None)
        if sequence is None:
            return
        self._queues.dequeue(sequence)
        sequence.status = SequenceStatus.FINISHED
        if self._speculator is not None:
            self._speculator.forget(seq_id)
        if seq_id in self.kv:
            self.kv.free(seq_id)
        elif sequence.is_parked:
            self.kv.operations.append(DropParked(seq_id))

    # Editing streams between turns

    def fork(self, seq_id: int, child_id: int, paused: Collection[int] = ()) -> Sequence:
        """Create an idle sequence with the same tokens, which shares what was computed of them.

        If the cache has no room for both to go on, the copy is a parked one.

        Args:
            paused: sequences that may be parked to make room, as in `schedule`.

        Raises:
            RuntimeError: as `make_resident`.
        """
        parent = self.sequences[seq_id]
        assert child_id not in self.sequences and not parent.generates
        self.make_resident(seq_id, paused)
        child = self.sequences[child_id] = parent.fork(child_id)
        if parent.num_computed_tokens == 0:
            return child
        if self.kv.fork(seq_id, child_id, parent.num_computed_tokens):
            self._queues.idle[child_id] = None
        else:
            child.is_parked = True
            self.kv.operations.append(ParkTokens(child_id, self.kept_slots(seq_id)))
        return child

    def cut(self, seq_id: int, start: int, end: int, paused: Collection[int] = ()) -> None:
        """Take the tokens at ``[start, end)`` out of an idle stream and close the gap.

        Raises:
            RuntimeError: as `make_resident`.
        """
        sequence = self.sequences[seq_id]
        assert sequence.status is SequenceStatus.IDLE
        self.make_resident(seq_id, paused)
        self.kv.close_gap(seq_id, sequence.first_kept, start, end)
        sequence.cut(start, end)

    def rewind(self, seq_id: int, num_tokens: int, paused: Collection[int] = ()) -> None:
        """Forget a stream's tokens from position ``num_tokens`` on, computed or not, between its
        turns.

        Raises:
            RuntimeError: as `make_resident`.
        """
        sequence = self.sequences[seq_id]
        assert not sequence.generates
        if num_tokens > sequence.num_computed_tokens:
            self._withdraw(sequence, num_tokens)
            return
        self._rest(sequence)
        try:
            # What is parked is what is kept, of which pending tokens may have pushed out a part.
            self.make_resident(seq_id, paused)
            if seq_id in self.kv:
                self.kv.truncate(seq_id, num_tokens)
            sequence.rewind(num_tokens)
        finally:
            if sequence.num_pending_tokens:  # there was no room for it
                self.append(seq_id, ())

    def park(self, seq_id: int) -> None:
        """Move what a stream has computed out of the cache, unless it runs or has nothing there."""
        self._residency.park(seq_id)

    def make_resident(self, seq_id: int, paused: Collection[int] = ()) -> None:
        """Bring a parked stream back into the cache, parking others if need be.

        Raises:
            RuntimeError: what runs leaves no room.
            ParkedLostError: it does not come back; it is to be closed.
        """
        self._residency.make_resident(self.sequences[seq_id], paused)

    def restore_through(self, bring_back: Callable[[RestoreTokens], None]) -> None:
        """Have what was parked of a sequence brought back at once, behind what `take_operations`
        has, instead of by one more operation.

        Args:
            bring_back: raises `ParkedLostError` if it does not come back.
        """
        self._residency.bring_back = bring_back

    def lose(self, seq_id: int, error: ParkedLostError) -> None:
        """Close a sequence that does not come back from where it was parked."""
        self.close(seq_id)
        self._lost[seq_id] = error

    def take_lost(self) -> dict[int, ParkedLostError]:
        """Sequences that were closed since the last call because they do not come back, and why."""
        lost, self._lost = self._lost, {}
        return lost

    def kept_slots(self, seq_id: int) -> array[int]:
        """Slots of the computed tokens that later ones can see: sinks, then the window."""
        return self._residency.kept_slots(seq_id)

    def take_operations(self) -> list[KVOperation]:
        """What must be done to the cache, in order, before anything else is done with it."""
        operations, self.kv.operations = self.kv.operations, []
        return operations

    # Looking

    @property
    def num_running(self) -> int:
        return len(self._queues.running)

    @property
    def num_waiting(self) -> int:
        return self._queues.num_waiting

    @property
    def num_draft_tokens(self) -> int:
        """Tokens that were guessed and computed."""
        return 0 if self._speculator is None else self._speculator.num_draft_tokens

    @property
    def num_accepted_tokens(self) -> int:
        """Those of them that were right."""
        return 0 if self._speculator is None else self._speculator.num_accepted_tokens

    @property
    def num_prefix_queries(self) -> int:
        """Tokens that sequences began with and that were looked for in the cache."""
        return self._residency.num_prefix_queries

    @property
    def num_prefix_hits(self) -> int:
        """Those of them that were found."""
        return self._residency.num_prefix_hits

    def has_unfinished(self) -> bool:
        return self.num_running + self.num_waiting > 0

    def idle_streams(self) -> Iterable[int]:
        """Streams that hold blocks between turns, least recently used first."""
        return self._queues.idle.keys()

    # One step

    def schedule(self, paused: Collection[int] = ()) -> SchedulerOutput:
        """Choose the next step's chunks and give them blocks; for several steps, if all that is
        left to do is to decode.

        Args:
            paused: sequences that sit this step out. Others that wait get their places.
        """
        if paused and self.num_waiting:
            self._queues.set_aside(paused)
        step = Step(self.config.max_num_batched_tokens)
        prefilling = []
        for _, _, sequence in self._queues.running:
            if sequence.seq_id in paused:
                continue
            if sequence.num_pending_tokens > 1:
                prefilling.append(sequence)
            else:
                step.add(self._take(sequence, 1, may_grow=False))
        may_grow = self._may_grow(paused)
        for sequence in prefilling:
            if self._let_in(step, paused, before=sequence.priority):
                may_grow = self._may_grow(paused)
            if not self._is_running(sequence.seq_id):  # somebody has its place
                continue
            if self._wanted(sequence, step.budget) == 0:
                break
            step.add(self._take(sequence, step.budget, may_grow=may_grow))
        self._let_in(step, paused)
        sequences, limit = step.sequences, self.config.num_decode_steps
        if self._speculator is not None:
            sequences = self._speculator.extend(sequences, step.budget)
            limit = min(limit, self._speculator.steps_until_guess(sequences))
        return give_steps(
            self.kv,
            sequences,
            limit,
            anybody_waits=self._anybody_waits(len(sequences), paused),
        )

    def schedule_following(
        self, output: SchedulerOutput, paused: Set[int] = frozenset()
    ) -> SchedulerOutput | None:
        """What comes after steps that are not updated yet, if it is more of the same whatever they
        sample. Both are updated, in order, before anything else is scheduled."""
        scheduled = [s.seq_id for s in output.sequences]
        if output.num_steps == 1 or not all(map(self._is_running, scheduled)):
            return None
        if not paused.isdisjoint(scheduled) or self._anybody_waits(len(scheduled), paused):
            return None
        return give_more_steps(self.kv, output)

    def update(
        self,
        output: SchedulerOutput,
        result: ModelOutput,
        stops: Callable[[int, int], bool] = lambda seq_id, token_id: False,
    ) -> list[SequenceUpdate]:
        """Advance the sequences by what was computed; the only place where they advance.

        A sequence whose turn was ended meanwhile is passed over.

        Args:
            stops: asked for every token that a sequence gains, in order, but a stop token: whether
                it ends the turn. What was sampled after it is dropped.
        """
        updates = []
        for scheduled, token_ids, logprob, prompt_logprobs, error in zip(
            output.sequences,
            result.token_ids,
            result.logprobs,
            result.prompt_logprobs,
            result.errors,
            strict=True,
        ):
            if not self._is_running(scheduled.seq_id):
                continue
            sequence = self.sequences[scheduled.seq_id]
            sequence.advance(scheduled.num_known_tokens)
            if self._speculator is not None:
                self._speculator.note(scheduled, len(token_ids))
            gained, finish_reason = gain(sequence, token_ids, stops)
            computed = sequence.num_computed_tokens
            sequence.trim(self.kv.remember(sequence.seq_id, computed, sequence.token_ids))
            if finish_reason is None and error is not None:
                finish_reason = "error"
            elif sequence.num_pending_tokens == 0:  # it gained none, and has nothing to compute
                finish_reason = "length"
            if finish_reason is not None:
                self.end_turn(scheduled.seq_id)
            updates.append(
                SequenceUpdate(
                    scheduled.seq_id,
                    gained,
                    computed,
                    finish_reason,
                    logprob,
                    prompt_logprobs,
                    error if finish_reason == "error" else None,
                    result.embeddings.get(scheduled.seq_id),
                )
            )
        return updates

    def check_integrity(self) -> None:
        """Assert every invariant of the scheduler; for tests, between steps."""
        self.kv.check_integrity()
        assert self.num_running <= self.config.max_num_seqs
        self._queues.check_integrity(self.sequences, self.kv)

    def _may_grow(self, paused: Collection[int]) -> bool:
        """Whether rings may grow for larger chunks. What they grow by is lent until the prompt is
        computed, so that prompts that hold memory are soon done with. Nothing more is lent
        while a sequence waits that would fit if all of it came back."""
        waiting = self._queues.next_without_blocks(paused)
        if waiting is None or self.num_running >= self.config.max_num_seqs:
            return True
        leaving = set(self._queues.parkable(paused, waiting.priority))
        running = {entry[2].seq_id for entry in self._queues.running}
        back = sum(map(self.kv.num_lent, running - leaving))
        back += sum(len(self.kv[seq_id].row) for seq_id in leaving)
        return self._residency.num_missing(waiting) > back

    def _is_running(self, seq_id: int) -> bool:
        sequence = self.sequences.get(seq_id)
        return sequence is not None and sequence.status is SequenceStatus.RUNNING

    def _anybody_waits(self, num_scheduled: int, paused: Collection[int]) -> bool:
        """Whether others have something to compute and found no room or budget."""
        running = sum(entry[2].seq_id not in paused for entry in self._queues.running)
        return running > num_scheduled or any(self._queues.heads(paused))

    def _wanted(self, sequence: Sequence, budget: int) -> int:
        """Tokens of the sequence to compute next, as far as the budget goes; 0 if it has to wait
        for a step with a larger one."""
        size, pending = self.config.chunk_size, sequence.num_pending_tokens
        if size is None:
            return min(pending, budget)
        chunk = min(pending, size - sequence.first_pending % size)
        return chunk if chunk <= budget else 0

    def _take(self, sequence: Sequence, budget: int, *, may_grow: bool) -> ScheduledSequence:
        """Cut the sequence's next chunk and see to its blocks."""
        seq_id, start = sequence.seq_id, sequence.first_pending
        if sequence.rereads:
            self.kv.truncate(seq_id, start)
        wanted = self._wanted(sequence, budget)
        chunk = self.kv.fit(seq_id, start, wanted, may_grow=may_grow)
        # Beside idle streams that fill the cache, a prompt would take a few tokens per step.
        while chunk < wanted and may_grow and self._residency.park_one():
            chunk = self.kv.fit(seq_id, start, wanted, may_grow=True)
        assert self.config.chunk_size is None or chunk == wanted, "no room for a chunk"
        end = start + chunk
        # A prompt may be asked again in part. A row that generates never changes.
        self.kv.allocate(seq_id, end, spares_hashed=chunk > 1)
        table = self.kv[seq_id]
        params = sequence.sampling_params
        ends = end == sequence.num_tokens
        samples = ends and not sequence.embeds
        return ScheduledSequence(
            seq_id=seq_id,
            token_ids=sequence.token_ids(start, end),
            num_computed_tokens=start,
            num_prompt_tokens=sequence.num_prompt_tokens,
            next_token_id=-1 if ends else sequence.token_ids(end, end + 1)[0],
            block_row=table.hand_out(),
            ring_blocks=table.ring_blocks,
            sink_window=sequence.step_window,
            sampling_params=params,
            stop_token_ids=sequence.stop_token_ids,
            seed=sequence.seed,
            max_new_tokens=max_new_tokens(sequence) if samples else 0,
            history=sequence.visible_token_ids()
            if samples and params.needs_history
            else _NO_TOKENS,
            bad_words=sequence.bad_words,
            embeds=ends and sequence.embeds,
            adapter=sequence.adapter,
        )

    def _let_in(self, step: Step, paused: Collection[int], before: int | None = None) -> bool:
        """Admit what waits, in order; with ``before``, only what has a higher priority than that.
        Whether there was any."""
        admitted = None
        while (entry := self._next(step, paused, before)) is not None:
            admitted = entry[2]
            step.add(self._take(admitted, step.budget, may_grow=self._may_grow(paused)))
        return admitted is not None

    def _next(self, step: Step, paused: Collection[int], before: int | None) -> Entry | None:
        """Let the next waiting sequence run, in order; one that has its blocks may pass one that
        has to wait for them. After one that was lost, the others wait for the next step."""
        for entry in sorted(self._queues.heads(paused)):
            priority, _, sequence = entry
            if before is not None and priority >= before:
                return None
            displaced = None
            if self.num_running >= self.config.max_num_seqs:
                displaced = self._queues.lowest_running(priority)
                if displaced is None:
                    return None
            chunk = self._wanted(sequence, step.budget_without(displaced))
            if chunk == 0:
                return None
            had_blocks = sequence.seq_id in self.kv
            parking = [] if had_blocks else self._residency.find_room(sequence, paused)
            if parking is None:
                continue
            self._preempt(step, parking if displaced is None else [displaced, *parking])
            try:
                if not had_blocks:
                    self._residency.admit(sequence, chunk, parking)
            except ParkedLostError as error:
                self.lose(sequence.seq_id, error)
                return None
            self._queues.run(entry, had_blocks=had_blocks)
            return entry
        return None

    def _preempt(self, step: Step, seq_ids: Collection[int]) -> None:
        """Take their places in the step from those of these that run."""
        self.num_preemptions += sum(map(self._is_running, set(seq_ids)))
        self._queues.set_aside(seq_ids)
        step.drop(seq_ids)
