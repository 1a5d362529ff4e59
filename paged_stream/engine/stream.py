"""A live stream: one endless sequence whose K and V stay between turns."""

from __future__ import annotations

import operator
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex

from paged_stream.engine.lifetime import finish_before_exit, refuse_pickling, when_abandoned
from paged_stream.engine.outputs import DeltaQueue, Inbox, RequestDelta, StreamStats
from paged_stream.engine.stream_file import SavedStream, write_stream_file
from paged_stream.scheduler.sampling_params import SamplingParams, whole_answer
from paged_stream.scheduler.sequence import SequenceStatus
from paged_stream.text.chat import Messages, without_repeated_end
from paged_stream.text.inputs import Prompt

if TYPE_CHECKING:
    from paged_stream.engine.llm_engine import LLMEngine

# Tokens that may be appended while the stream generates; they wait on the host.
MAX_QUEUED_TOKENS = 1 << 18

_MASK63 = (1 << 63) - 1
_TURN_STEP = 0x9E3779B97F4A7C15  # odd and irregular, so that turns get unlike seeds


def _as_position(name: str, value: SupportsIndex) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an int, got {value!r}") from None


@dataclass(frozen=True, slots=True)
class Addition:
    """What is to be appended, tokenized; ``continues`` says whether as what follows something."""

    token_ids: list[int]
    continues: bool


