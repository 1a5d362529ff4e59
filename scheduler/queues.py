"""Who waits, who runs and who rests, each in the order in which it is served."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Collection, Iterator, Mapping

from .kv_cache_manager import KVCacheManager
from .sequence import Sequence, SequenceStatus

# Priority, arrival (which is unique), sequence.
Entry = tuple[int, int, Sequence]


class Queues:
    """Every sequence that has something to compute is in one of three queues, and so is every
    idle one that holds blocks.

    ``waiting`` and ``resumed`` are of sequences without blocks and with them; these two and
    ``running`` are sorted. ``idle`` holds streams with blocks between turns, least recently used
    first.
    """

    def __init__(self) -> None:
        self.waiting: list[Entry] = []
        self.resumed: list[Entry] = []
        self.running: list[Entry] = []
        self.idle: dict[int, None] = {}
        self._entries: dict[int, Entry] = {}  # of those who are in one of the sorted three
        self._arrivals = itertools.count()

    @property
    def num_waiting(self) -> int:
        return len(self.waiting) + len(self.resumed)

    def enqueue(self, sequence: Sequence, *, has_blocks: bool) -> None:
        """Let an idle sequence wait for its next step."""
        sequence.status = SequenceStatus.WAITING
        self.idle.pop(sequence.seq_id, None)
        entry = sequence.priority, next(self._arrivals), sequence
        self._entries[sequence.seq_id] = entry
        bisect.insort(self.resumed if has_blocks else self.waiting, entry)

    def dequeue(self, sequence: Sequence) -> None:
        """Take a sequence out of whatever queue it is in."""
        self.idle.pop(sequence.seq_id, None)
        entry = self._entries.pop(sequence.seq_id, None)
        if entry is None:
            return
        for queue in (self.running, self.waiting, self.resumed):
            index = bisect.bisect_left(queue, entry)
            if queue[index : index + 1] == [entry]:
                del queue[index]

    def heads(self, paused: Collection[int]) -> Iterator[Entry]:
        """Who is next in either queue of waiting ones."""
        for queue in (self.waiting, self.resumed):
            if (entry := self._head(queue, paused)) is not None:
                yield entry

    def next_without_blocks(self, paused: Collection[int]) -> Sequence | None:
        """Who waits for memory, if anybody does."""
        entry = self._head(self.waiting, paused)
        return None if entry is None else entry[2]

    @staticmethod
    def _head(queue: list[Entry], paused: Collection[int]) -> Entry | None:
        return next((entry for entry in queue if entry[2].seq_id not in paused), None)

    def run(self, entry: Entry, *, had_blocks: bool) -> None:
        """Let a waiting sequence run, which has blocks by now."""
        self._remove(self.resumed if had_blocks else self.waiting, entry)
        bisect.insort(self.running, entry)
        entry[2].status = SequenceStatus.RUNNING

    def lowest_running(self, priority: int) -> int | None:
        """Whose place a sequence of some priority gets if there is no other: the last that runs,
        unless its priority is as high."""
        if not self.running or self.running[-1][0] <= priority:
            return None
        return self.running[-1][2].seq_id

    def set_aside(self, seq_ids: Collection[int]) -> None:
        """Let those of these that run wait again, in their order, so that others get their
        places."""
        running, self.running = self.running, []
        for entry in running:
            if entry[2].seq_id in seq_ids:
                entry[2].status = SequenceStatus.WAITING
                bisect.insort(self.resumed, entry)
            else:
                self.running.append(entry)

    def lose_blocks(self, sequence: Sequence) -> None:
        """Note that a sequence that does not run holds no blocks any more."""
        self.idle.pop(sequence.seq_id, None)
        if sequence.status is SequenceStatus.WAITING:
            entry = self._entries[sequence.seq_id]
            self._remove(self.resumed, entry)
            bisect.insort(self.waiting, entry)

    def parkable(self, paused: Collection[int], priority: int | None = None) -> Iterator[int]:
        """Whose blocks may be taken, in this order: idle streams, the one that has not run for
        longest first; what is ``paused``; for a sequence of some priority, what has a lower one,
        whether it waits or runs, the lowest first."""
        yield from self.idle
        yield from (entry[2].seq_id for entry in self.resumed if entry[2].seq_id in paused)
        if priority is None:
            return
        lower = [e for e in self.resumed if e[0] > priority and e[2].seq_id not in paused]
        lower += (entry for entry in self.running if entry[0] > priority)
        yield from (entry[2].seq_id for entry in sorted(lower, reverse=True))

    @staticmethod
    def _remove(queue: list[Entry], entry: Entry) -> None:
        del queue[bisect.bisect_left(queue, entry)]

    def check_integrity(self, sequences: Mapping[int, Sequence], kv: KVCacheManager) -> None:
        """Assert that every sequence is where it belongs."""
        assert self._entries.keys() == {
            entry[2].seq_id for entry in (*self.running, *self.waiting, *self.resumed)
        }
        for queue, status, holds_blocks in (
            (self.running, SequenceStatus.RUNNING, True),
            (self.waiting, SequenceStatus.WAITING, False),
            (self.resumed, SequenceStatus.WAITING, True),
        ):
            assert queue == sorted(queue)
            for _, _, sequence in queue:
                assert sequences[sequence.seq_id] is sequence
                assert sequence.status is status
                assert (sequence.seq_id in kv) == holds_blocks
                assert sequence.num_pending_tokens > 0
                assert not (holds_blocks and sequence.is_parked)
        queued = len(self.running) + self.num_waiting
        idle = [s for s in sequences.values() if s.status is SequenceStatus.IDLE]
        assert queued + len(idle) == len(sequences), "a sequence is queued twice or not at all"
        assert {s.seq_id for s in idle if s.seq_id in kv} == self.idle.keys()
