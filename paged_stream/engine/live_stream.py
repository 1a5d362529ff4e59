"""A live stream inside its engine: what may be done to it, and when. Nothing here computes a step
or waits for one: `Stream` drives the engine, `AsyncStream` waits for the engine's thread.

All methods are for the engine's thread, but for those that say otherwise.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import SupportsIndex

from paged_stream.engine import stream_rules
from paged_stream.engine.api import OnEvict
from paged_stream.engine.core import EngineCore
from paged_stream.engine.lifetime import finish_before_exit, when_abandoned
from paged_stream.engine.outputs import Inbox, StreamStats, VisibleRun, VisibleText
from paged_stream.engine.stats import stream_stats
from paged_stream.engine.stream_file import SavedStream
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.scheduler.sequence import Sequence as TokenSequence
from paged_stream.scheduler.sequence import SequenceStatus
from paged_stream.text.chat import Messages
from paged_stream.text.chat_options import StreamChatOptions
from paged_stream.text.conversation import Conversation
from paged_stream.text.held_text import Heard
from paged_stream.text.inputs import Prompt
from paged_stream.text.next_messages import NextMessages
from paged_stream.text.prompts import PromptEncoder


@dataclass(frozen=True, slots=True)
class Appended:
    """What was appended at ``[start, end)``, when ``num_computed`` tokens were computed. What waits
    behind a turn is at no position yet."""

    start: int
    end: int
    num_computed: int


@dataclass(frozen=True, slots=True)
class Addition:
    """What is to be appended, tokenized; ``continues`` says whether as what follows something."""

    token_ids: list[int]
    continues: bool


@dataclass(frozen=True, slots=True)
class ChatAdded:
    """What became of new messages: what was appended, whether the template rewrites earlier
    messages, and whether these were cut out."""

    token_ids: list[int]
    template_rewrote: bool
    has_cut: bool


class LiveStream:
    """One stream of an engine.

    Attributes:
        prompts: checks parameters, and may do so in any thread.
        conversation: what it remembers of the messages in it.

    Args:
        seq_id: its number in the core.
        seed: from which its turns draw theirs; ``num_turns`` have done so.
    """

    def __init__(
        self,
        core: EngineCore,
        prompts: PromptEncoder,
        seq_id: int,
        *,
        seed: int,
        num_turns: int = 0,
        conversation: Conversation,
    ) -> None:
        self.core = core
        self.seq_id = seq_id
        self.conversation = conversation
        self.is_closed = False
        self.prompts = prompts
        self._seed = seed
        self._num_turns = num_turns
        self._abandoned = core.errands.when_gone(self, lambda core: core.close_stream(seq_id))
        self._warning = when_abandoned(self, f"stream {seq_id} of {core.model!r}", core.lifetime)

    # For any thread

    def check_open(self) -> None:
        """Refuse to be used after the end.

        Raises:
            EngineStoppedError: the engine is closed.
            ValueError: the stream is.
            StreamLostError: it was parked, and does not come back.
        """
        self.core.lifetime.check()
        if self.is_closed:
            raise stream_rules.closed_error()
        if self.seq_id in self.core.lost:
            raise self.core.lost_error(self.seq_id)

    @property
    def _sequence(self) -> TokenSequence:
        self.check_open()
        if (sequence := self.core.peek(self.seq_id)) is None:  # another thread was faster
            self.check_open()
            raise stream_rules.closed_error()
        return sequence

    @property
    def position(self) -> int:
        return self._sequence.num_tokens

    @property
    def is_generating(self) -> bool:
        return self._sequence.generates

    @property
    def summary(self) -> str:
        """The model, the position and the state, in words, at any time."""
        name, lifetime = f"{self.seq_id} of {self.core.model!r}", self.core.lifetime
        sequence = self.core.peek(self.seq_id)
        if sequence is None or not lifetime.is_here:
            gone = "lost" if self.seq_id in self.core.lost else "closed"
            return f"{name}: {gone if sequence is None else lifetime.state}"
        computed = sequence.num_computed_tokens
        visible = sequence.sink_window.num_visible(computed - 1) if computed else 0
        state = "generating" if sequence.generates else "parked" if sequence.is_parked else "idle"
        return f"{name}: position {sequence.num_tokens}, {visible} tokens visible, {state}"

    @finish_before_exit
    def encode(self, prompt: Prompt) -> Addition:
        """Tokenize what is to be appended next.

        Raises:
            ValueError: as `PromptEncoder.encode`, or the stream is closed.
        """
        continues = not self._is_empty
        return Addition(self.prompts.encode(prompt, continues=continues), continues)

    @finish_before_exit
    def encode_chat(
        self, messages: str | Messages, heard: Heard, options: StreamChatOptions
    ) -> NextMessages:
        """Tokenize the next messages of what `hear` has told.

        Raises:
            ValueError: as `StreamApi.chat`.
        """
        return self.prompts.encode_chat(messages, heard, options)

    @property
    def _is_empty(self) -> bool:
        """Whether there is nothing in the stream yet; a guess in any thread but the engine's."""
        sequence = self._sequence
        return not sequence.num_tokens and not sequence.queued

    # States

    @property
    def has_turn(self) -> bool:
        """Whether it generates or scores."""
        self.check_open()
        return self.core.turns.has(self.seq_id)

    @property
    def is_behind(self) -> bool:
        """Whether more appended tokens wait to be computed than one step takes."""
        sequence = self._sequence
        limit = self.core.scheduler.config.max_num_batched_tokens
        return not sequence.generates and sequence.num_pending_tokens > limit

    def is_ready(self) -> bool:
        """Whether what needs a stream at rest would return, or raise, without computing."""
        return self.has_turn or self.is_settled

    def is_ready_for_chat(self, options: StreamChatOptions) -> bool:
        """Whether the same holds for messages. To cut out others, all must be computed."""
        return options.on_rewrite != "cut" or self.is_ready()

    @property
    def is_settled(self) -> bool:
        """Whether all that was appended is computed, but for the last token."""
        return self._sequence.status is SequenceStatus.IDLE

    def has_room_for(self, num_tokens: int) -> bool:
        """Whether so many more tokens may be appended now."""
        sequence = self._sequence
        if not sequence.generates:
            return not self.has_turn  # it scores what was appended last
        return len(sequence.queued) + num_tokens <= stream_rules.MAX_QUEUED_TOKENS

    def check_at_rest(self) -> None:
        """Refuse what cannot be done during a turn."""
        if self.has_turn:
            raise stream_rules.generating_error()

    # Turns

    def queue(
        self, prompt: Prompt, addition: Addition, params: SamplingParams | None = None
    ) -> Appended:
        """Append what `encode` has made of the prompt, behind the turn if there is one.

        Args:
            params: of the turn that is to follow, which may truncate the prompt.

        Raises:
            ValueError: as `StreamApi.append`.
        """
        self.check_open()
        if addition.continues == self._is_empty:  # it was another when the prompt was encoded
            addition = self.encode(prompt)
        token_ids = addition.token_ids
        sequence = self._sequence
        start, computed = sequence.num_tokens, sequence.num_computed_tokens
        self._queue(token_ids if params is None else self.prompts.truncate(token_ids, params))
        return Appended(start, sequence.num_tokens, computed)

    def _queue(self, token_ids: list[int]) -> None:
        sequence = self._sequence
        if sequence.generates:
            stream_rules.check_queue(len(sequence.queued), len(token_ids))
        self.prompts.check_length(sequence.num_tokens + len(sequence.queued) + len(token_ids))
        self.core.scheduler.append(self.seq_id, token_ids)

    def withdraw(self, appended: Appended, error: BaseException | None) -> None:
        """Take back what `queue` has appended, as far as it is not computed, unless something came
        after it. The error that is the reason, if any, is told where the stream ends."""
        with suppress(RuntimeError, ValueError):  # the engine is closed, or the stream
            self.check_open()
            if appended.start < appended.end:
                self.core.withdraw(self.seq_id, appended.start, appended.end, appended.num_computed)
            if error is not None:
                stream_rules.note_position(error, self._sequence.num_tokens)

    def hear(self) -> Heard:
        """What the stream holds of its conversation."""
        self.check_open()
        sequence = self._sequence
        first = sequence.first_unbroken(sequence.num_computed_tokens)
        conversation = self.conversation.seen_from(first)
        starts = [each.start for each in conversation.exchanges]
        bounds = pairwise([*starts, sequence.num_tokens])
        parts = [
            (
                sequence.kept_ids(each.start, each.end).tolist(),
                sequence.kept_ids(max(each.end, first), stop).tolist(),
            )
            for each, (_, stop) in zip(conversation.exchanges, bounds, strict=True)
        ]
        sinks = sequence.sink_window.num_sink_tokens
        first = max(sinks, sequence.first_kept)
        return Heard(conversation, sequence.num_tokens, sinks, first, parts)

    def queue_chat(
        self,
        messages: str | Messages,
        params: SamplingParams,
        addition: NextMessages,
        options: StreamChatOptions,
    ) -> ChatAdded:
        """Append the messages that a turn with ``params`` is to answer, as `encode_chat` has
        tokenized them, after what they replace is cut out. The stream is settled if ``options``
        may cut it.

        Raises:
            ValueError: as `StreamApi.chat`.
        """
        self.check_open()
        self.check_at_rest()
        self.check_params(params)
        if addition.heard != (heard := self.hear()):
            addition = self.encode_chat(messages, heard, options)
        new_ids = self.prompts.truncate(addition.new_ids, params)
        token_ids = [*addition.rewritten_ids, *new_ids]
        sequence = self._sequence
        self.prompts.check_length(sequence.num_tokens + len(token_ids))
        if addition.cut_from is not None:
            self._cut_end(addition.cut_from)
        position = sequence.num_tokens
        self._queue(token_ids)
        conversation = addition.conversation(position, len(new_ids))
        self.conversation = conversation.seen_from(sequence.first_unbroken(sequence.num_tokens))
        has_cut = addition.cut_from is not None
        return ChatAdded(token_ids, addition.template_rewrote, has_cut)

    def _cut_end(self, start: int) -> None:
        """Cut out all from a position on; older tokens of the window move up."""
        assert self.is_settled, "what is not computed cannot be cut out"
        sequence = self._sequence
        if sequence.sink_window.window_size is None:
            raise stream_rules.no_cut_error()
        end = max(start, sequence.num_computed_tokens)
        if end < sequence.num_tokens:
            self.core.rewind_stream(self.seq_id, end)
        if start < end:
            self.core.cut_stream(self.seq_id, start, end)

    def check_can_generate(self, params: SamplingParams, *, appends: bool = False) -> None:
        """Raise what `start_turn` would; with ``appends``, after something was appended."""
        self.check_at_rest()
        self.check_params(params)
        sequence = self._sequence
        if not appends:
            stream_rules.check_can_generate(sequence.num_tokens, has_next=sequence.has_next)
        self.prompts.check_length(sequence.num_tokens)

    def start_turn(
        self,
        params: SamplingParams,
        inbox: Inbox,
        *,
        num_generated: int = 0,
        generated: Sequence[int] = (),
        template_rewrote: bool = False,
    ) -> None:
        """Let the stream generate by the steps that come, into ``inbox``.

        Args:
            num_generated: the last so many tokens of the stream are the beginning of this turn,
                which was interrupted. What they count for (penalties, limits, stop strings) they
                count for again; none of them is delivered again.
            generated: if ``params`` have a structure, these tokens. The stream may have forgotten
                the first of them.
            template_rewrote: as in `RequestDelta`.

        Raises:
            ValueError: as `StreamApi.generate`.
        """
        self.check_open()
        self.check_can_generate(params)
        seed = stream_rules.turn_seed(self._seed, self._num_turns)
        self._num_turns += 1
        if params.seed is not None:
            seed = params.seed
        self.core.turns.start(
            self.seq_id,
            params,
            seed,
            inbox,
            num_generated,
            generated,
            template_rewrote=template_rewrote,
        )

    def start_completion(
        self, prompt: Prompt, params: SamplingParams, addition: Addition, inbox: Inbox
    ) -> None:
        """Append what `encode` has made of a prompt, and generate; neither, if either is refused.

        Raises:
            ValueError: as `StreamApi.complete`.
        """
        self.check_open()
        self.check_can_generate(params, appends=True)
        self.queue(prompt, addition, params)
        self.start_turn(params, inbox)

    def start_chat(
        self,
        messages: str | Messages,
        params: SamplingParams,
        options: StreamChatOptions,
        addition: NextMessages,
        inbox: Inbox,
    ) -> None:
        """Append what `encode_chat` has made of messages, and answer; neither, if either is
        refused.

        Raises:
            ValueError: as `StreamApi.chat`.
        """
        self.check_open()
        self.check_can_generate(params, appends=True)
        added = self.queue_chat(messages, params, addition, options)
        self.start_turn(params, inbox, template_rewrote=added.template_rewrote)

    def start_scoring(self, prompt: Prompt, addition: Addition, inbox: Inbox) -> list[None]:
        """Append what `encode` has made of a prompt, and let log-probabilities of it come into
        ``inbox``. The stream is settled.

        Returns:
            What comes before these: ``None`` for a first token that nothing predicts. If that is
            all there is, no turn has begun.

        Raises:
            ValueError: as `StreamApi.score`.
        """
        self.check_open()
        self.check_at_rest()
        assert self.is_settled, "what was appended before would be scored as well"
        sequence = self._sequence
        predicts = sequence.num_computed_tokens < sequence.num_tokens
        before = sequence.num_tokens
        self.queue(prompt, addition)
        count, unpredicted = sequence.num_tokens - before, [] if predicts else [None]
        if count > len(unpredicted):
            self.core.turns.start_scoring(self.seq_id, inbox)
        return unpredicted

    def end_turn(self, inbox: Inbox | None = None) -> None:
        """Stop the turn where it is; with an inbox, only if the turn fills it."""
        self.check_open()
        self.core.end_turn(self.seq_id, inbox)

    def turn_ender(self) -> Callable[[Inbox], None]:
        """What ends the turn that fills an inbox, and does not keep the stream."""
        core, seq_id = self.core, self.seq_id
        return lambda inbox: core.end_turn(seq_id, inbox)

    # Editing, between turns

    def fork(self, on_evict: OnEvict | None = None) -> LiveStream:
        """As `StreamApi.fork`, of a stream that is settled."""
        self.check_open()
        self.check_at_rest()
        seq_id = self.core.fork_stream(self.seq_id, on_evict)
        return LiveStream(
            self.core,
            self.prompts,
            seq_id,
            seed=self.core.new_seed(),
            conversation=self.conversation,
        )

    def cut(self, start: int, end: int) -> None:
        """As `StreamApi.cut`, of a stream that is settled."""
        start, end = _as_position("start", start), _as_position("end", end)
        self.check_open()
        self.check_at_rest()
        sequence = self._sequence
        if sequence.sink_window.window_size is None:
            raise stream_rules.no_cut_error()
        first, stop = sequence.first_kept, sequence.num_computed_tokens
        if not first <= start < end <= stop:
            raise ValueError(
                f"start and end must be a span within [{first}, {stop}), where the window's "
                f"computed tokens are, got [{start}, {end})"
            )
        self.core.cut_stream(self.seq_id, start, end)
        self.conversation = self.conversation.cut(start, end)

    def reread(self) -> None:
        """As `Scheduler.reread`: go on as a turn went on, with tokens that are appended."""
        self.core.scheduler.reread(self.seq_id)

    def rewinds_now(self, position: object) -> bool:
        """Whether `rewind` means now what it would mean once all is computed that was appended, or
        would raise.

        A position before what is pending does. So does one that the pending tokens would push out
        of the window: it can only be reached now. Of what is between these, all that is kept has to
        be computed.
        """
        sequence = self._sequence
        first = max(sequence.num_computed_tokens + 1, sequence.first_settled)
        between = range(first, sequence.num_tokens + 1)
        return self.has_turn or self.is_settled or position not in between

    def rewind(self, position: int) -> None:
        """As `StreamApi.rewind`, once `rewinds_now`."""
        position = _as_position("position", position)
        self.check_open()
        self.check_at_rest()
        sequence = self._sequence
        first = max(sequence.first_kept, sequence.sink_window.num_sink_tokens)
        if not first <= position <= sequence.num_tokens:
            raise ValueError(
                f"position must be at least {first}, where the window begins behind the sinks, "
                f"and at most {sequence.num_tokens}, got {position}"
            )
        self.core.rewind_stream(self.seq_id, position)
        self.conversation = self.conversation.rewound(position)

    # Away and back

    def park(self) -> None:
        """As `StreamApi.park`, of a stream that is settled."""
        self.check_open()
        self.check_at_rest()
        self.core.park_stream(self.seq_id)

    def snapshot(self, *, in_turn: bool = False) -> SavedStream:
        """Copy all that the stream is.

        Args:
            in_turn: copy it wherever it is, also in a turn; what queues behind the turn is left
                out.

        Raises:
            ValueError: the stream is closed, or is in a turn and must not be.
        """
        self.check_open()
        if not in_turn:
            self.check_at_rest()
        state, tokens = self.core.copy_stream(self.seq_id)
        return SavedStream(
            state=state,
            seed=self._seed,
            num_turns=self._num_turns,
            conversation=self.conversation,
            fingerprint=self.core.executor.fingerprint,
            tokens=tokens,
            adapter=self.core.scheduler.sequences[self.seq_id].adapter,
        )

    def stats(self) -> StreamStats:
        """As `StreamApi.stats`."""
        self.check_open()
        return stream_stats(self.core, self.seq_id)

    def visible_runs(self) -> VisibleText:
        """As `StreamApi.visible`, but without text."""
        self.check_open()
        sequence = self._sequence
        runs = [
            VisibleRun(start=start, token_ids=ids.tolist(), text=None, missing=missing)
            for start, ids, missing in sequence.visible_runs()
        ]
        sinks = min(sequence.sink_window.num_sink_tokens, sequence.num_tokens)
        return VisibleText(num_sink_tokens=sinks, runs=runs)

    @finish_before_exit
    def with_text(self, visible: VisibleText) -> VisibleText:
        """Add the text of each run; in any thread."""
        decode = self.prompts.decode
        runs = [
            replace(run, text=decode(run.token_ids, continues=run.start > 0))
            for run in visible.runs
        ]
        return replace(visible, runs=runs)

    def close(self) -> None:
        """As `StreamApi.close`."""
        self._warning.detach()
        self.core.errands.forget(self._abandoned)
        if not self.is_closed:
            self.is_closed = True
            if not self.core.lifetime.is_over:
                self.core.close_stream(self.seq_id)

    def check_params(self, params: SamplingParams) -> None:
        """Refuse parameters of a turn; in any thread. It may take long, as
        `PromptEncoder.check_params`.

        Raises:
            ValueError: names the field, or the stream is closed.
        """
        self.check_open()
        stream_rules.check_turn_params(params)
        self.prompts.check_params(params)


def _as_position(name: str, value: SupportsIndex) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an int, got {value!r}") from None
