"""The engine's inside: its steps, and its streams between their turns.

Only the engine's thread uses a core. A stream here is a ``seq_id`` and plain values; what users may
do with it, `live_stream` knows.
"""

from __future__ import annotations

import itertools
import logging
import random
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from paged_stream.engine.adapters import Adapters
from paged_stream.engine.api import OnEvict
from paged_stream.engine.draft_model import DraftModel
from paged_stream.engine.lifetime import Errands, Lifetime, StreamLostError
from paged_stream.engine.outputs import Inbox
from paged_stream.engine.spans import Spans
from paged_stream.engine.stepper import Step, Stepper
from paged_stream.engine.turns import Turns
from paged_stream.executor.base import Executor
from paged_stream.models.kv_tokens import KVTokens
from paged_stream.scheduler.output import ParkedLostError
from paged_stream.scheduler.scheduler import Scheduler
from paged_stream.scheduler.sequence import Sequence, SequenceState
from paged_stream.scheduler.sink_window import SinkWindow
from paged_stream.text.structures import Structures
from paged_stream.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class StreamRecord:
    """What the engine remembers of an open stream."""

    last_used: float
    on_evict: OnEvict | None
    num_computed_tokens: int = 0  # of which evictions were told
    queue_seconds: float = 0.0


class EngineCore:
    """Owns the scheduler, the executor, the turns and what the engine remembers of its streams.

    Args:
        model: its name, for messages.
        eos_token_ids: tokens that end an answer.
        draft_model: what guesses for the scheduler, if it is to be closed with the core.
        seed: of requests and streams that bring none.
        park_after_seconds: as in `EngineConfig`.
        otlp_traces_endpoint: as in `EngineConfig`.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        tokenizer: Tokenizer | None,
        structures: Structures | None,
        eos_token_ids: tuple[int, ...],
        *,
        draft_model: DraftModel | None,
        model: str,
        seed: int,
        park_after_seconds: float | None,
        otlp_traces_endpoint: str | None,
    ) -> None:
        self.model = model
        self._seq_ids = itertools.count()
        self.scheduler = scheduler
        self.executor = executor
        self._spans = Spans(model, otlp_traces_endpoint)
        self.turns = Turns(
            scheduler, tokenizer, structures, eos_token_ids, self._seq_ids, self._spans
        )
        self.stepper = Stepper(scheduler, executor)
        self._draft_model = draft_model
        self.adapters = Adapters(
            lambda folder: self.executor.load_adapter(folder),
            lambda key: self.executor.drop_adapter(key),
            self._adapters_in_use,
        )
        self.streams: dict[int, StreamRecord] = {}  # by seq_id
        self.lost: dict[int, str] = {}  # streams that are over but not closed yet, and why
        self.num_evicted_tokens = 0
        self.lifetime = Lifetime()
        self.errands: Errands[EngineCore] = Errands()
        self.clock: Callable[[], float] = time.monotonic  # seconds; tells how long a stream rests
        self._park_after_seconds = park_after_seconds
        self._seeds = random.Random(seed)

    def new_seed(self) -> int:
        """63 bits."""
        return self._seeds.getrandbits(63)

    def _adapters_in_use(self) -> set[str]:
        return {sequence.adapter for sequence in self.scheduler.sequences.values()}

    def close(self) -> None:
        """End the workers and let go of what they hold. Harmless twice."""
        if self.lifetime.is_closed:
            return
        try:
            self.stepper.close()
            self._spans.close()
            if self._draft_model is not None:
                self._draft_model.close()
        finally:
            self.lifetime.is_closed = True
            # Streams may keep the core, but not what takes memory.
            del self.scheduler, self.executor, self.turns, self.stepper, self._draft_model
            self.streams.clear()
            self.lost.clear()

    # Steps

    def advance(self) -> bool:
        """Compute one step, or as many as need no look in between; False if there was nothing to
        compute.

        Raises:
            RuntimeError: the engine has failed before.
        """
        if self._park_after_seconds is not None:
            self.park_idle(self._park_after_seconds)
        began = time.monotonic()
        step = self.stepper.step(self.turns.unread, self.turns.masked, self.turns.ends_with)
        has_lost = self._note_losses()
        if step is None:
            return has_lost  # whoever waited behind what was lost has not been looked at
        self._note_starts(step)
        now = self.clock()
        for update in step.updates:
            if (record := self.streams.get(update.seq_id)) is not None:
                record.last_used = now
            self.turns.deliver(update)
        self._note_evictions(step)
        self.stepper.step_seconds += time.monotonic() - began
        return True

    def advance_if(self, is_needed: bool) -> bool:
        """As `advance`, if a step is needed; returns whether it is."""
        if is_needed:
            self.advance()
        return is_needed

    def flush(self) -> None:
        """As `Stepper.flush`."""
        self.stepper.flush()

    def seconds_to_parking(self) -> float | None:
        """How long there is nothing to do if nobody asks for anything; ``None``: for ever."""
        oldest = next(iter(self.scheduler.idle_streams()), None)
        if self._park_after_seconds is None or oldest is None:
            return None
        left = self.streams[oldest].last_used + self._park_after_seconds - self.clock()
        return max(left, 0.0)

    def _note_starts(self, step: Step) -> None:
        for scheduled in step.output.sequences:
            waited = self.turns.note_start(scheduled.seq_id, step.started)
            record = self.streams.get(scheduled.seq_id)
            if waited is not None and record is not None:
                record.queue_seconds = waited

    def _note_evictions(self, step: Step) -> None:
        """Count what left its window in this step, and tell who wants to know."""
        now = {update.seq_id: update.num_computed_tokens for update in step.updates}
        for scheduled in step.output.sequences:
            if scheduled.seq_id not in now:
                continue
            window = scheduled.sink_window
            record = self.streams.get(scheduled.seq_id)
            computed = scheduled.num_computed_tokens
            if record is not None:
                # Fewer than now if the cache had the first ones already.
                computed = min(computed, record.num_computed_tokens)
                record.num_computed_tokens = now[scheduled.seq_id]
            before = window.window_start(computed)
            after = window.window_start(now[scheduled.seq_id])
            first = max(before, window.num_sink_tokens)
            if after <= first:
                continue
            self.num_evicted_tokens += after - first
            if record is None or record.on_evict is None:
                continue
            try:
                record.on_evict(first, after)
            except BaseException:
                logger.exception("on_evict failed")  # the step is done, and is others' too

    def _note_losses(self) -> bool:
        """End what did not come back from where it was parked; whether there is any."""
        lost = self.scheduler.take_lost()
        for seq_id, error in lost.items():
            is_stream = self.streams.pop(seq_id, None) is not None
            logger.error("%s %d is lost: %s", "stream" if is_stream else "request", seq_id, error)
            if is_stream:
                self.lost[seq_id] = str(error)
            self.turns.lose(seq_id, str(error))
        return bool(lost)

    @contextmanager
    def _bringing_back(self, seq_id: int) -> Iterator[None]:
        """For what needs a stream in the cache, which may be parked.

        Raises:
            StreamLostError: it does not come back.
        """
        try:
            yield
        except ParkedLostError as error:
            self.scheduler.lose(seq_id, error)
            self._note_losses()
            raise self.lost_error(seq_id) from error

    def lost_error(self, seq_id: int) -> StreamLostError:
        """For every use of a stream that is in ``lost``."""
        return StreamLostError(f"stream {seq_id} is lost: {self.lost[seq_id]}")

    # Streams

    def peek(self, seq_id: int) -> Sequence | None:
        """A stream's sequence, for a look in any thread; ``None`` once it is closed."""
        scheduler = getattr(self, "scheduler", None)
        return None if scheduler is None else scheduler.sequences.get(seq_id)

    def open_stream(
        self, sink_window: SinkWindow, on_evict: OnEvict | None, *, adapter: str = ""
    ) -> int:
        """Open an empty stream; returns its seq_id.

        Args:
            adapter: the key of one that is loaded; empty for none.

        Raises:
            ValueError: it does not fit the cache.
        """
        seq_id = next(self._seq_ids)
        self.scheduler.open(seq_id, sink_window, is_stream=True, adapter=adapter)
        self.streams[seq_id] = StreamRecord(self.clock(), on_evict)
        return seq_id

    def restore_stream(
        self,
        state: SequenceState,
        tokens: KVTokens,
        on_evict: OnEvict | None,
        *,
        adapter: str = "",
    ) -> int:
        """Open a stream that is parked, with what was saved of it; returns its seq_id.

        Args:
            adapter: as in `open_stream`.

        Raises:
            ValueError: as `open_stream`.
        """
        seq_id = next(self._seq_ids)
        self.scheduler.restore(seq_id, state, adapter=adapter)
        if state.num_computed_tokens:
            self.executor.put_parked(seq_id, tokens)
        self.streams[seq_id] = StreamRecord(self.clock(), on_evict, state.num_computed_tokens)
        return seq_id

    def fork_stream(self, seq_id: int, on_evict: OnEvict | None) -> int:
        """Copy an idle stream; returns the copy's seq_id.

        Raises:
            RuntimeError: as `Scheduler.make_resident`.
            StreamLostError: it is parked, and does not come back.
        """
        child_id = next(self._seq_ids)
        with self._bringing_back(seq_id):
            child = self.scheduler.fork(seq_id, child_id, self.turns.at_rest())
        self.streams[child_id] = StreamRecord(self.clock(), on_evict, child.num_computed_tokens)
        return child_id

    def cut_stream(self, seq_id: int, start: int, end: int) -> None:
        """Take tokens out of an idle stream. Raises what `fork_stream` does."""
        with self._bringing_back(seq_id):
            self.scheduler.cut(seq_id, start, end, self.turns.at_rest())

    def rewind_stream(self, seq_id: int, position: int) -> None:
        """Forget a stream's tokens from ``position`` on, computed or not, between its turns. Raises
        what `fork_stream` does."""
        with self._bringing_back(seq_id):
            self.scheduler.rewind(seq_id, position, self.turns.at_rest())
        record = self.streams[seq_id]
        record.last_used = self.clock()
        record.num_computed_tokens = min(record.num_computed_tokens, position)

    def withdraw(self, seq_id: int, start: int, end: int, num_computed: int) -> None:
        """As `Scheduler.withdraw`, of a stream that has no turn."""
        if not self.turns.has(seq_id):
            self.scheduler.withdraw(seq_id, start, end, num_computed)
            self.streams[seq_id].last_used = self.clock()

    def park_stream(self, seq_id: int) -> None:
        """Move an idle stream out of the cache."""
        self.scheduler.park(seq_id)
        self.flush()

    def park_idle(self, idle_seconds: float) -> int:
        """Park the streams that did nothing for so long; returns how many."""
        limit = self.clock() - idle_seconds
        # In the order of their use.
        idle = list(
            itertools.takewhile(
                lambda seq_id: self.streams[seq_id].last_used <= limit,
                self.scheduler.idle_streams(),
            )
        )
        for seq_id in idle:
            self.scheduler.park(seq_id)
        self.flush()
        return len(idle)

    def copy_stream(self, seq_id: int) -> tuple[SequenceState, KVTokens]:
        """All of a stream that is computed, or known, wherever it is.

        Raises:
            StreamLostError: it is parked, and cannot be read.
        """
        self.flush()
        sequence = self.scheduler.sequences[seq_id]
        state = sequence.state()
        if sequence.is_parked:
            try:
                return state, self.executor.read_parked(seq_id)
            except ParkedLostError as error:
                raise StreamLostError(f"stream {seq_id} cannot be read: {error}") from error
        computed = sequence.num_computed_tokens > 0
        slots = self.scheduler.kept_slots(seq_id) if computed else array("q")
        return state, self.executor.read(slots)

    def end_turn(self, seq_id: int, inbox: Inbox | None = None) -> None:
        """Stop a stream's turn; with an inbox, only if the turn fills it."""
        if self.turns.has(seq_id, inbox):
            self.turns.end(seq_id)
            self.scheduler.end_turn(seq_id)
            self.streams[seq_id].last_used = self.clock()

    def close_stream(self, seq_id: int) -> None:
        """Free a stream's blocks, or what was parked of it."""
        self.turns.end(seq_id)
        self.streams.pop(seq_id, None)
        self.lost.pop(seq_id, None)
        self.scheduler.close(seq_id)
        if not self.stepper.has_failed:
            self.flush()  # what was parked goes now, even if nothing is computed any more
