"""Who has blocks: sequences are let into the cache, and others are parked for them: streams that do
not run, least recently used first, then what has a lower priority. Nobody is parked in vain."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection

from .kv_cache_manager import KVCacheManager
from .leaving import Leaving
from .output import ParkTokens, RestoreTokens
from .queues import Queues
from .sequence import Sequence, SequenceStatus


class Residency:
    """Moves sequences into the cache and out of it.

    Attributes:
        bring_back: as in `Scheduler.restore_through`.
    """

    def __init__(self, kv: KVCacheManager, sequences: dict[int, Sequence], queues: Queues) -> None:
        self._kv = kv
        self._sequences = sequences
        self._queues = queues
        self.bring_back: Callable[[RestoreTokens], None] = lambda op: kv.operations.append(op)
        self.num_prefix_queries = 0  # tokens looked for in the cache
        self.num_prefix_hits = 0  # and found

    # In

    def find_room(self, sequence: Sequence, paused: Collection[int]) -> list[int] | None:
        """Who has to be parked before `admit`, in order; ``None`` if that would not help.

        Args:
            paused: sequences that may be parked although they have something to compute.
        """
        self._hash(sequence)
        missing = self.num_missing(sequence)
        if missing <= 0:
            return []
        candidates = list(self._queues.parkable(paused, sequence.priority))
        if missing > sum(len(self._kv[seq_id].row) for seq_id in candidates):
            return None
        leaving = Leaving(self._kv.pool)
        for count, seq_id in enumerate(candidates, 1):
            leaving.add(self._kv[seq_id])
            if self.num_missing(sequence, leaving) <= 0:
                return candidates[:count]
        return None

    def admit(self, sequence: Sequence, chunk: int, leaving: Collection[int]) -> None:
        """Give blocks to a sequence that has none, and what the cache holds of it already.

        Args:
            chunk: tokens that its first step would take.
            leaving: from `find_room`; none of them runs any more.

        Raises:
            ParkedLostError: what was parked of it does not come back; it has no blocks.
        """
        for seq_id in leaving:
            self.park(seq_id)
        if sequence.is_parked:
            self._restore(sequence)
        else:
            self._begin(sequence, chunk)
        sequence.block_hashes = []

    def make_resident(self, sequence: Sequence, paused: Collection[int]) -> None:
        """Bring an idle stream back if it is parked.

        Raises:
            RuntimeError: what runs leaves no room.
            ParkedLostError: as `admit`.
        """
        if not sequence.is_parked:
            return
        assert sequence.status is SequenceStatus.IDLE
        if (leaving := self.find_room(sequence, ())) is None:
            self._queues.set_aside(paused)
            leaving = self.find_room(sequence, paused)
        if leaving is None:
            raise RuntimeError(
                "the cache has no room for this stream beside what runs now; let it finish"
            )
        self._queues.set_aside(leaving)
        self.admit(sequence, 1, leaving)
        self._queues.idle[sequence.seq_id] = None

    def num_missing(self, sequence: Sequence, leaving: Leaving | None = None) -> int:
        """Blocks that would have to become free to admit a sequence, perhaps once others have left;
        0 or less if it fits."""
        window, hashes = sequence.sink_window, sequence.block_hashes
        return self._kv.num_missing(window, sequence.max_tokens, hashes, leaving)

    def _hash(self, sequence: Sequence) -> None:
        """See to the hashes by which its blocks may be found."""
        if not self._kv.enable_prefix_caching:
            return
        if sequence.is_parked:
            sequence.hash_sinks(self._kv.block_size)
        elif sequence.sampling_params.prompt_logprobs is None:
            sequence.hash_prompt(self._kv.block_size)

    def _begin(self, sequence: Sequence, chunk: int) -> None:
        num_found = self._kv.admit(
            sequence.seq_id,
            sequence.sink_window,
            sequence.max_tokens,
            chunk,
            sequence.block_hashes,
            adapter=sequence.adapter,
        )
        assert num_found is not None
        num_hits = num_found * self._kv.block_size
        sequence.advance(num_hits)
        if sequence.block_hashes:  # the cache was looked through
            sequence.num_prefix_queries += sequence.num_tokens
            sequence.num_prefix_hits += num_hits
            self.num_prefix_queries += sequence.num_tokens
            self.num_prefix_hits += num_hits

    def _restore(self, sequence: Sequence) -> None:
        """Bring a parked stream back. Its pinned blocks are shared with others that have the same,
        but not before they hold what they should; what a file brought is not shared out, for
        nobody knows what it is."""
        seq_id = sequence.seq_id
        num_shared = self._kv.admit_parked(
            seq_id,
            sequence.sink_window,
            sequence.max_tokens,
            sequence.num_computed_tokens,
            sequence.block_hashes,
        )
        assert num_shared is not None
        slots = self.kept_slots(seq_id)
        num_tokens = num_shared * self._kv.block_size
        slots[:num_tokens] = array("q", [-1]) * num_tokens
        try:
            self.bring_back(RestoreTokens(seq_id, slots))
        except BaseException:
            self._kv.free(seq_id)
            raise
        sequence.is_parked = False
        if not sequence.is_loaded:
            self._kv.remember_sinks(seq_id, sequence.block_hashes)

    # Out

    def park(self, seq_id: int) -> None:
        """Move what a stream has computed out of the cache, unless it runs or has nothing there."""
        sequence = self._sequences[seq_id]
        if seq_id not in self._kv or sequence.status is SequenceStatus.RUNNING:
            return
        if sequence.num_computed_tokens:
            self._kv.operations.append(ParkTokens(seq_id, self.kept_slots(seq_id)))
            sequence.is_parked = True
        self._kv.free(seq_id)
        self._queues.lose_blocks(sequence)
        sequence.trim(sequence.num_computed_tokens, slack=0)

    def park_one(self) -> bool:
        """Park the idle stream that has not run for longest; False if there is none."""
        for seq_id in self._queues.idle:
            self.park(seq_id)
            return True
        return False

    def kept_slots(self, seq_id: int) -> array[int]:
        """Slots of the computed tokens that later ones can see: sinks, then the window."""
        sequence = self._sequences[seq_id]
        computed = sequence.num_computed_tokens
        if not computed:
            return array("q")
        sinks = min(sequence.sink_window.num_sink_tokens, computed)
        slots = self._kv.slots(seq_id, 0, sinks)
        return slots + self._kv.slots(seq_id, sequence.first_kept, computed)
