"""One stream of tokens, as the scheduler sees it: counters and a bounded tail of ids.

There are no phases. A prompt, a chunk of it, an appended turn and a decode step are all the same
thing: ``num_computed_tokens`` chases ``num_tokens``.
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Iterable

from .sampling_params import SamplingParams
from .sink_window import SinkWindow

# Tokens that may pile up behind the window before the tail is trimmed, so that trimming costs
# nothing per token.
_TRIM_SLACK = 256


class SequenceStatus(enum.Enum):
    """WAITING for its first or next step, RUNNING, IDLE (a live stream between turns), FINISHED."""

    WAITING = enum.auto()
    RUNNING = enum.auto()
    IDLE = enum.auto()
    FINISHED = enum.auto()


class Sequence:
    """Token ids and progress of one stream.

    A turn is what is computed between two idle moments. One that ``generates`` goes on until
    something stops it; another only computes what was appended, all but the last token, whose
    logits the next turn will need.

    Args:
        seq_id: unique in the scheduler.
        sink_window: what its queries see.
        is_stream: keep the blocks when a turn ends.
        max_tokens: the most tokens the sequence can ever have; ``None`` is endless.
        priority: smaller runs first; ties in order of arrival.
    """

    __slots__ = (
        "seq_id",
        "sink_window",
        "is_stream",
        "max_tokens",
        "priority",
        "status",
        "num_computed_tokens",
        "num_prompt_tokens",
        "generates",
        "sampling_params",
        "stop_token_ids",
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
    ) -> None:
        self.seq_id = seq_id
        self.sink_window = sink_window
        self.is_stream = is_stream
        self.max_tokens = max_tokens
        self.priority = priority
        self.status = SequenceStatus.IDLE
        self.num_computed_tokens = 0
        self.num_prompt_tokens = 0
        self.generates = False
        self.sampling_params = SamplingParams()
        self.stop_token_ids: tuple[int, ...] = ()
        self.seed = 0
        self._sink_ids = array("i")  # the first S ids
        self._tail = array("i")  # ids from position _tail_start on, up to num_tokens
        self._tail_start = 0

    @property
    def num_tokens(self) -> int:
        return self._tail_start + len(self._tail)

    @property
    def num_output_tokens(self) -> int:
        return max(0, self.num_tokens - self.num_prompt_tokens)

    @property
    def num_pending_tokens(self) -> int:
        """Tokens this turn has to compute before it samples or ends."""
        pending = self.num_tokens - self.num_computed_tokens
        return pending if self.generates else max(0, pending - 1)

    def append(self, token_ids: Iterable[int]) -> None:
        """Add known tokens at the end."""
        before = len(self._tail)
        self._tail.extend(token_ids)
        missing = self.sink_window.num_sink_tokens - len(self._sink_ids)
        if missing > 0:
            self._sink_ids.extend(self._tail[before : before + missing])

    def token_ids(self, start: int, stop: int) -> array[int]:
        """Ids at positions ``[start, stop)``, which must not have been trimmed."""
        assert self._tail_start <= start <= stop <= self.num_tokens
        return self._tail[start - self._tail_start : stop - self._tail_start]

    def visible_token_ids(self) -> array[int]:
        """Ids that the query at the last position sees, in order."""
        last = self.num_tokens - 1
        sinks = self.sink_window.num_sink_tokens
        first = self.sink_window.window_start(last)
        if first <= sinks:
            first = 0
        window = self.token_ids(max(first, self._tail_start), last + 1)
        if first == self._tail_start == 0:
            return window
        return self._sink_ids[: min(sinks, max(first, self._tail_start))] + window

    def advance(self, num_tokens: int) -> None:
        """Count ``num_tokens`` as computed and drop ids that nothing will ask for again."""
        self.num_computed_tokens += num_tokens
        assert self.num_computed_tokens <= self.num_tokens
        dead = self.sink_window.window_start(self.num_computed_tokens) - self._tail_start
        if dead > _TRIM_SLACK + (len(self._tail) >> 2):
            del self._tail[:dead]
            self._tail_start += dead
