"""One stream of tokens, as the scheduler sees it: counters and a bounded tail of ids.

There are no phases. A prompt, a chunk of it, an appended turn and a decode step are all the same
thing: ``num_computed_tokens`` chases ``num_tokens``.
"""

from __future__ import annotations

import enum
import itertools
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias

from .prefix import hash_block, hash_seed
from .sampling_params import SamplingParams
from .sink_window import SinkWindow

# Tokens that may pile up behind the window before the tail is trimmed, so that trimming costs
# next to nothing per token.
_TRIM_SLACK = 256

# The longest that any sequence gets. The product of a position and a rotary frequency of at most 1
# is rounded to float64, by up to 2 ** -15 radians at this position, so the angle between a query
# and a key is exact to 2 ** -14 = 6e-5. At twice the position it is not exact to 1e-4 any more.
# (Reduction to one turn adds nothing: cos and sin reduce any float64 exactly.) At 1,000 tokens a
# second, a stream gets here after 17 years.
MAX_TOKENS = 1 << 39


class SequenceStatus(enum.Enum):
    """WAITING for its first or next step, RUNNING, IDLE (a live stream between turns), FINISHED."""

    WAITING = enum.auto()
    RUNNING = enum.auto()
    IDLE = enum.auto()
    FINISHED = enum.auto()


Missing: TypeAlias = Literal["evicted", "cut"]


class VisibleTokens(NamedTuple):
    """Tokens that follow each other from position ``start`` on, and what is missing before them."""

    start: int
    token_ids: array[int]
    missing: Missing | None


