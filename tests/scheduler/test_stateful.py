"""Any interleaving of opening, stepping, appending, forking, cutting, rewinding, parking, saving
and closing keeps every promise.

A simulated cache remembers what was last written to each slot, as a digest of all that K and V of
that token depend on; before a step counts, every position that any of its queries may see has to be
where the block table says, with the right content. Prompts repeat, so blocks are found by hash.
Several steps at once are simulated one by one, with the row of the block table that was sent.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from paged_stream.scheduler.output import (
    CopyBlock,
    DropParked,
    ModelOutput,
    MoveTokens,
    ParkedLostError,
    ParkTokens,
    RestoreTokens,
    ScheduledSequence,
)
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.scheduler.scheduler import Scheduler
from paged_stream.scheduler.scheduler_config import SchedulerConfig
from paged_stream.scheduler.sequence import SequenceStatus
from paged_stream.scheduler.sink_window import SinkWindow, cdiv

STOP = 9
PENALTY = 1.5  # any penalty makes the scheduler send the visible tokens


class Truth:
    """One sequence, remembered whole: by position, its token and the digest of its K and V."""

    def __init__(self, sink_window: SinkWindow) -> None:
        self.ids: list[int | None] = []
        self.digests: list[int | None] = []
        self.seed = hash((sink_window.num_sink_tokens, sink_window.window_size))
        self.chain = self.seed
        self.queued: list[int] = []
        self.is_edited = False

    def append(self, ids: list[int]) -> None:
        for token_id in ids:
            self.chain = hash((self.chain, token_id))
            self.ids.append(token_id)
            self.digests.append(self.chain)

    def copy(self) -> Truth:
        other = Truth(SinkWindow(0, 1))
        other.ids, other.digests, other.chain = self.ids[:], self.digests[:], self.chain
        other.seed = self.seed
        other.is_edited = self.is_edited
        return other

    def cut(self, first: int, start: int, end: int) -> None:
        for values in (self.ids, self.digests):
            gap: list[int | None] = [None] * (end - start)
            values[first:end] = gap + values[first:start]

    def rewind(self, num_tokens: int) -> None:
        del self.ids[num_tokens:], self.digests[num_tokens:]

    def take_back(self, num_tokens: int) -> None:
        """Forget the last tokens, on which nothing depends that is left.

        What comes next is like what would come without them, so it may be shared. After an edit
        nothing may: the digests that are left do not tell of it.
        """
        if num_tokens < len(self.ids):
            self.rewind(num_tokens)
            if self.is_edited:
                self.chain = hash((self.chain, num_tokens))
            elif not self.digests:
                self.chain = self.seed
            else:
                assert (digest := self.digests[-1]) is not None
                self.chain = digest


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        num_blocks=st.one_of(st.integers(6, 40), st.integers(60, 120)),
        block_size=st.sampled_from([1, 2, 4, 7]),
        max_num_seqs=st.integers(1, 5),
        extra_tokens=st.integers(0, 30),
        num_decode_steps=st.sampled_from([1, 2, 3, 8, 17]),
        penalty=st.sampled_from([1.0, 1.0, PENALTY]),
    )
    def create(self, num_blocks, block_size, max_num_seqs, extra_tokens, num_decode_steps, penalty):
        self.config = SchedulerConfig(
            num_blocks=num_blocks,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_seqs + extra_tokens,
            max_model_len=64,
            num_decode_steps=num_decode_steps,
        )
        self.penalty = penalty
        self.scheduler = Scheduler(self.config)
        self.next_id = 0
        self.edits = 0
        self.truth: dict[int, Truth] = {}
        self.slots: dict[int, int | None] = {}
        self.parked: dict[int, list[int | None]] = {}
        self.broken: set[int] = set()  # whose parked K and V do not come back
        self.scheduler.restore_through(self.bring_back)

    def sequences(self, *statuses, streams=False):
        return [
            s
            for s in self.scheduler.sequences.values()
            if s.status in statuses and (s.is_stream or not streams)
        ]

    def idle_streams(self):
        return self.sequences(SequenceStatus.IDLE, streams=True)

    def new_id(self):
        self.next_id += 1
        return self.next_id

    # Prompts are ranges from one of two starts, so that many begin alike.
    prompts = st.builds(
        lambda start, length: [start + i % 50 for i in range(length)],
        st.sampled_from([100, 100, 200]),
        st.integers(1, 60),
    )

    @rule(
        sinks=st.sampled_from([0, 1, 4, 4, 8]),
        window=st.sampled_from([None, 1, 5, 12, 12, 33]),
        prompt=prompts,
        max_tokens=st.integers(1, 30),
        is_stream=st.booleans(),
        bounded=st.booleans(),
        generates=st.booleans(),
        priority=st.integers(0, 2),
    )
    def open(self, sinks, window, prompt, max_tokens, is_stream, bounded, generates, priority):
        if window is None:
            prompt, is_stream, sinks = prompt[:40], False, 0
        if not generates and len(prompt) == 1:
            prompt = prompt * 2
        seq_id, sink_window = self.new_id(), SinkWindow(sinks, window)
        limit = len(prompt) + max_tokens if bounded and not is_stream else None
        try:
            self.scheduler.open(
                seq_id, sink_window, is_stream=is_stream, max_tokens=limit, priority=priority
            )
        except ValueError:
            assert seq_id not in self.scheduler.sequences
            return
        self.truth[seq_id] = Truth(sink_window)
        self.append_to(seq_id, prompt)
        if generates or not is_stream:
            self.start(seq_id, max_tokens, generates)

    def append_to(self, seq_id, tokens):
        truth = self.truth[seq_id]
        if self.scheduler.sequences[seq_id].generates:
            truth.queued += tokens
        else:
            truth.append(tokens)
        self.scheduler.append(seq_id, tokens)

    def start(self, seq_id, max_tokens, generates=True):
        params = SamplingParams(max_tokens=max_tokens, repetition_penalty=self.penalty)
        self.scheduler.start_turn(seq_id, params, generates=generates, stop_token_ids=(STOP,))

    @precondition(lambda self: self.sequences(*SequenceStatus, streams=True))
    @rule(data=st.data(), tokens=prompts)
    def append(self, data, tokens):
        stream = data.draw(st.sampled_from(self.sequences(*SequenceStatus, streams=True)))
        self.append_to(stream.seq_id, tokens)

    @precondition(lambda self: self.sequences(*SequenceStatus, streams=True))
    @rule(data=st.data(), max_tokens=st.integers(1, 30))
    def generate(self, data, max_tokens):
        stream = data.draw(st.sampled_from(self.sequences(*SequenceStatus, streams=True)))
        if not stream.generates and stream.has_next:
            self.start(stream.seq_id, max_tokens)

    def edit(self, data, edit):
        """Do something to a stream that may have no room beside what others hold and read."""
        paused = data.draw(st.sets(st.sampled_from(sorted(self.scheduler.sequences))))
        try:
            edit(paused)
        except ParkedLostError as error:
            self.scheduler.lose(int(str(error)), error)
            assert self.note_losses() == 1
            return False
        except RuntimeError:
            busy = self.sequences(SequenceStatus.RUNNING, SequenceStatus.WAITING)
            assert any(s.seq_id in self.scheduler.kv and s.seq_id not in paused for s in busy)
            return False
        return True

    @precondition(lambda self: self.idle_streams())
    @rule(data=st.data())
    def fork(self, data):
        parent = data.draw(st.sampled_from(self.idle_streams()))
        child_id = self.new_id()
        if not self.edit(data, lambda paused: self.scheduler.fork(parent.seq_id, child_id, paused)):
            assert child_id not in self.scheduler.sequences
            return
        self.truth[child_id] = self.truth[parent.seq_id].copy()

    @precondition(lambda self: self.idle_streams())
    @rule(data=st.data(), steps=st.integers(1, 20))
    def fork_and_run(self, data, steps):
        """Both go on at once, so that one overwrites what the other still sees."""
        before = set(self.scheduler.sequences)
        self.fork(data)
        for child_id in set(self.scheduler.sequences) - before:
            self.append_to(child_id, [300 + child_id, 301])
            self.start(child_id, 40)
            self.generate(data, 40)
            self.step(steps)

    @precondition(lambda self: self.idle_streams())
    @rule(data=st.data(), length=st.integers(1, 60), steps=st.integers(1, 20))
    def open_twin(self, data, length, steps):
        """A stream that begins like another one shares its blocks."""
        other = data.draw(st.sampled_from(self.idle_streams()))
        ids = self.truth[other.seq_id].ids[:length]
        window = other.sink_window
        if not ids or None in ids:
            return
        seq_id = self.new_id()
        window = SinkWindow(window.num_sink_tokens, window.window_size)
        self.scheduler.open(seq_id, window, is_stream=True)
        self.truth[seq_id] = Truth(window)
        self.append_to(seq_id, ids)
        self.start(seq_id, 30)
        self.step(steps)

    @precondition(lambda self: self.idle_streams())
    @rule(data=st.data())
    def cut(self, data):
        stream = data.draw(st.sampled_from(self.idle_streams()))
        first, stop = stream.first_kept, stream.num_computed_tokens
        if first == stop:
            return
        start = data.draw(st.integers(first, stop - 1))
        end = data.draw(st.integers(start + 1, stop))
        if not self.edit(
            data, lambda paused: self.scheduler.cut(stream.seq_id, start, end, paused)
        ):
            return
        self.truth[stream.seq_id].cut(first, start, end)
        self.branch(stream.seq_id)

    def streams_between_turns(self):
        """Streams that may have appended tokens to compute, but do not generate."""
        return [s for s in self.sequences(*SequenceStatus, streams=True) if not s.generates]

    @precondition(lambda self: self.streams_between_turns())
    @rule(data=st.data(), tokens=prompts)
    def append_and_withdraw(self, data, tokens):
        """Perhaps after some steps, in which others have their part."""
        stream = data.draw(st.sampled_from(self.streams_between_turns()))
        start, before = stream.num_tokens, stream.num_computed_tokens
        self.append_to(stream.seq_id, tokens)
        self.step(data.draw(st.integers(0, 3)))
        if stream.seq_id not in self.scheduler.sequences:  # lost
            return
        end, computed = stream.num_tokens, stream.num_computed_tokens
        left = self.scheduler.withdraw(stream.seq_id, start, end, before)
        if computed in (before, end):
            assert left == stream.num_tokens == (start if computed == before else end)
        else:
            assert left == stream.num_tokens == max(start, computed + (computed >= start))
        assert self.scheduler.withdraw(stream.seq_id, start, left + 1, before) == left
        self.truth[stream.seq_id].take_back(left)

    @precondition(lambda self: self.streams_between_turns())
    @rule(data=st.data())
    def rewind(self, data):
        stream = data.draw(st.sampled_from(self.streams_between_turns()))
        first = max(stream.first_kept, stream.sink_window.num_sink_tokens)
        if first > stream.num_tokens:
            return
        computed = stream.num_computed_tokens
        somewhere = st.integers(first, stream.num_tokens)
        position = data.draw(somewhere | st.just(computed) if first <= computed else somewhere)
        if not self.edit(
            data, lambda paused: self.scheduler.rewind(stream.seq_id, position, paused)
        ):
            return
        if 0 < computed >= position:
            self.truth[stream.seq_id].rewind(position)
            self.branch(stream.seq_id)
        else:  # what was computed is untouched, and so is what comes next: it may be shared
            self.truth[stream.seq_id].take_back(position)

    def branch(self, seq_id):
        """What comes now depends on more than the tokens."""
        self.edits += 1
        self.truth[seq_id].is_edited = True
        self.truth[seq_id].chain = hash((self.truth[seq_id].chain, "edit", self.edits))

    @precondition(lambda self: self.idle_streams())
    @rule(data=st.data())
    def park(self, data):
        self.scheduler.park(data.draw(st.sampled_from(self.idle_streams())).seq_id)

    @precondition(lambda self: self.idle_streams())
    @rule(data=st.data())
    def save_and_load(self, data):
        """Through a state, and K and V put aside under a new name."""
        stream = data.draw(st.sampled_from(self.idle_streams()))
        new_id = self.new_id()
        self.apply_operations()
        if stream.is_parked:
            self.parked[new_id] = self.parked[stream.seq_id]
        elif stream.num_computed_tokens:
            slots = self.scheduler.kept_slots(stream.seq_id)
            self.parked[new_id] = [self.slots.get(slot) for slot in slots]
        self.scheduler.restore(new_id, stream.state())
        self.truth[new_id] = self.truth[stream.seq_id].copy()

    @precondition(lambda self: self.scheduler.has_unfinished())
    @rule(
        steps=st.integers(1, 12),
        stop_after=st.sampled_from([None, None, 0, 1, 2, 5]),
        told_by_host=st.booleans(),
        ahead=st.booleans(),
        leaves=st.booleans(),
    )
    def step(self, steps, stop_after=None, told_by_host=False, ahead=False, leaves=False):
        for _ in range(steps):
            self.one_step((), stop_after, told_by_host, ahead, leaves)

    def one_step(self, paused=(), stop_after=None, told_by_host=False, ahead=False, leaves=False):
        """Compute what is next. After so many more tokens every sequence stops, by a stop token or
        because the host says so, who hears of it when all steps are done; ``ahead``: when what
        follows them is done too. Then one may leave before the host looks at that."""
        before = copy.deepcopy(self.scheduler, {id(self): self})
        output = self.scheduler.schedule(paused)
        self.apply_operations()
        has_lost = self.note_losses() > 0
        self.check_priorities(before, output, paused, has_lost)
        if not output.sequences and not has_lost:
            unpaused = [
                s
                for s in self.sequences(SequenceStatus.RUNNING, SequenceStatus.WAITING)
                if s.seq_id not in paused
            ]
            assert not unpaused or paused, "a step without progress"
        scheduled = output.sequences
        assert not {s.seq_id for s in scheduled} & set(paused)
        assert len({s.seq_id for s in scheduled}) == len(scheduled) <= self.config.max_num_seqs
        assert sum(len(s.token_ids) for s in scheduled) <= self.config.max_num_batched_tokens
        known = {s.seq_id: len(self.truth[s.seq_id].ids) for s in scheduled}
        tokens = self.simulate(output, None if told_by_host else stop_after)
        offered = Counter()

        def stops(seq_id, token_id):
            assert token_id != STOP
            offered[seq_id] += 1
            return told_by_host and stop_after is not None and offered[seq_id] > stop_after

        following = self.follow(output, tokens) if ahead else None
        if following is None:
            self.count(output, tokens, stops, known, settles=True)
            return
        more_tokens = self.simulate(following, None, tokens)
        self.count(output, tokens, stops, known, settles=False)
        running = self.sequences(SequenceStatus.RUNNING)
        if leaves and running:
            seq_id = running[0].seq_id
            self.truth[seq_id].take_back(known[seq_id])
            self.scheduler.end_turn(seq_id)
            self.release_queue(seq_id)
        self.count(following, more_tokens, stops, known, settles=True)

    def check_priorities(self, before, output, paused, has_lost):
        """Who gave its place gave it to a higher priority, and nobody waits for a lower one."""
        running = {s.seq_id: s.priority for s in self.sequences(SequenceStatus.RUNNING)}
        for s in before.sequences.values():
            if s.status is SequenceStatus.RUNNING and s.seq_id not in paused:
                still = self.scheduler.sequences[s.seq_id].status is SequenceStatus.RUNNING
                assert still or has_lost or min(running.values()) < s.priority
        budget = self.config.max_num_batched_tokens
        if has_lost or sum(len(s.token_ids) for s in output.sequences) == budget:
            return
        for priority, _, waiting in self.scheduler._queues.heads(paused):
            if any(other > priority for other in running.values()):
                assert self.would_wait_alone(before, waiting, paused)

    def would_wait_alone(self, before, waiting, paused):
        """Whether a sequence would wait if all that may leave for it had never been."""
        twin = copy.deepcopy(before, {id(self): self})
        twin.restore_through(lambda operation: None)
        for s in list(twin.sequences.values()):
            is_idle = s.status is SequenceStatus.IDLE
            if is_idle or s.seq_id in paused or s.priority > waiting.priority:
                twin.close(s.seq_id)
        twin.schedule()
        return twin.sequences[waiting.seq_id].status is SequenceStatus.WAITING

    def follow(self, output, tokens):
        """What is submitted before the tokens are seen. A worker knows only the rows that it was
        sent when it works out the slot behind them."""
        behind = {
            s.seq_id: s.num_computed_tokens + output.num_steps
            for s, gained in zip(output.sequences, tokens, strict=True)
            if s.max_new_tokens > output.num_steps and STOP not in gained
        }
        rows = {s.seq_id: replace(s, block_row=s.block_row[:]) for s in output.sequences}
        following = self.scheduler.schedule_following(output)
        for s in () if following is None else following.sequences:
            if s.seq_id in behind:
                position = behind[s.seq_id]
                assert self.slot(s, position) == self.slot(rows[s.seq_id], position)
        return following

    def count(self, output, tokens, stops, known, *, settles):
        """Let the scheduler see the tokens; what it does not count never was."""
        result = ModelOutput(
            tokens, [None] * len(tokens), [[] for _ in tokens], [None] * len(tokens)
        )
        for update in self.scheduler.update(output, result, stops):
            truth = self.truth[update.seq_id]
            known[update.seq_id] += len(update.token_ids)
            if update.token_ids and (settles or update.finish_reason is not None):
                truth.take_back(known[update.seq_id])
                assert update.num_computed_tokens == len(truth.ids) - 1
            if update.finish_reason is not None:
                self.release_queue(update.seq_id)

    def simulate(self, output, stop_after, last=None):
        """What a worker does: returns what it samples, and appends that to the truth.

        Args:
            last: the tokens of the steps that these follow.
        """
        assert 1 <= output.num_steps <= self.config.num_decode_steps
        assert output.follows == (last is not None)
        for sequence in () if output.follows else output.sequences:
            self.check_input(sequence)
        sampled = [[] for _ in output.sequences]
        last = last or sampled
        for step in range(output.num_steps):
            running = [
                (sequence, tokens)
                for sequence, tokens, before in zip(output.sequences, sampled, last, strict=True)
                if (step == 0 and not output.follows)
                or (len(tokens) < sequence.max_new_tokens and STOP not in tokens + before)
            ]
            for sequence, _ in running:
                self.write(sequence, step)
            for sequence, tokens in running:
                self.read(sequence, step)
                if sequence.samples:
                    tokens.append(STOP if step == stop_after else 8)
                    self.truth[sequence.seq_id].append(tokens[-1:])
        return sampled

    def release_queue(self, seq_id):
        truth = self.truth[seq_id]
        truth.append(truth.queued)
        truth.queued = []

    @precondition(lambda self: self.scheduler.has_unfinished())
    @rule(data=st.data())
    def step_that_fails(self, data):
        """The executor raises: the step is scheduled and written, but never counted."""
        output = self.scheduler.schedule()
        self.apply_operations()
        self.note_losses()
        known = {s.seq_id: len(self.truth[s.seq_id].ids) for s in output.sequences}
        tokens = self.simulate(output, None)
        if data.draw(st.booleans()) and (following := self.follow(output, tokens)) is not None:
            self.simulate(following, None, tokens)
        for seq_id, num_tokens in known.items():
            self.truth[seq_id].take_back(num_tokens)
        if self.scheduler.sequences and data.draw(st.booleans()):
            self.leave(data, close=False)

    @precondition(lambda self: self.scheduler.has_unfinished())
    @rule(data=st.data(), steps=st.integers(1, 5))
    def steps_without_some(self, data, steps):
        paused = data.draw(st.sets(st.sampled_from(sorted(self.scheduler.sequences))))
        for _ in range(steps):
            self.one_step(paused)

    @precondition(lambda self: self.parked.keys() - self.broken)
    @rule(data=st.data())
    def a_file_breaks(self, data):
        """Whoever is brought back from it is lost, and nobody else."""
        self.broken.add(data.draw(st.sampled_from(sorted(self.parked.keys() - self.broken))))

    def bring_back(self, operation: RestoreTokens) -> None:
        self.apply_operations()
        values = self.parked[operation.key]
        for slot, value in zip(operation.slots, values, strict=True):
            if slot >= 0:  # what fails may have written some
                self.slots[slot] = -1 if operation.key in self.broken else value
        if operation.key in self.broken:
            raise ParkedLostError(str(operation.key))
        del self.parked[operation.key]

    def note_losses(self) -> int:
        lost = self.scheduler.take_lost()
        assert lost.keys() <= self.broken
        assert not lost.keys() & self.scheduler.sequences.keys()
        self.apply_operations()
        assert not lost.keys() & self.parked.keys()
        return len(lost)

    def apply_operations(self):
        size = self.config.block_size
        for operation in self.scheduler.take_operations():
            match operation:
                case CopyBlock(source, destination):
                    for i in range(size):
                        self.slots[destination * size + i] = self.slots.get(source * size + i)
                case MoveTokens(source, destination, distance):
                    assert len(source) == len(destination) == len(set(destination)) > 0 < distance
                    values = [self.slots.get(slot) for slot in source]
                    self.slots |= dict(zip(destination, values, strict=True))
                case ParkTokens(key, slots):
                    assert key not in self.parked
                    self.parked[key] = [self.slots.get(slot) for slot in slots]
                case DropParked(key):
                    del self.parked[key]

    def slot(self, sequence: ScheduledSequence, position: int) -> int:
        block, offset = divmod(position, self.config.block_size)
        column = sequence.sink_window.column(block, sequence.ring_blocks, self.config.block_size)
        assert sequence.block_row[column] >= 0, "a visible token has no block"
        return sequence.block_row[column] * self.config.block_size + offset

    def check_input(self, sequence: ScheduledSequence) -> None:
        start, stop = sequence.num_computed_tokens, sequence.num_tokens
        truth = self.truth[sequence.seq_id]
        assert list(sequence.token_ids) == truth.ids[start:stop]
        # A turn that does not generate ends before its last token.
        assert sequence.samples == (stop == len(truth.ids))
        assert self.scheduler.sequences[sequence.seq_id].generates or not sequence.samples
        if not sequence.samples:
            assert sequence.next_token_id == truth.ids[stop]
        elif self.penalty != 1.0:
            visible = [k for k in range(stop) if sequence.sink_window.is_visible(k, stop - 1)]
            assert list(sequence.history) == [truth.ids[key] for key in visible]

    @staticmethod
    def queries(sequence: ScheduledSequence, step: int) -> range:
        start, stop = sequence.num_computed_tokens, sequence.num_tokens
        return range(start, stop) if step == 0 else range(start + step, stop + step)

    def write(self, sequence: ScheduledSequence, step: int) -> None:
        for position in self.queries(sequence, step):
            slot = self.slot(sequence, position)
            self.slots[slot] = self.truth[sequence.seq_id].digests[position]

    def read(self, sequence: ScheduledSequence, step: int) -> None:
        window = sequence.sink_window
        truth = self.truth[sequence.seq_id]
        for query in self.queries(sequence, step):
            visible = [key for key in range(query + 1) if window.is_visible(key, query)]
            assert len(visible) == window.num_visible(query)
            for key in visible:
                assert truth.digests[key] is not None
                assert self.slots[self.slot(sequence, key)] == truth.digests[key]

    @precondition(lambda self: self.scheduler.sequences)
    @rule(data=st.data(), close=st.booleans())
    def leave(self, data, close):
        seq_id = data.draw(st.sampled_from(sorted(self.scheduler.sequences)))
        (self.scheduler.close if close else self.scheduler.end_turn)(seq_id)
        self.release_queue(seq_id)

    @invariant()
    def integrity(self):
        if not hasattr(self, "scheduler"):
            return
        self.scheduler.check_integrity()

    def teardown(self):
        if not hasattr(self, "scheduler"):
            return
        for stream in self.sequences(SequenceStatus.IDLE):
            self.scheduler.close(stream.seq_id)
        work = sum(
            s.num_tokens + len(s.queued) - s.num_computed_tokens + 40
            for s in self.sequences(*SequenceStatus)
        )
        for _ in range(work):
            if not self.scheduler.has_unfinished():
                break
            self.one_step()
            for stream in self.sequences(SequenceStatus.IDLE):
                self.scheduler.close(stream.seq_id)
        assert not self.scheduler.has_unfinished(), "a sequence starved"
        self.apply_operations()
        assert not self.parked
        self.scheduler.check_integrity()
        kv = self.scheduler.kv
        assert kv.pool.num_free == kv.num_unreserved_blocks == kv.pool.num_blocks


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=150, stateful_step_count=40)


def test_cdiv():
    assert [cdiv(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
