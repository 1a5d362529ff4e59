"""Any interleaving of opening, stepping, ending turns, appending and closing keeps every promise.

A simulated cache remembers which token was last written to each slot; before a step counts, every
position that any of its queries may see has to be where the block table says.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from paged_stream.scheduler.config import SchedulerConfig
from paged_stream.scheduler.output import ModelOutput, ScheduledSequence
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.scheduler.scheduler import Scheduler
from paged_stream.scheduler.sequence import SequenceStatus
from paged_stream.scheduler.sink_window import SinkWindow, cdiv

STOP = 9
PENALTY = 1.5  # any penalty makes the scheduler send the visible tokens


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        num_blocks=st.integers(6, 40),
        block_size=st.sampled_from([1, 2, 4, 7]),
        max_num_seqs=st.integers(1, 5),
        extra_tokens=st.integers(0, 30),
    )
    def create(self, num_blocks, block_size, max_num_seqs, extra_tokens):
        self.config = SchedulerConfig(
            num_blocks=num_blocks,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_seqs + extra_tokens,
            max_model_len=64,
        )
        self.scheduler = Scheduler(self.config)
        self.next_id = 0
        self.truth: dict[int, list[int]] = {}  # every token of each sequence, never trimmed
        self.slots: dict[int, tuple[int, int]] = {}  # slot to (seq_id, position)
        self.next_token = 0

    def sequences(self, *statuses):
        return [s for s in self.scheduler.sequences.values() if s.status in statuses]

    @rule(
        sinks=st.integers(0, 9),
        window=st.one_of(st.none(), st.integers(1, 40)),
        prompt=st.integers(1, 60),
        max_tokens=st.integers(1, 30),
        is_stream=st.booleans(),
        bounded=st.booleans(),
        generates=st.booleans(),
        priority=st.integers(0, 2),
    )
    def open(self, sinks, window, prompt, max_tokens, is_stream, bounded, generates, priority):
        if window is None:
            prompt, is_stream = min(prompt, 40), False
        seq_id, self.next_id = self.next_id, self.next_id + 1
        limit = prompt + max_tokens if bounded and not is_stream else None
        try:
            self.scheduler.open(
                seq_id,
                SinkWindow(sinks, window),
                is_stream=is_stream,
                max_tokens=limit,
                priority=priority,
            )
        except ValueError:
            assert seq_id not in self.scheduler.sequences
            return
        self.truth[seq_id] = []
        self.start(seq_id, prompt + 1 - generates, max_tokens, generates)

    @precondition(lambda self: self.sequences(SequenceStatus.IDLE))
    @rule(
        data=st.data(),
        tokens=st.integers(2, 60),
        max_tokens=st.integers(1, 30),
        generates=st.booleans(),
    )
    def append(self, data, tokens, max_tokens, generates):
        stream = data.draw(st.sampled_from(self.sequences(SequenceStatus.IDLE)))
        self.start(stream.seq_id, tokens, max_tokens, generates)

    def start(self, seq_id, num_tokens, max_tokens, generates):
        tokens = [100 + (self.next_token + i) % 1000 for i in range(num_tokens)]
        self.next_token += num_tokens
        self.truth[seq_id] += tokens
        params = SamplingParams(max_tokens=max_tokens, repetition_penalty=PENALTY)
        self.scheduler.start_turn(
            seq_id, tokens, params, generates=generates, stop_token_ids=(STOP,)
        )

    @precondition(lambda self: self.scheduler.has_unfinished())
    @rule(steps=st.integers(1, 12), stops=st.booleans())
    def step(self, steps, stops):
        for _ in range(steps):
            self.one_step(STOP if stops else 8)

    def one_step(self, token_id):
        output = self.scheduler.schedule()
        held = any(s.seq_id in self.scheduler.kv for s in self.sequences(SequenceStatus.IDLE))
        if not output.sequences:
            assert held or not self.scheduler.has_unfinished(), "a step without progress"
        scheduled = output.sequences
        assert len({s.seq_id for s in scheduled}) == len(scheduled) <= self.config.max_num_seqs
        assert sum(len(s.token_ids) for s in scheduled) <= self.config.max_num_batched_tokens
        for sequence in scheduled:
            self.write(sequence)
        for sequence in scheduled:
            self.read(sequence)
        tokens = [token_id if s.samples else -1 for s in scheduled]
        result = ModelOutput(tokens, [None] * len(tokens), [[] for _ in tokens])
        for update in self.scheduler.update(output, result):
            if update.token_id >= 0:
                self.truth[update.seq_id].append(update.token_id)

    @precondition(lambda self: self.scheduler.has_unfinished())
    @rule(data=st.data())
    def step_that_fails(self, data):
        """The executor raises: the step is scheduled and written, but never counted."""
        for sequence in self.scheduler.schedule().sequences:
            self.write(sequence)
        if data.draw(st.booleans()):
            self.leave(data, close=False)

    @precondition(lambda self: self.scheduler.has_unfinished())
    @rule(data=st.data())
    def step_without_some(self, data):
        paused = data.draw(st.sets(st.sampled_from(sorted(self.scheduler.sequences))))
        running = {s.seq_id for s in self.sequences(SequenceStatus.RUNNING)}
        output = self.scheduler.schedule(paused)
        assert not {s.seq_id for s in output.sequences} & paused & running
        for sequence in output.sequences:
            self.write(sequence)

    def slot(self, sequence: ScheduledSequence, position: int) -> int:
        block, offset = divmod(position, self.config.block_size)
        column = sequence.sink_window.column(block, sequence.ring_blocks, self.config.block_size)
        assert sequence.block_row[column] >= 0, "a visible token has no block"
        return sequence.block_row[column] * self.config.block_size + offset

    def write(self, sequence: ScheduledSequence) -> None:
        start, stop = sequence.num_computed_tokens, sequence.num_tokens
        truth = self.truth[sequence.seq_id]
        assert list(sequence.token_ids) == truth[start:stop]
        assert sequence.samples == (stop == len(truth))
        if not sequence.samples:
            assert sequence.next_token_id == truth[stop]
        for position in range(start, stop):
            self.slots[self.slot(sequence, position)] = (sequence.seq_id, position)

    def read(self, sequence: ScheduledSequence) -> None:
        window = sequence.sink_window
        for query in range(sequence.num_computed_tokens, sequence.num_tokens):
            visible = [key for key in range(query + 1) if window.is_visible(key, query)]
            assert len(visible) == window.num_visible(query)
            for key in visible:
                assert self.slots[self.slot(sequence, key)] == (sequence.seq_id, key)
        if sequence.samples:
            truth = self.truth[sequence.seq_id]
            assert list(sequence.history) == [truth[key] for key in visible]

    @precondition(lambda self: self.scheduler.sequences)
    @rule(data=st.data(), close=st.booleans())
    def leave(self, data, close):
        seq_id = data.draw(st.sampled_from(sorted(self.scheduler.sequences)))
        (self.scheduler.close if close else self.scheduler.end_turn)(seq_id)

    @invariant()
    def integrity(self):
        if not hasattr(self, "scheduler"):
            return
        self.scheduler.check_integrity()
        for sequence in self.scheduler.sequences.values():
            bound = 2 * (sequence.sink_window.window_size or 64) + 600
            waiting = sequence.num_tokens - sequence.num_computed_tokens
            assert len(sequence._tail) <= bound + waiting, "host memory grows with the stream"

    def teardown(self):
        if not hasattr(self, "scheduler"):
            return
        for stream in self.sequences(SequenceStatus.IDLE):
            self.scheduler.close(stream.seq_id)
        work = sum(
            s.num_tokens - s.num_computed_tokens + 40 for s in self.sequences(*SequenceStatus)
        )
        for _ in range(work):
            if not self.scheduler.has_unfinished():
                break
            self.one_step(8)
            for stream in self.sequences(SequenceStatus.IDLE):
                self.scheduler.close(stream.seq_id)
        assert not self.scheduler.has_unfinished(), "a sequence starved"
        self.scheduler.check_integrity()
        pool = self.scheduler.kv.pool
        assert pool.num_free == pool.num_blocks and self.scheduler.kv.num_reserved_blocks == 0


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_cdiv():
    assert [cdiv(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