class Sequence:
    """Token ids and progress of one stream.

    A turn is what is computed between two idle moments. One that ``generates`` goes on until
    something stops it, or ends with the last known token if it ``embeds``. Another only computes
    what was appended, all but the last token, whose logits the next turn will need. Tokens appended
    while it generates queue behind the turn.

    Args:
        seq_id: unique in the scheduler.
        sink_window: what its queries see.
        is_stream: keep the blocks when a turn ends.
        max_tokens: the most tokens the sequence can ever have; ``None`` is `MAX_TOKENS`.
        priority: smaller runs first; ties in order of arrival.
        adapter: the key of the adapter that computes it; empty for the model as it is.
    """

    __slots__ = (
        "seq_id",
        "sink_window",
        "is_stream",
        "max_tokens",
        "priority",
        "adapter",
        "status",
        "num_tokens",
        "num_computed_tokens",
        "num_prompt_tokens",
        "rereads",
        "generates",
        "embeds",
        "is_parked",
        "is_loaded",
        "block_hashes",
        "num_prefix_queries",
        "num_prefix_hits",
        "queued",
        "cuts",
        "num_cut",
        "sampling_params",
        "stop_token_ids",
        "bad_words",
        "seed",
        "_sink_ids",
        "_tail",
        "_tail_start",
    )

    def __init__(
        self,
        seq_id: int,
        sink_window: SinkWindow,
        *,
        is_stream: bool = False,
        max_tokens: int | None = None,
        priority: int = 0,
        adapter: str = "",
    ) -> None:
        self.seq_id = seq_id
        self.sink_window = sink_window
        self.is_stream = is_stream
        self.max_tokens = max_tokens
        self.priority = priority
        self.adapter = adapter
        self.status = SequenceStatus.IDLE
        # Counted, so that any thread may look; the tail is cut while it grows.
        self.num_tokens = 0
        self.num_computed_tokens = 0
        self.num_prompt_tokens = 0
        self.rereads = False  # the next step computes the last token again
        self.generates = False
        self.embeds = False
        self.is_parked = False  # what was computed is out of the cache
        self.is_loaded = False  # what was computed may come from a file
        self.block_hashes: list[bytes] = []  # of its leading blocks, while it has none in the cache
        self.num_prefix_queries = 0  # tokens looked for in the cache
        self.num_prefix_hits = 0  # and found
        self.queued = array("i")
        self.cuts: list[int] = []  # positions right before which something was cut out
        self.num_cut = 0  # tokens that were cut out; older ones have moved up by as many
        self.sampling_params = SamplingParams()
        self.stop_token_ids: tuple[int, ...] = ()
        self.bad_words: tuple[tuple[int, ...], ...] = ()
        self.seed = 0
        self._sink_ids = array("i")  # the first S ids
        self._tail = array("i")  # ids from position _tail_start on, up to num_tokens
        self._tail_start = 0

    @property
    def limit(self) -> int:
        """Tokens at which it ends."""
        return MAX_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def num_output_tokens(self) -> int:
        return max(0, self.num_tokens - self.num_prompt_tokens)

    @property
    def num_pending_tokens(self) -> int:
        """Tokens this turn has to compute before it samples or ends."""
        pending = self.num_tokens - self.num_computed_tokens + self.rereads
        return pending if self.generates else max(0, pending - 1)

    @property
    def first_pending(self) -> int:
        """Where the next step begins."""
        return self.num_computed_tokens - self.rereads

    @property
    def step_window(self) -> SinkWindow:
        """What the queries of the next step see. What was evicted does not come back for a token
        that is computed again."""
        window = self.sink_window
        if not self.rereads or (first := self.first_kept) <= window.num_sink_tokens:
            return window
        return replace(window, window_floor=first)

    def append(self, token_ids: Iterable[int]) -> None:
        """Add known tokens at the end."""
        before = len(self._tail)
        self._tail.extend(token_ids)
        self.num_tokens += len(self._tail) - before
        missing = self.sink_window.num_sink_tokens - len(self._sink_ids)
        if missing > 0:
            self._sink_ids.extend(self._tail[before : before + missing])

    def token_ids(self, start: int, stop: int) -> array[int]:
        """Ids at positions ``[start, stop)``, which must not have been trimmed."""
        assert self._tail_start <= start <= stop <= self.num_tokens
        return self._tail[start - self._tail_start : stop - self._tail_start]

    def last_token_ids(self, count: int) -> array[int]:
        """Ids of the last ``count`` tokens, or of as many as there still are."""
        return self._tail[max(0, len(self._tail) - count) :]

    @property
    def first_visible(self) -> int:
        """First position behind the sinks that the query at the last position sees."""
        last = self.num_tokens - 1
        sinks = min(self.sink_window.num_sink_tokens, last + 1)
        return max(sinks, self.step_window.window_start(last))

    def visible_token_ids(self) -> array[int]:
        """Ids that the query at the last position sees, in order."""
        sinks = min(self.sink_window.num_sink_tokens, self.num_tokens)
        return self._sink_ids[:sinks] + self.token_ids(self.first_visible, self.num_tokens)

    def visible_runs(self) -> list[VisibleTokens]:
        """What the next token will see. The last run is empty if something was cut out right before
        it."""
        count, window = self.num_tokens, self.sink_window
        sinks, first = min(window.num_sink_tokens, count), window.first_kept(count)
        starts = {0} if sinks or not first else set()
        if first > sinks:
            starts.add(first)
        starts.update(position for position in self.cuts if position >= first)
        runs = []
        for start, stop in itertools.pairwise([*sorted(starts), count]):
            ids = self._sink_ids[start : min(stop, sinks)]
            if start >= sinks or first == sinks:
                ids += self.token_ids(max(start, sinks), stop)
            missing: Missing | None = "cut" if start in self.cuts else None
            if start == first > sinks + self.num_cut and missing is None:
                missing = "evicted"
            runs.append(VisibleTokens(start, ids, missing))
        return runs if count else []

    def kept_ids(self, start: int, stop: int) -> array[int]:
        """Ids at positions ``[start, stop)`` that the next token to be computed may see."""
        sinks = self.sink_window.num_sink_tokens
        first = max(start, sinks, self.first_kept)
        ids = self._sink_ids[start : min(stop, sinks)]
        return ids + self.token_ids(first, stop) if first < stop else ids

    def first_unbroken(self, num_tokens: int) -> int:
        """First position from which on nothing was evicted once so many tokens are computed; 0 if
        nothing at all was."""
        sinks = min(self.sink_window.num_sink_tokens, num_tokens)
        first = self.sink_window.first_kept(num_tokens)
        return first if first > sinks + self.num_cut else 0

    def advance(self, num_tokens: int) -> None:
        """Count ``num_tokens`` as computed."""
        if self.rereads:
            self.sink_window, self.num_computed_tokens = self.step_window, self.first_pending
            self.rereads = False
        self.num_computed_tokens += num_tokens
        assert self.num_computed_tokens <= self.num_tokens

    def trim(self, keep_from: int, *, slack: int = _TRIM_SLACK) -> None:
        """Drop ids out of the window and before ``keep_from``, once there are ``slack`` of them."""
        start = self.sink_window.window_start(self.num_computed_tokens)
        dead = min(start, keep_from) - self._tail_start
        if dead > slack:
            self._drop(dead)

    def _drop(self, count: int) -> None:
        del self._tail[:count]
        self._tail_start += count

    # While it has no blocks

    def hash_prompt(self, block_size: int) -> None:
        """Set ``block_hashes`` to those of the full blocks that need not be computed if they are
        found. One token stays to be computed, so that every turn has a step."""
        hashes = self.block_hashes
        count = max(0, self.num_pending_tokens - 1) // block_size
        del hashes[count:]
        previous = hashes[-1] if hashes else hash_seed(self.sink_window, self.adapter)
        for start in range(len(hashes) * block_size, count * block_size, block_size):
            previous = hash_block(previous, self.token_ids(start, start + block_size))
            hashes.append(previous)

    def hash_sinks(self, block_size: int) -> None:
        """Set ``block_hashes`` to those of the computed blocks that hold nothing but sinks. Nothing
        that is done to a stream changes these, and their ids are never trimmed."""
        if self.block_hashes:
            return
        previous = hash_seed(self.sink_window, self.adapter)
        full = min(len(self._sink_ids), self.num_computed_tokens) // block_size
        for start in range(0, full * block_size, block_size):
            previous = hash_block(previous, self._sink_ids[start : start + block_size])
            self.block_hashes.append(previous)

    # Editing

    def fork(self, seq_id: int) -> Sequence:
        """An idle copy of what is known so far."""
        child = Sequence(
            seq_id,
            self.sink_window,
            is_stream=self.is_stream,
            max_tokens=self.max_tokens,
            priority=self.priority,
            adapter=self.adapter,
        )
        child.num_tokens = self.num_tokens
        child.num_computed_tokens = self.num_computed_tokens
        child.num_prompt_tokens = self.num_prompt_tokens
        child.is_loaded = self.is_loaded
        child.cuts, child.num_cut = self.cuts[:], self.num_cut
        child._sink_ids = self._sink_ids[:]
        child._tail, child._tail_start = self._tail[:], self._tail_start
        return child

    @property
    def first_kept(self) -> int:
        """First position behind the sinks that the next token to be computed may see."""
        return self.sink_window.first_kept(self.num_computed_tokens)

    def cut(self, start: int, end: int) -> None:
        """Take out the tokens at ``[start, end)``, all computed and in the window; older ones in
        the window move up."""
        first = self.first_kept
        assert first <= start < end <= self.num_computed_tokens
        self._drop(first - self._tail_start)
        del self._tail[start - first : end - first]
        self._tail_start += end - start
        if self.num_prompt_tokens < end:
            self.num_prompt_tokens = min(self.num_prompt_tokens, start) + end - start
        self.sink_window = replace(self.sink_window, window_floor=first + end - start)
        moved = (
            at + end - start if at < start else max(at, end) for at in self.cuts if at >= first
        )
        self.cuts = sorted({*moved, end})
        self.num_cut += end - start

    @property
    def first_settled(self) -> int:
        """`first_kept` when all tokens but the last are computed."""
        computed = max(self.num_computed_tokens, self.num_tokens - 1)
        return self.sink_window.first_kept(computed)

    def withdraw(self, num_tokens: int) -> None:
        """Take back the tokens from position ``num_tokens`` on, of which none is computed."""
        assert self.num_computed_tokens <= num_tokens <= self.num_tokens
        del self._tail[num_tokens - self._tail_start :]
        del self._sink_ids[num_tokens:]
        self.num_tokens = num_tokens
        self.num_prompt_tokens = min(self.num_prompt_tokens, num_tokens)
        self.block_hashes = []  # other tokens may take their places

    def rewind(self, num_tokens: int) -> None:
        """Forget all tokens from position ``num_tokens`` on. Pending ones among them have pushed
        older ones out of the window as if they were computed, unless that is too far back."""
        sinks = self.sink_window.num_sink_tokens
        first = self.first_kept
        if num_tokens >= self.first_settled:
            first = self.first_settled
        assert max(first, sinks) <= num_tokens <= self.num_tokens
        if first > sinks:  # what was evicted does not come back
            self.sink_window = replace(self.sink_window, window_floor=first)
        del self._tail[num_tokens - self._tail_start :]
        self.num_tokens = num_tokens
        self.num_computed_tokens = min(self.num_computed_tokens, num_tokens)
        self.num_prompt_tokens = min(self.num_prompt_tokens, num_tokens)
        self.block_hashes = []
        self.cuts = [position for position in self.cuts if position <= num_tokens]

    @property
    def has_next(self) -> bool:
        """Whether there is a token whose logits say what comes next, once it is computed (again).

        There is none in an empty stream, nor in one that was rewound to its sinks or to the
        beginning of its window."""
        if self.num_computed_tokens < self.num_tokens:
            return True
        return self.num_tokens > max(self.first_kept, self.sink_window.num_sink_tokens)

    def reread(self) -> None:
        """Compute the last token once more in the next step, so that the next one can be sampled.
        Nothing changes before: a turn that ends without a step has done nothing."""
        assert self.num_computed_tokens == self.num_tokens and self.has_next
        self.rereads = True

    # Out of the process and back

    def state(self) -> SequenceState:
        """All that `restore` needs, next to K and V."""
        return SequenceState(
            sink_window=self.sink_window,
            num_computed_tokens=self.num_computed_tokens,
            num_prompt_tokens=self.num_prompt_tokens,
            sink_ids=self._sink_ids.tolist(),
            tail_ids=self._tail.tolist(),
            tail_start=self._tail_start,
            num_cut=self.num_cut,
            cuts=[position for position in self.cuts if position >= self.first_kept],
        )

    @classmethod
    def restore(
        cls, seq_id: int, state: SequenceState, *, max_tokens: int | None, adapter: str = ""
    ) -> Sequence:
        """A parked stream in the given state."""
        window = state.sink_window
        sequence = cls(seq_id, window, is_stream=True, max_tokens=max_tokens, adapter=adapter)
        sequence.num_tokens = state.tail_start + len(state.tail_ids)
        sequence.num_computed_tokens = state.num_computed_tokens
        sequence.num_prompt_tokens = state.num_prompt_tokens
        sequence._sink_ids = array("i", state.sink_ids)
        sequence._tail = array("i", state.tail_ids)
        sequence._tail_start = state.tail_start
        sequence.cuts, sequence.num_cut = list(state.cuts), state.num_cut
        sequence.is_parked = sequence.is_loaded = state.num_computed_tokens > 0
        return sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceState:
    """What a stream is, apart from K and V: plain values, to be written to a file.

    Args:
        sink_window: what its queries see.
        num_computed_tokens: the visible ones among the first so many have K and V.
        num_prompt_tokens: of its last turn.
        sink_ids: the first tokens, as many as are pinned.
        tail_ids: the tokens from position ``tail_start`` to the end of the stream.
        num_cut: how many tokens were cut out.
        cuts: positions in the window right before which something was cut out, in order.
    """

    sink_window: SinkWindow
    num_computed_tokens: int
    num_prompt_tokens: int
    sink_ids: list[int]
    tail_ids: list[int]
    tail_start: int
    num_cut: int
    cuts: list[int]

    @property
    def num_kept(self) -> int:
        """Tokens that have K and V: sinks, then the window."""
        computed = self.num_computed_tokens
        sinks = min(self.sink_window.num_sink_tokens, computed)
        return sinks + computed - self.sink_window.first_kept(computed)
