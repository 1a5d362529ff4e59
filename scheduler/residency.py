"""Who has blocks: sequences are let into the cache, and streams that do not run are parked for
them, least recently used first. Nobody is parked in vain."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection

from .kv_cache_manager import KVCacheManager
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

    def admit(self, sequence: Sequence, chunk: int, paused: Collection[int]) -> bool:
        """Give blocks to a sequence that has none, and what the cache holds of it already; False
        if there is no room.

        Args:
            chunk: tokens that its first step would take.
            paused: sequences that may be parked although they have something to compute.

        Raises:
            ParkedLostError: what was parked of it does not come back; it has no blocks.
        """
        self._hash(sequence)
        if not self._make_room(sequence, paused):
            return False
        if sequence.is_parked:
            self._restore(sequence)
        else:
            self._begin(sequence, chunk)
        sequence.block_hashes = []
        return True

    def make_resident(self, sequence: Sequence, paused: Collection[int]) -> None:
        """Bring an idle stream back if it is parked.

        Raises:
            RuntimeError: what runs leaves no room.
            ParkedLostError: as `admit`.
        """
        if not sequence.is_parked:
            return
        assert sequence.status is SequenceStatus.IDLE
        if not self.admit(sequence, 1, ()):
            self._queues.set_aside(paused)
            if not self.admit(sequence, 1, paused):
                raise RuntimeError(
                    "the cache has no room for this stream beside what runs now; let it finish"
                )
        self._queues.idle[sequence.seq_id] = None

    def num_missing(self, sequence: Sequence) -> int:
        """Blocks that would have to become free to admit a sequence; 0 or less if it fits."""
        needed = self._kv.num_needed(
            sequence.sink_window, sequence.max_tokens, sequence.block_hashes
        )
        return needed - self._kv.num_unreserved_blocks

    def num_parkable_blocks(self, paused: Collection[int]) -> int:
        """Blocks that parking all that can be parked frees, at most."""
        return sum(len(self._kv[seq_id].row) for seq_id in self._queues.parkable(paused))

    def _hash(self, sequence: Sequence) -> None:
        """See to the hashes by which its blocks may be found."""
        if not self._kv.enable_prefix_caching:
            return
        if sequence.is_parked:
            sequence.hash_sinks(self._kv.block_size)
        elif sequence.sampling_params.prompt_logprobs is None:
            sequence.hash_prompt(self._kv.block_size)

    def _make_room(self, sequence: Sequence, paused: Collection[int]) -> bool:
        """Park others until a sequence fits, if that is possible."""
        while self.num_missing(sequence) > 0:
            if not self._would_fit(sequence, paused) or not self.park_one(paused):
                return False
        return True

    def _would_fit(self, sequence: Sequence, paused: Collection[int]) -> bool:
        """Whether parking all that can be parked makes room. What is shared with them is not free
        any more then, so the sequence must fit without it."""
        needed = self._kv.min_blocks(sequence.sink_window, sequence.max_tokens)
        return needed <= self._kv.num_unreserved_blocks + self.num_parkable_blocks(paused)

    def _begin(self, sequence: Sequence, chunk: int) -> None:
        num_found = self._kv.admit(
            sequence.seq_id,
            sequence.sink_window,
            sequence.max_tokens,
            chunk,
            sequence.block_hashes,
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

    def park_one(self, paused: Collection[int] = ()) -> bool:
        """Park the stream that has not run for longest; False if none can be."""
        for seq_id in self._queues.parkable(paused):
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
