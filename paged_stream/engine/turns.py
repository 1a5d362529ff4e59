"""All turns of one engine, from their first step to their last delta: those of requests, which it
opens and closes sequences for, and those of streams, whose sequences stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from paged_stream.engine.lifetime import StreamLostError
from paged_stream.engine.masks import Masks
from paged_stream.engine.outputs import DeltaQueue, FinishReason, Inbox, RequestDelta
from paged_stream.engine.spans import Spans
from paged_stream.engine.turn import Turn
from paged_stream.engine.turn_counts import TurnCounts
from paged_stream.scheduler.output import SchedulerOutput, SequenceUpdate
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.scheduler.scheduler import Scheduler
from paged_stream.scheduler.sink_window import SinkWindow
from paged_stream.text.bad_words import bad_word_ids
from paged_stream.text.structures import Structures
from paged_stream.text.tokenizer import Tokenizer

# Deltas of one request that may wait for `step` while others drive the engine.
MAX_UNDELIVERED = 1024


class Turns:
    """All turns of one engine.

    Attributes:
        counts: what the finished ones were like.

    Args:
        seq_ids: numbers for new sequences.
        spans: where those that are finished are told of.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        tokenizer: Tokenizer | None,
        structures: Structures | None,
        eos_token_ids: tuple[int, ...],
        seq_ids: Iterator[int],
        spans: Spans,
    ) -> None:
        self.requests: dict[str, list[int]] = {}  # by name; its unfinished seq_ids
        self.num_generated_tokens = 0
        self.num_started = 0
        self.num_failed = 0
        self.queue_seconds = 0.0
        self.counts = TurnCounts()
        self._scheduler = scheduler
        self._tokenizer = tokenizer
        self._structures = structures
        self._masks = Masks()
        self._eos_token_ids = eos_token_ids
        self._seq_ids = seq_ids
        self._spans = spans
        self._turns: dict[int, Turn] = {}  # by seq_id
        self._begun: dict[int, Turn] = {}  # those that may have delivered something
        self._undelivered: list[RequestDelta] = []

    def __len__(self) -> int:
        return len(self._turns)

    def has(self, seq_id: int, inbox: Inbox | None = None) -> bool:
        """Whether a sequence has a turn; with an inbox, whether that turn fills it."""
        turn = self._turns.get(seq_id)
        return turn is not None and (inbox is None or turn.inbox is inbox)

    # Requests

    def is_in_use(self, request_id: str) -> bool:
        """Whether a request of that name is unfinished, or has deltas that nobody has taken."""
        waiting = (delta.request_id for delta in self._undelivered)
        return request_id in self.requests or request_id in waiting

    def add_request(
        self,
        request_id: str,
        token_ids: Sequence[int],
        params: SamplingParams,
        sink_window: SinkWindow,
        *,
        seed: int,
        priority: int = 0,
        adapter: str = "",
        inbox: Inbox | None = None,
    ) -> None:
        """Open a sequence that completes a prompt, and others beside it if ``n`` says so.

        Raises:
            ValueError: the cache is too small for it.
        """
        limit = None if params.max_tokens is None else len(token_ids) + params.max_tokens
        seq_id = next(self._seq_ids)
        # Several completions share their prompt; only a stream outlives the turn that computes it.
        fans_out = params.n > 1 and len(token_ids) > 1
        self._scheduler.open(
            seq_id,
            sink_window,
            is_stream=fans_out,
            max_tokens=limit,
            priority=priority,
            adapter=adapter,
        )
        turn = Turn(
            request_id=request_id,
            index=0,
            params=params,
            seed=seed,
            inbox=inbox,
            is_last=True,
            num_copies=params.n - 1,
        )
        self._add(seq_id, turn, token_ids)
        if fans_out:
            self._scheduler.start_turn(seq_id, params, generates=False)
        else:
            self._fan_out(seq_id, turn)

    def add_scoring(
        self,
        request_id: str,
        token_ids: Sequence[int],
        sink_window: SinkWindow,
        *,
        adapter: str = "",
        inbox: Inbox | None = None,
    ) -> None:
        """Open a sequence that generates nothing and reports ``prompt_logprobs`` of its tokens, of
        which there are at least two.

        Raises:
            ValueError: as `add_request`.
        """
        params = SamplingParams(prompt_logprobs=0)
        seq_id = self._open_silent(request_id, token_ids, sink_window, params, adapter, inbox)
        self._scheduler.start_turn(seq_id, params, generates=False)

    def add_embedding(
        self,
        request_id: str,
        token_ids: Sequence[int],
        sink_window: SinkWindow,
        *,
        adapter: str = "",
        inbox: Inbox | None = None,
    ) -> None:
        """Open a sequence that generates nothing and reports its ``embedding``.

        Raises:
            ValueError: as `add_request`.
        """
        params = SamplingParams()
        seq_id = self._open_silent(request_id, token_ids, sink_window, params, adapter, inbox)
        self._scheduler.start_turn(seq_id, params, embeds=True)

    def _open_silent(
        self,
        request_id: str,
        token_ids: Sequence[int],
        sink_window: SinkWindow,
        params: SamplingParams,
        adapter: str,
        inbox: Inbox | None,
    ) -> int:
        """Open a sequence that gets no tokens but its prompt's; returns its seq_id."""
        seq_id = next(self._seq_ids)
        limit = len(token_ids)
        self._scheduler.open(seq_id, sink_window, max_tokens=limit, adapter=adapter)
        turn = Turn(request_id=request_id, index=0, params=params, inbox=inbox)
        self._add(seq_id, turn, token_ids)
        return seq_id

    def _add(self, seq_id: int, turn: Turn, token_ids: Sequence[int]) -> None:
        self.requests[turn.request_id] = [seq_id]
        self._turns[seq_id] = turn
        turn.num_prompt_tokens = len(token_ids)
        self._scheduler.append(seq_id, token_ids)

    def abort(self, request_id: str) -> None:
        """End a request and say so to whoever reads it; one that is unknown is left alone."""
        for seq_id in self.requests.pop(request_id, ()):
            turn = self._turns[seq_id]
            self._close(seq_id)
            self._hand_out_ends(turn, "abort")

    def drop(self, request_id: str, inbox: Inbox | None = None) -> None:
        """Forget a request and what nobody has taken of it; one that is unknown is left alone. With
        an inbox, only if the request fills it."""
        seq_ids = self.requests.get(request_id, ())
        if inbox is not None and not any(self.has(seq_id, inbox) for seq_id in seq_ids):
            return
        for seq_id in self.requests.pop(request_id, ()):
            self._close(seq_id)
        self._undelivered = [d for d in self._undelivered if d.request_id != request_id]

    def lose(self, seq_id: int, error: str) -> None:
        """End the turn of a sequence that is gone: a request with a last delta that says so, a
        stream's with what every other use of the stream raises."""
        if (turn := self._turns.get(seq_id)) is None:
            return
        is_request = seq_id in self.requests.get(turn.request_id, ())
        self._finish(seq_id, turn)
        if is_request:
            self._hand_out_ends(turn, "error", error)
        elif turn.inbox is not None:
            self.num_failed += 1
            turn.inbox.end(StreamLostError(f"stream {seq_id} is lost: {error}"))

    def _hand_out_ends(self, turn: Turn, reason: FinishReason, error: str | None = None) -> None:
        to_come = 0 if turn.generates else turn.num_copies
        for index in range(turn.index, turn.index + to_come + 1):
            self._hand_out(turn, turn.ended(index, reason, error))

    def _close(self, seq_id: int) -> None:
        self.end(seq_id)
        self._scheduler.close(seq_id)

    @property
    def has_unfinished_requests(self) -> bool:
        """Whether there is something to compute for a request, or to take of one."""
        return bool(self.requests or self._undelivered)

    def take_undelivered(self, request_ids: Collection[str] | None = None) -> list[RequestDelta]:
        """Deltas without an inbox that came since the last call.

        Args:
            request_ids: only of these requests; the others' wait for another call.
        """
        deltas, self._undelivered = self._undelivered, []
        if request_ids is not None:
            self._undelivered = [d for d in deltas if d.request_id not in request_ids]
            deltas = [d for d in deltas if d.request_id in request_ids]
        return deltas

    def give_back(self, deltas: list[RequestDelta]) -> None:
        """Let what `take_undelivered` has returned be taken once more."""
        self._undelivered[:0] = deltas

    # Of streams

    def start(
        self,
        seq_id: int,
        params: SamplingParams,
        seed: int,
        inbox: Inbox,
        num_generated: int = 0,
        generated: Sequence[int] = (),
        *,
        template_rewrote: bool = False,
    ) -> None:
        """Let a stream generate; its deltas will appear in ``inbox``. The turn has
        ``num_generated`` tokens already; with a structure, these."""
        turn = Turn(
            request_id=f"stream-{seq_id}",
            index=0,
            params=params,
            seed=seed,
            inbox=inbox,
            template_rewrote=template_rewrote,
            num_prompt_tokens=self._num_uncomputed(seq_id),
        )
        self._turns[seq_id] = turn
        self._generate(seq_id, turn, num_generated, generated)

    def start_scoring(self, seq_id: int, inbox: Inbox) -> None:
        """Compute what was appended to a stream; log-probabilities will appear in ``inbox``."""
        params = SamplingParams(prompt_logprobs=0)
        turn = Turn(request_id=f"stream-{seq_id}", index=0, params=params, inbox=inbox)
        turn.num_prompt_tokens = self._num_uncomputed(seq_id)
        self._turns[seq_id] = turn
        self._scheduler.start_turn(seq_id, params, generates=False)

    def _num_uncomputed(self, seq_id: int) -> int:
        sequence = self._scheduler.sequences[seq_id]
        return sequence.num_tokens - sequence.num_computed_tokens

    def end(self, seq_id: int) -> None:
        """Forget a sequence's turn, if it has one."""
        self._turns.pop(seq_id, None)
        self._begun.pop(seq_id, None)
        self._masks.turns.pop(seq_id, None)

    # Within a step

    def unread(self) -> set[int]:
        """Sequences that wait for their reader and sit out the steps until then: whoever reads
        slowly holds up what it reads only, and deltas do not pile up."""
        begun = self._begun.items()  # not all turns: any number may wait for their first step
        backlog: Counter[str] = Counter()
        if len(self._undelivered) >= MAX_UNDELIVERED:
            backlog.update(delta.request_id for delta in self._undelivered)
        return {
            seq_id
            for seq_id, turn in begun
            if (
                backlog[turn.request_id] >= MAX_UNDELIVERED
                if turn.inbox is None
                else turn.inbox.is_full
            )
        }

    def at_rest(self) -> set[int]:
        """Sequences that may leave the cache for an edit of another stream: those that `unread`
        tells, and those that are read in the caller's thread, which is not reading now."""
        turns = self._turns.items()
        return self.unread() | {i for i, turn in turns if isinstance(turn.inbox, DeltaQueue)}

    def note_start(self, seq_id: int, started: float) -> float | None:
        """Note that a sequence was in a step. If it was its turn's first, count how long the turn
        has waited and return it, in seconds."""
        turn = self._turns.get(seq_id)
        if turn is None or not turn.is_queued:
            return None
        self._begun[seq_id] = turn
        waited = turn.note_start(started)
        self.num_started += 1
        self.queue_seconds += waited
        return waited

    def masked(self, output: SchedulerOutput) -> SchedulerOutput:
        """The same step, with the masks of the turns that have a structure."""
        return self._masks.added_to(output)

    def ends_with(self, seq_id: int, token_id: int) -> bool:
        """Add a token to its turn; whether that ends it. A stop token has no text, and does not
        come here."""
        turn = self._turns.get(seq_id)
        return turn is not None and turn.ends_with(token_id)

    def deliver(self, update: SequenceUpdate) -> None:
        """Hand out what a step has added to a turn."""
        turn = self._turns.get(update.seq_id)
        if turn is None:  # tokens appended to a stream were computed
            return
        finish_reason = update.finish_reason
        self.num_generated_tokens += len(update.token_ids)
        if turn.num_copies and not turn.generates and finish_reason is not None:
            if finish_reason == "error":  # none of the copies begins
                self._finish(update.seq_id, turn)
                self._scheduler.close(update.seq_id)
                self._hand_out_ends(turn, "error", update.error)
                return
            self._fan_out(update.seq_id, turn)  # the prompt is computed
            finish_reason = None
        delta = turn.delta(update, finish_reason)
        if delta.finished:
            self._finish(update.seq_id, turn)
        if delta.finished or delta.delta_token_ids or delta.prompt_logprobs:
            self._hand_out(turn, delta)

    def _hand_out(self, turn: Turn, delta: RequestDelta) -> None:
        turn.num_generated_tokens += len(delta.delta_token_ids)
        if delta.finish_reason is not None:
            self.num_failed += delta.finish_reason == "error"
            self.counts.add(
                delta.metrics,
                delta.finish_reason,
                turn.num_prompt_tokens,
                turn.num_generated_tokens,
            )
            self._spans.add(turn, delta)
        (self._undelivered if turn.inbox is None else turn.inbox).append(delta)

    def _finish(self, seq_id: int, turn: Turn) -> None:
        self.end(seq_id)
        unfinished = self.requests.get(turn.request_id, [])
        if seq_id in unfinished:  # it is no stream
            unfinished.remove(seq_id)
            if not unfinished:
                del self.requests[turn.request_id]

    def _fan_out(self, seq_id: int, leader: Turn) -> None:
        """Let a sequence generate, and copies of it beside it, each with a seed of its own."""
        turns = {seq_id: leader}
        for index in range(1, leader.num_copies + 1):
            child_id = next(self._seq_ids)
            self._scheduler.fork(seq_id, child_id).is_stream = False
            turns[child_id] = replace(leader, index=index, seed=leader.seed + index)
            self.requests[leader.request_id].append(child_id)
        self._scheduler.sequences[seq_id].is_stream = False
        self._turns |= turns
        if leader.num_copies:  # which have one inbox
            self._begun |= turns
        for turn_id, turn in turns.items():
            self._generate(turn_id, turn)

    def _generate(
        self, seq_id: int, turn: Turn, num_generated: int = 0, generated: Sequence[int] = ()
    ) -> None:
        """Let a sequence that has tokens generate. The rest is as in `start`."""
        params = turn.params
        turn.eos_token_ids = () if params.ignore_eos else self._eos_token_ids
        turn.stop_token_ids = (*(params.stop_token_ids or ()), *turn.eos_token_ids)
        if params.structured_outputs is not None:
            assert self._structures is not None and len(generated) == num_generated
            turn.progress = self._structures.begin(params.structured_outputs)
            for token_id in generated:
                turn.progress.append(token_id)
            self._masks.turns[seq_id] = turn
        bad_words: tuple[tuple[int, ...], ...] = ()
        if self._tokenizer is not None:
            bad_words = bad_word_ids(self._tokenizer, params.bad_words or ())
            count = turn.num_context_tokens(num_generated)
            last_ids = self._scheduler.sequences[seq_id].last_token_ids(count)
            turn.begin_text(self._tokenizer, last_ids, num_generated)
        turn.generates = True
        self._scheduler.start_turn(
            seq_id,
            params,
            stop_token_ids=turn.stop_token_ids,
            bad_words=bad_words,
            seed=turn.seed,
            num_generated=num_generated,
        )