class Stream:
    """Made by `LLMEngine.open_stream`. Append to it and generate from it, in any order, for ever:
    only new tokens are computed, and memory stays the same.

    Positions count the stream's tokens from 0 and never decrease, but for `rewind`. Use it as a
    context manager, or call `close`. Afterwards every use raises ValueError, and once the engine is
    closed, `EngineStoppedError`.
    """

    def __init__(
        self,
        engine: LLMEngine,
        seq_id: int,
        *,
        seed: int,
        num_turns: int = 0,
        pinned_messages: Sequence[Mapping[str, Any]] = (),
        has_chatted: bool = False,
    ) -> None:
        self._engine = engine
        self.seq_id = seq_id
        self._seed = seed
        self._num_turns = num_turns
        self._pinned_messages = pinned_messages
        self.has_chatted = has_chatted
        self._closed = False
        self._errands = engine.core.errands
        self._finalizer = when_abandoned(
            self,
            f"stream {seq_id} of {engine.config.model!r}",
            engine.lifetime,
            partial(self._errands.add, (seq_id, None)),
        )

    @property
    def position(self) -> int:
        """Where the next token will stand."""
        return self._sequence.num_tokens

    @property
    def is_generating(self) -> bool:
        return self._sequence.generates

    # Turns

    def append(self, prompt: Prompt) -> None:
        """Add text or token ids of any length, at any time.

        They are computed by the steps that come, whoever causes them; while the stream is
        generating they queue behind the turn. More than `max_num_batched_tokens` of them are
        computed before the call returns, so that they do not pile up.

        Raises:
            ValueError: as `LLMEngine.add_request`, the stream is closed, more would queue behind
                its turn than `MAX_QUEUED_TOKENS`, or it would grow beyond the trained length of a
                model that cannot stream.
        """
        self._check_open()
        self.queue(prompt, self.encode(prompt))
        while self.is_behind:
            self._engine.advance()

    def encode(self, prompt: Prompt) -> Addition:
        """Tokenize what is to be appended next; any thread may.

        Raises:
            ValueError: as `LLMEngine.encode`, or the stream is closed.
        """
        self._check_open()
        continues = not self._is_empty
        return Addition(self._engine.encode(prompt, continues=continues), continues)

    def queue(self, prompt: Prompt, addition: Addition) -> None:
        """As `append`, with what `encode` has made of the prompt; computes nothing."""
        self._check_open()
        if addition.continues == self._is_empty:  # it was another when the prompt was encoded
            addition = self.encode(prompt)
        self._queue(addition.token_ids)

    def _queue(self, token_ids: list[int]) -> None:
        sequence, engine = self._sequence, self._engine
        if not self.has_room_for(len(token_ids)):
            raise ValueError(
                f"at most {MAX_QUEUED_TOKENS} tokens may queue while the stream is generating, "
                f"{len(sequence.queued)} do, got {len(token_ids)} more; let it finish first"
            )
        engine.prompts.check_length(sequence.num_tokens + len(sequence.queued) + len(token_ids))
        engine.scheduler.append(self.seq_id, token_ids)

    def has_room_for(self, num_tokens: int) -> bool:
        """Whether so many more tokens may be appended now."""
        sequence = self._sequence
        return not sequence.generates or len(sequence.queued) + num_tokens <= MAX_QUEUED_TOKENS

    @property
    def _is_empty(self) -> bool:
        """Whether there is nothing in the stream yet; a guess in any thread but the engine's."""
        sequence = self._engine.peek(self.seq_id)
        return sequence is not None and not sequence.num_tokens and not sequence.queued

    @property
    def is_behind(self) -> bool:
        """Whether more appended tokens wait to be computed than one step takes."""
        sequence = self._sequence
        limit = self._engine.config.max_num_batched_tokens
        return not sequence.generates and sequence.num_pending_tokens > limit

    def generate(self, params: SamplingParams | None = None) -> Iterator[RequestDelta]:
        """Generate until something stops it, yielding what each step adds.

        What was generated is part of the stream, the stop token included. Leaving the iterator
        early (``break``) ends the turn where it is; what was generated and not read stays in the
        stream. The turn starts with the first item asked for;
        the iterator ends early if the stream is closed, or `end_turn` called, meanwhile. Without a
        seed in ``params``, each turn has one of its own.

        Args:
            params: ``SamplingParams()`` by default, which generates 16 tokens at most.

        Raises:
            ValueError: the stream is closed, empty or generating already, or ``params`` are wrong.
        """
        self.check_can_generate(params)
        return self._generate(params)

    def _generate(self, params: SamplingParams | None) -> Iterator[RequestDelta]:
        inbox = DeltaQueue()
        self.start_turn(params, inbox)
        yield from self._read(inbox)

    def _read(self, inbox: DeltaQueue) -> Iterator[RequestDelta]:
        """Drive the engine until the turn that fills ``inbox`` ends."""
        try:
            finished = False
            while not finished and not self._closed:
                self._engine.lifetime.check()
                if not inbox:
                    if not self._engine.has_turn(self.seq_id, inbox):
                        break  # `end_turn` was called meanwhile
                    self._engine.advance()
                    continue
                delta = inbox.popleft()
                finished = delta.finished
                yield delta
        finally:
            if not finished:  # perhaps it is the garbage collector that ends this, at any moment
                self._errands.add((self.seq_id, inbox))

    def score(self, prompt: Prompt) -> list[float | None]:
        """Append text or token ids of any length and tell how likely each was where it stands.

        Returns:
            One natural logarithm per token; ``None`` for a token that nothing predicts: the first
            of a stream, and the first after a `rewind`.

        Raises:
            ValueError: as `append`, or the stream is generating.
        """
        self._settle()
        addition = self.encode(prompt)
        sequence = self._sequence
        predicts = sequence.num_computed_tokens < sequence.num_tokens
        scores: list[float | None] = [] if predicts else [None]
        self._queue(addition.token_ids)
        if len(addition.token_ids) > len(scores):
            inbox = DeltaQueue()
            self._engine.start_stream_scoring(self.seq_id, inbox)
            for delta in self._read(inbox):
                scores += [entry.logprob for entry in delta.prompt_logprobs or ()]
        return scores

    def start_turn(
        self, params: SamplingParams | None, inbox: Inbox, *, num_generated: int = 0
    ) -> None:
        """Let the stream generate by the steps that come, into ``inbox``.

        Args:
            num_generated: the last so many tokens of the stream are the beginning of this turn,
                which was interrupted. What they count for (penalties, limits, stop strings) they
                count for again; none of them is delivered again.

        Raises:
            ValueError: as `generate`.
        """
        params = SamplingParams() if params is None else params
        self.check_can_generate(params)
        seed = (self._seed + self._num_turns * _TURN_STEP) & _MASK63
        self._num_turns += 1
        if params.seed is not None:
            seed = params.seed
        self._engine.start_stream_turn(self.seq_id, params, seed, inbox, num_generated)

    def end_turn(self, inbox: Inbox | None = None) -> None:
        """Stop generating where it is; with an inbox, only if that is where the deltas go.

        Raises:
            ValueError: the stream is closed.
        """
        self._check_open()
        self._engine.end_stream_turn(self.seq_id, inbox)

    def turn_ender(self) -> Callable[[Inbox], None]:
        """What ends a turn of this stream as `end_turn` does, and does not keep the stream."""
        return partial(self._engine.end_stream_turn, self.seq_id)

    def chat(
        self, messages: str | Messages, params: SamplingParams | None = None
    ) -> Iterator[RequestDelta]:
        """Append the next messages of a conversation in the model's chat template, and generate
        the answer. What was said before is neither tokenized nor computed again.

        Args:
            messages: the new ones only: text is one message of the user.
            params: without any, the answer ends where the model ends its turn; one that never does
                goes on for ever with a window, and to the trained length without.

        Raises:
            ValueError: as `generate`, or the model has no chat template that can go on.
        """
        self._check_settled()
        params = whole_answer(params)
        self.queue_chat(messages, params, self.encode_chat(messages))
        return self.generate(params)

    def encode_chat(self, messages: str | Messages) -> Addition:
        """Tokenize the next messages of a conversation; any thread may.

        Raises:
            ValueError: the model has no chat template that can go on, or the stream is closed.
        """
        self._check_open()
        continues = self.has_chatted
        token_ids = self._engine.prompts.encode_chat(
            messages, self._pinned_messages, continues=continues
        )
        return Addition(token_ids, continues)

    def queue_chat(
        self, messages: str | Messages, params: SamplingParams, addition: Addition
    ) -> list[int]:
        """Append the messages that `chat` would answer with ``params``, as `encode_chat` has
        tokenized them; returns what was appended."""
        self._check_settled()
        self._check_params(params)
        if addition.continues != self.has_chatted:
            addition = self.encode_chat(messages)
        token_ids = addition.token_ids
        if addition.continues:
            token_ids = without_repeated_end(token_ids, *self._sequence.last_token_ids(1))
        self._queue(token_ids)
        self.has_chatted = True
        return token_ids

    # Editing, between turns

    def fork(self) -> Stream:
        """Open a stream that goes on from here on its own. Both share what is computed until one
        of them overwrites it.

        Raises:
            ValueError: the stream is closed or generating.
            RuntimeError: it is parked, and what runs leaves no room for it.
        """
        self._settle()
        seq_id, seed = self._engine.fork_stream(self.seq_id)
        return Stream(
            self._engine,
            seq_id,
            seed=seed,
            pinned_messages=self._pinned_messages,
            has_chatted=self.has_chatted,
        )

    def cut(self, start: int, end: int) -> None:
        """Remove the tokens at positions ``[start, end)``, which must be in the window still.

        Older tokens of the window move up to close the gap, so the position stays. K and V of
        later tokens stay as they are: they have read what is removed.

        Raises:
            ValueError: a span that is not in the window, or the stream is closed or generating.
            RuntimeError: as `fork`.
        """
        start, end = _as_position("start", start), _as_position("end", end)
        self._settle()
        if self._engine.sink_window.window_size is None:
            raise ValueError("a model with learned absolute positions cannot close a gap")
        first, stop = self._sequence.first_kept, self._sequence.num_computed_tokens
        if not first <= start < end <= stop:
            raise ValueError(
                f"start and end must be a span within [{first}, {stop}), where the window's "
                f"computed tokens are, got [{start}, {end})"
            )
        self._engine.cut_stream(self.seq_id, start, end)

    def rewind(self, position: int) -> None:
        """Go back to ``position``, which must be in the window still: later tokens are forgotten.

        What was evicted does not come back: until the window is full again, it is shorter. To
        generate without appending, the last token that is left is read once more.

        Raises:
            ValueError: a position that is out of the window, or the stream is closed or
                generating.
            RuntimeError: as `fork`.
        """
        position = _as_position("position", position)
        self._settle()
        sequence = self._sequence
        first = max(sequence.first_kept, sequence.sink_window.num_sink_tokens)
        if not first <= position <= sequence.num_tokens:
            raise ValueError(
                f"position must be at least {first}, where the window begins behind the sinks, "
                f"and at most {sequence.num_tokens}, got {position}"
            )
        self._engine.rewind_stream(self.seq_id, position)
        pinned = sequence.sink_window.num_sink_tokens if self._pinned_messages else 0
        if position == pinned:  # the conversation begins anew
            self.has_chatted = False

    # Away and back

    def park(self) -> None:
        """Move the stream out of the cache until its next turn.

        Raises:
            ValueError: the stream is closed or generating.
        """
        self._settle()
        self._engine.scheduler.park(self.seq_id)
        self._engine.core.flush()

    def save(self, path: str | Path) -> None:
        """Write the stream to a file, from which `LLMEngine.load_stream` makes one like it.

        Raises:
            ValueError: the stream is closed or generating.
            OSError: the file cannot be written; one that was there before is unharmed.
        """
        write_stream_file(Path(path).expanduser(), self.snapshot())

    @finish_before_exit
    def snapshot(self, *, settle: bool = True) -> SavedStream:
        """Copy all that the stream is.

        Args:
            settle: compute first what was appended. Otherwise the stream may be anywhere, also in
                a turn, and what queues behind the turn is left out.

        Raises:
            ValueError: the stream is closed, or has to settle and is generating.
        """
        if settle:
            self._settle()
        engine, sequence = self._engine, self._sequence
        engine.core.flush()
        state = sequence.state()
        if sequence.is_parked:  # perhaps with a last token that waits to be read once more
            tokens = engine.executor.read_parked(self.seq_id).first(state.num_kept)
        else:
            computed = sequence.num_computed_tokens > 0
            slots = engine.scheduler.kept_slots(self.seq_id) if computed else array("q")
            tokens = engine.executor.read(slots)
        return SavedStream(
            state=state,
            seed=self._seed,
            num_turns=self._num_turns,
            pinned_messages=[dict(message) for message in self._pinned_messages],
            has_chatted=self.has_chatted,
            fingerprint=engine.executor.fingerprint,
            tokens=tokens,
        )

    def stats(self) -> StreamStats:
        """Tokens seen, visible and evicted; what the stream holds and where."""
        self._check_open()
        return self._engine.stream_stats(self.seq_id)

    def close(self) -> None:
        """Free the stream's blocks. Closing twice is harmless, and so is closing it after the
        engine, or in a forked child, where it holds none."""
        self._finalizer.detach()
        if not self._closed:
            self._closed = True
            if not self._engine.lifetime.is_over:
                self._engine.close_stream(self.seq_id)

    def __enter__(self) -> Stream:
        self._check_open()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Stream {self.summary}>"

    @property
    def summary(self) -> str:
        """The model, the position and the state, in words, at any time and in any thread."""
        if not hasattr(self, "_finalizer"):
            return "that was not made"
        name = f"{self.seq_id} of {self._engine.config.model!r}"
        sequence = self._engine.peek(self.seq_id)
        if sequence is None or not self._engine.lifetime.is_here:
            return f"{name}: {'closed' if sequence is None else self._engine.lifetime.state}"
        computed = sequence.num_computed_tokens
        visible = sequence.sink_window.num_visible(computed - 1) if computed else 0
        state = "generating" if sequence.generates else "parked" if sequence.is_parked else "idle"
        return f"{name}: position {sequence.num_tokens}, {visible} tokens visible, {state}"

    def __reduce__(self) -> NoReturn:
        refuse_pickling("a stream", "use save and load_stream, or fork")

    @property
    def _sequence(self) -> Any:
        self._check_open()
        return self._engine.core.scheduler.sequences[self.seq_id]

    @property
    def is_settled(self) -> bool:
        """Whether all that was appended is computed, but for the last token."""
        return self._sequence.status is SequenceStatus.IDLE

    def _settle(self) -> None:
        """Compute what was appended, so that the stream is at rest."""
        self._check_settled()
        while not self.is_settled:
            self._engine.advance()

    def _check_settled(self) -> None:
        if self._sequence.generates:
            raise ValueError("the stream is generating; let it finish first")

    def check_can_generate(self, params: SamplingParams | None) -> None:
        """Raise what `generate` would."""
        self._check_params(SamplingParams() if params is None else params)
        sequence = self._sequence
        if sequence.generates:
            raise ValueError("the stream is generating already")
        if not sequence.num_tokens:
            raise ValueError("the stream is empty; append to it before generating")
        if not sequence.has_next:
            raise ValueError(
                "the stream was rewound to where its window begins; append to it before generating"
            )
        self._engine.prompts.check_length(sequence.num_tokens)

    def _check_params(self, params: SamplingParams) -> None:
        self._engine.check_params(params)
        if params.n != 1:
            raise ValueError(f"n must be 1 for a stream, got {params.n}; fork it")

    def _check_open(self) -> None:
        self._engine.lifetime.check()
        if self._closed:
            raise ValueError("the stream is closed")
