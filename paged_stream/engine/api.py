"""The contract of engines and streams: what users may call, and what it means, wherever it runs.

`LLM`, `LLMEngine` and `RayLLM` are an `EngineApi`, their streams a `StreamApi`; `AsyncLLMEngine`
and `AsyncRayLLM` are an `AsyncEngineApi`, their streams an `AsyncStreamApi`. An implementation adds
nothing to a method described here and leaves nothing out. The same holds for all four:

- **Wrong use changes nothing.** A value that is not allowed raises ValueError, which names the
  argument, its value and what is allowed; the object is as it was before the call.
- **After close**, every use of an engine and of its streams raises `EngineStoppedError`; every use
  of a closed stream raises ``ValueError: the stream is closed``. Two things work at any time:
  ``repr`` and ``close``, which is harmless the second time.
- **In a forked child**, every use raises RuntimeError, and ``close`` does nothing.
- **A failed engine** raises RuntimeError in whoever uses it or waits for it; in asynchronous
  engines this is an `EngineStoppedError`. A pool replaces a worker that fails and raises
  `PoolError`, which is a RuntimeError, for work that no worker can do.
- **A lost stream** raises `StreamLostError` in whoever uses it or waits for it, until it is closed:
  it was parked, and what was parked is gone or was altered. Everything else goes on. A request to
  which this happens ends with the ``finish_reason`` ``"error"``. A pool restores the stream from
  what it knows of it.
- **Logits that are not finite**, and parameters that leave no token to sample, end their request or
  turn with the ``finish_reason`` ``"error"``, and ``error`` says why. Scoring and embedding raise
  ValueError.
  Everything else goes on; of a stream only the turn is over.
- **Nothing is pickled or copied**: that raises TypeError.
- **A generator of deltas begins with its first item**: nothing is appended or queued before. It
  raises what is wrong at the latest with that item. Closing it ends its request or turn.

Token ids are ints in ``[0, vocab_size)``, positions and counts are numbers of tokens, and
log-probabilities are natural logarithms.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from typing import TYPE_CHECKING, Protocol, Self, TypeAlias, Unpack, overload

from paged_stream.engine.lora_request import LoRARequest
from paged_stream.engine.outputs import (
    EmbeddingRequestOutput,
    EngineStats,
    RequestDelta,
    RequestOutput,
    StreamStats,
    VisibleText,
)
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.text.chat import Messages
from paged_stream.text.chat_options import ChatSettings, StreamChatSettings, WritingSettings
from paged_stream.text.inputs import Prompt, Prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "AsyncDeltas",
    "AsyncEngineApi",
    "AsyncStreamApi",
    "Deltas",
    "EngineApi",
    "OnEvict",
    "FilePath",
    "Scores",
    "StreamApi",
]

Deltas: TypeAlias = Generator[RequestDelta, None, None]
"""What a turn adds, step by step. ``close()``, or leaving a ``with contextlib.closing(...)`` block,
ends the turn where it is. So does a ``break``, once Python collects the generator."""

AsyncDeltas: TypeAlias = AsyncGenerator[RequestDelta, None]
"""As `Deltas`, for ``async for``. ``await aclose()``, leaving an ``async with
contextlib.aclosing(...)`` block, or cancelling the task that reads it, ends the request or turn."""

OnEvict: TypeAlias = Callable[[int, int], object]
"""Called with the first position that left a stream's window and the one behind the last. Calls
come in the order of the positions, and every position is told once. The engine makes them between
two steps, in the engine's own thread or, in a pool, in the pool's. There, using the engine or its
streams raises RuntimeError, except `abort`. What the function raises is logged."""

Scores: TypeAlias = list[float | None]
"""One log-probability per token; ``None`` for a token that nothing predicts."""

FilePath: TypeAlias = str | os.PathLike[str]
"""Where a file is; ``~`` is the user's home."""


class StreamApi(Protocol):
    """One endless sequence of tokens whose K and V stay between turns.

    Append to it and generate from it, in any order, for ever: only new tokens are computed, and
    memory stays the same. A turn is one call of `generate`, `complete`, `chat` or `score`, and a
    stream has at most one at a time. While it runs, `append`, `end_turn`, `stats`, `visible`,
    `position`, `is_generating` and `close` may be used; everything else raises ``ValueError: the
    stream is generating``. Use the stream as a context manager, or call `close`.

    The first text of a stream is the beginning of a document: the tokenizer puts its BOS token and
    its dummy space before it, if it has these. Every later text, by whichever method, goes on where
    the stream is, with nothing put between. So the tokens of several texts decode to these texts
    joined. No text gets an EOS token. The page "Text in streams" says more.

    Any number of threads may use a stream. A call that is interrupted, by Ctrl-C for example, was
    done as a whole or not at all, but that it may end a turn, and that what it has appended may
    still have to be computed.
    """

    @property
    def position(self) -> int:
        """Where the next token will stand: how many tokens the stream has had.

        Counts what was appended and read. Tokens that were generated and not read yet may be in it;
        tokens that queue behind a turn are not. It never decreases, but for `rewind`.
        """
        ...

    @property
    def is_generating(self) -> bool:
        """Whether a turn that generates has begun and not ended."""
        ...

    def append(self, prompt: Prompt) -> None:
        """Add text or token ids of any length, at any time.

        Text begins a document in an empty stream and goes on in any other, as `StreamApi` says.
        While the stream generates, the tokens queue behind the turn. Otherwise the call returns
        once no more of them than ``max_num_batched_tokens`` are left to compute; the next turn
        computes these. If it is interrupted before, it takes back what is not computed, unless
        something was appended behind, and a note on the exception says where the stream is: the
        stream is as if only so much had been appended.

        Args:
            prompt: text, or token ids in a list, an array or a tensor of one dimension, also in the
                dicts that `EngineApi.generate` takes; not empty.

        Raises:
            ValueError: the prompt is empty or not one of these, an id is out of range, more than
                262,144 tokens would queue behind the turn, or the stream would grow beyond the
                trained length of a model that cannot have a window.
        """
        ...

    def generate(self, sampling_params: SamplingParams | None = None) -> Deltas:
        """Generate until something stops it, yielding what each step adds.

        The tokens become part of the stream, the stop token included. The last delta has
        ``finished`` and a ``finish_reason``, ``"stop"`` or ``"length"``. The generator ends without
        such a delta if the stream is closed or `end_turn` is called meanwhile. Closing the
        generator ends the turn where it is; what was generated and not read stays in the stream.

        Args:
            sampling_params: by default ``SamplingParams()``, which generates 16 tokens at most.
                ``n`` must be 1. Without a ``seed``, each turn draws from one of its own.

        Raises:
            ValueError: the parameters are wrong; the stream is empty, is generating, or was rewound
                to where its window begins; or, without a window, it has reached the trained length.
        """
        ...

    def complete(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Deltas:
        """Append a prompt and generate what follows it; neither, if either is refused.

        Args:
            prompt: as in `append`.
            sampling_params: as in `generate`.

        Raises:
            ValueError: as `append` and `generate`.
        """
        ...

    def chat(
        self,
        messages: str | Messages,
        sampling_params: SamplingParams | None = None,
        **options: Unpack[StreamChatSettings],
    ) -> Deltas:
        """Append the next messages of a conversation and generate the answer; neither, if either is
        refused.

        The messages are written in the model's chat template, behind those that are still in the
        window; what has left the window is forgotten. The answer to earlier messages is all that
        came since: by `chat`, `generate`, `append` and the others. Only what is new is tokenized
        and computed.

        Many templates look back: they leave out what the model thought before earlier answers, for
        example. If the template writes earlier messages otherwise than they are in the stream, the
        deltas have ``template_rewrote``, and ``on_rewrite`` says what becomes of them:

        - ``"keep"``: they stay as they are, and so do their K and V.
        - ``"cut"``: all from the first difference on is cut out, or from a special token or the end
          of an answer before it, and what the template writes there is appended anew. As in `cut`,
          older tokens of the window move up and `position` does not decrease. Tokens that left the
          window before do not come back. Sink tokens cannot be cut.
        - ``"error"``: ValueError.

        Args:
            messages: only the new ones; text is one message of the user.
            sampling_params: as in `generate`. By default the answer ends where the model ends its
                turn; a model that never does goes on for ever with a window, and up to the trained
                length without.
            options: as in `StreamChatOptions`, for the conversation as it is written now. What is
                left out is as the stream was opened with it.

        Raises:
            ValueError: as `generate`, or an option is wrong, or there is no chat template that can
                go on turn by turn; or the template rewrites earlier messages and ``on_rewrite`` is
                ``"error"``, or is ``"cut"`` and they are among the sink tokens.
            RuntimeError: with ``"cut"``, as `fork`.
        """
        ...

    def score(self, prompt: Prompt) -> list[float | None]:
        """Append a prompt and tell how likely each of its tokens was where it stands.

        Args:
            prompt: as in `append`.

        Returns:
            One log-probability per token of the prompt. ``None`` for a token that nothing predicts:
            the first of a stream, and the first after a `rewind`.

        Raises:
            ValueError: as `append`, or the stream is generating.
        """
        ...

    def end_turn(self) -> None:
        """Stop generating where it is, if the stream is generating.

        The turn's generator still gives what was generated before, and then ends without a
        ``finished`` delta. What was queued behind the turn is appended.
        """
        ...

    def fork(self, *, on_evict: OnEvict | None = None) -> Self:
        """Open another stream that goes on from here on its own.

        Both share their K and V until one of them overwrites it. The new stream has a seed of its
        own.

        Args:
            on_evict: as in `EngineApi.open_stream`, for the new stream; this stream's own is not
                inherited.

        Raises:
            ValueError: the stream is generating.
            RuntimeError: the stream is parked, and what runs leaves no room to bring it back.
        """
        ...

    def cut(self, start: int, end: int) -> None:
        """Remove the tokens at positions ``[start, end)``, all of which are still in the window.

        Older tokens of the window move up to close the gap, so `position` stays. K and V of later
        tokens stay as they are: these tokens have read what is removed.

        Raises:
            ValueError: the span is empty or not within the window, the stream is generating, or the
                model has learned absolute positions.
            RuntimeError: as `fork`.
        """
        ...

    def rewind(self, position: int) -> None:
        """Go back to a position that is still in the window: later tokens are forgotten.

        What was evicted does not come back, so the window is shorter until it is full again. To
        generate without appending first, the last remaining token is read once more. Tokens that
        are not computed yet are forgotten at no cost. What they will push out of the window can
        still be gone back to before they do.

        Args:
            position: the new `position`, no less than where the window begins behind the sinks.

        Raises:
            ValueError: the position is out of the window or beyond the end, or the stream is
                generating.
            RuntimeError: as `fork`.
        """
        ...

    def park(self) -> None:
        """Move the stream out of the cache, to host memory or to disk, until it is used again.

        Raises:
            ValueError: the stream is generating.
        """
        ...

    def save(self, path: FilePath) -> None:
        """Write the stream to a file, from which `EngineApi.load_stream` makes a stream like it.

        The file appears whole or not at all. A pool's path must mean the same on each machine of
        the cluster.

        Raises:
            ValueError: the stream is generating.
            OSError: the file cannot be written; a file that was there before is unharmed.
        """
        ...

    def save_bytes(self) -> bytes:
        """Return the content of a file that `save` would write.

        Raises:
            ValueError: the stream is generating.
        """
        ...

    def stats(self) -> StreamStats:
        """Describe the stream: tokens seen, visible and evicted; what it holds, and where."""
        ...

    def visible(self) -> VisibleText:
        """Tell what the next token will see: the sink tokens, the window, and between them the
        places where something is missing. What queues behind a turn is not in it yet."""
        ...

    def close(self) -> None:
        """Free the stream and end its turn. Harmless twice, after the engine, and in a forked
        child."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...


class AsyncStreamApi(Protocol):
    """A `StreamApi` for coroutines: each method means what its namesake there does.

    Two things differ. Where a `StreamApi` raises because too many tokens would queue behind a turn,
    `append` here waits until the turn is over, so do not await it in the coroutine that reads the
    turn. And a coroutine may be cancelled: what it asked for has then been done as a whole or not
    at all, and a stream that it would have got is closed. Only an `append` may have been done in
    part, as if it was interrupted.
    """

    @property
    def position(self) -> int:
        """As `StreamApi.position`."""
        ...

    @property
    def is_generating(self) -> bool:
        """As `StreamApi.is_generating`."""
        ...

    async def append(self, prompt: Prompt) -> None:
        """As `StreamApi.append`, but this waits while the stream is scored, and for the end of the
        turn if more than 262,144 tokens would queue behind it. Calls that wait at the same time
        append in any order."""
        ...

    def generate(self, sampling_params: SamplingParams | None = None) -> AsyncDeltas:
        """As `StreamApi.generate`."""
        ...

    def complete(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> AsyncDeltas:
        """As `StreamApi.complete`."""
        ...

    def chat(
        self,
        messages: str | Messages,
        sampling_params: SamplingParams | None = None,
        **options: Unpack[StreamChatSettings],
    ) -> AsyncDeltas:
        """As `StreamApi.chat`."""
        ...

    async def score(self, prompt: Prompt) -> list[float | None]:
        """As `StreamApi.score`. Cancelling it ends the turn; the prompt may have been appended."""
        ...

    async def end_turn(self) -> None:
        """As `StreamApi.end_turn`."""
        ...

    async def fork(self, *, on_evict: OnEvict | None = None) -> Self:
        """As `StreamApi.fork`."""
        ...

    async def cut(self, start: int, end: int) -> None:
        """As `StreamApi.cut`."""
        ...

    async def rewind(self, position: int) -> None:
        """As `StreamApi.rewind`."""
        ...

    async def park(self) -> None:
        """As `StreamApi.park`."""
        ...

    async def save(self, path: FilePath) -> None:
        """As `StreamApi.save`."""
        ...

    async def save_bytes(self) -> bytes:
        """As `StreamApi.save_bytes`."""
        ...

    async def stats(self) -> StreamStats:
        """As `StreamApi.stats`."""
        ...

    async def visible(self) -> VisibleText:
        """As `StreamApi.visible`."""
        ...

    async def close(self) -> None:
        """As `StreamApi.close`."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc_info: object) -> None: ...


class EngineApi(Protocol):
    """A model, or a pool of engines with the same model: whole answers to prompts, and live
    streams.

    Any number of threads may use an engine. `abort` may also be called by what the engine calls.
    Use the engine as a context manager, or call `close`.
    """

    def generate(
        self,
        prompts: Prompts,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        request_ids: str | Sequence[str] | None = None,
        priority: int = 0,
        use_tqdm: bool = True,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
    ) -> list[RequestOutput]:
        """Complete one prompt or a list of them. If one is refused, nothing is computed.

        Args:
            prompts: text or token ids, of any length, also in the dicts that vLLM takes,
                ``{"prompt": text}`` and ``{"prompt_token_ids": ids}``; or a list of such prompts.
                Each text is the beginning of a document, and gets no EOS token.
            sampling_params: one for all prompts, or one per prompt. By default
                ``SamplingParams()``, which generates 16 tokens at most.
            request_ids: a name for each prompt, for `abort`: one string for one prompt, a list of
                different ones for a list. By default the engine names them.
            priority: smaller runs first. Streams have 0. While it waits, the lowest that runs gives
                its place and its memory, and goes on later with the tokens that it would have had.
            use_tqdm: show a progress bar.
            lora_request: the adapter that the prompts are computed with, or one or ``None`` per
                prompt. It is loaded when it is first asked for.

        Returns:
            One output per prompt, in their order, under its ``request_id``.

        Raises:
            ValueError: a prompt or a parameter is wrong, there are not as many parameters or names
                as prompts, a name belongs to an unfinished request, or an adapter cannot be loaded.
        """
        ...

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        request_ids: str | Sequence[str] | None = None,
        priority: int = 0,
        use_tqdm: bool = True,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        **options: Unpack[ChatSettings],
    ) -> list[RequestOutput]:
        """Answer one conversation or a list of them, written in the model's chat template.

        Args:
            messages: ``[{"role": "user", "content": "..."}, ...]``, or a list of such lists. A
                content may also be a list of parts, ``{"type": "text", "text": "..."}``.
            sampling_params: one for all conversations, or one per conversation. By default an
                answer ends where the model ends its turn; a model that never does goes on for ever
                with a window, and up to the trained length without.
            request_ids: as in `generate`.
            priority: as in `generate`.
            use_tqdm: as in `generate`.
            lora_request: as in `generate`.
            options: as in `ChatOptions`, for all conversations: how they are written.

        Raises:
            ValueError: as `generate`, or an option is wrong, or there is no chat template.
        """
        ...

    @overload
    def score(  # type: ignore[overload-overlap]
        self, prompts: Prompt, *, use_tqdm: bool = True, lora_request: LoRARequest | None = None
    ) -> Scores: ...

    @overload
    def score(
        self,
        prompts: Sequence[Prompt],
        *,
        use_tqdm: bool = True,
        lora_request: LoRARequest | None = None,
    ) -> list[Scores]: ...

    def score(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        use_tqdm: bool = True,
        lora_request: LoRARequest | None = None,
    ) -> Scores | list[Scores]:
        """Tell how likely each token of a prompt of any length is, given what it sees. A list of
        prompts is computed together. If one is refused, nothing is computed.

        Args:
            prompts: as in `generate`.
            use_tqdm: show a progress bar.
            lora_request: the adapter that they are computed with, as in `generate`.

        Returns:
            One log-probability per token; ``None`` for the first, which nothing predicts. For a
            list of prompts, a list of such lists, in their order.

        Raises:
            ValueError: a prompt is wrong, as in `generate`.
        """
        ...

    def embed(
        self, prompts: Prompts, *, use_tqdm: bool = True, lora_request: LoRARequest | None = None
    ) -> list[EmbeddingRequestOutput]:
        """Tell the embedding of one prompt or of each of a list: the hidden state of its last
        token, after the final norm, divided by its length. A list is computed together. If one
        is refused, nothing is computed.

        Args:
            prompts: as in `generate`. A prompt longer than the window streams through it. Its
                embedding tells of the sink tokens and the window, and of earlier tokens only what
                those in the window have read of them.
            use_tqdm: show a progress bar.
            lora_request: as in `score`.

        Returns:
            One output per prompt, in their order. ``output.outputs.embedding`` is a list of
            floats.

        Raises:
            ValueError: a prompt is wrong, as in `generate`.
        """
        ...

    def get_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer, as transformers has it: a copy, the same at every call. What is
        done to it changes nothing in the engine.

        Raises:
            ValueError: the model has no tokenizer.
        """
        ...

    def open_stream(
        self,
        *,
        num_sink_tokens: int | None = None,
        window_size: int | None = None,
        pin: Prompt | Messages | None = None,
        on_evict: OnEvict | None = None,
        lora_request: LoRARequest | None = None,
        **options: Unpack[WritingSettings],
    ) -> StreamApi:
        """Open a live stream.

        Args:
            num_sink_tokens: how many of its first tokens stay visible for ever; by default as many
                as the engine's setting says.
            window_size: how many of its most recent tokens are visible; by default the engine's.
            pin: text, token ids or messages that the stream begins with and sees for ever, such as
                a system prompt: these tokens are its sink tokens. Of messages, it is all that the
                chat template writes before what the user says next, whatever that is. Streams with
                the same pin share its blocks.
            on_evict: called when tokens leave the window; see `OnEvict`.
            lora_request: the adapter that it and its forks are computed with, as in `generate`.
            options: as in `WritingOptions`: how the pinned messages are written, and those of every
                `StreamApi.chat` that does not say otherwise.

        Raises:
            ValueError: sinks or window are out of range or do not fit the cache; ``pin`` and
                ``num_sink_tokens`` are both given; an option is wrong; the chat template does not
                begin with what the pinned messages say; or the adapter cannot be loaded.
        """
        ...

    def load_stream(
        self,
        source: FilePath | bytes,
        *,
        on_evict: OnEvict | None = None,
        lora_request: LoRARequest | None = None,
    ) -> StreamApi:
        """Open a stream that `StreamApi.save` or `StreamApi.save_bytes` wrote, here or elsewhere.

        Args:
            source: the file, or its content.
            on_evict: as in `open_stream`.
            lora_request: the adapter that it was opened with; by default, it is found among those
                that are loaded.

        Raises:
            ValueError: there is no such file, or it is no regular one; it is truncated, damaged or
                no saved stream; it was written by another version, or with other weights, another
                ``dtype`` or ``kv_cache_dtype``, or another adapter; its sinks and window do not fit
                this engine; or it has more tokens than a stream can.
        """
        ...

    def add_lora(self, lora_request: LoRARequest) -> None:
        """Load a LoRA adapter, unless it is loaded, so that the first request need not wait for it.

        Raises:
            ValueError: it cannot be read, is none for this model, changes more than the projections
                of layers, or its number is another one's; or there is ``tensor_parallel_size``.
        """
        ...

    def remove_lora(self, lora_id: int) -> bool:
        """Let go of an adapter.

        Args:
            lora_id: its ``lora_int_id``.

        Returns:
            Whether there was one of that number.

        Raises:
            ValueError: a request or an open stream has it.
        """
        ...

    def list_loras(self) -> set[int]:
        """The numbers of the adapters that are loaded."""
        ...

    def abort(self, request_id: str) -> None:
        """End a request before its next step; an unknown or finished one is ignored.

        Each of its unfinished completions keeps what it has, with the ``finish_reason``
        ``"abort"``. Any thread may call this at any moment, also from `OnEvict` and from a signal
        handler.
        """
        ...

    def stats(self) -> EngineStats:
        """Describe the engine at this moment. The figures of a pool are sums over its replicas."""
        ...

    def close(self) -> None:
        """Free the memory of weights, K and V, remove what was parked, end threads and processes.

        Streams are closed with it. A step that another thread waits for is finished first.
        Harmless twice, and in a forked child.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...


class AsyncEngineApi(Protocol):
    """An `EngineApi` for coroutines: each method means what its namesake there does.

    `generate` and `chat` take one prompt or conversation and yield deltas as they come; to run
    several, run several coroutines. A reader that is slow holds up its own request or stream only.
    Cancelling a coroutine ends what it asked for, as described in `AsyncStreamApi`.

    Any number of threads and event loops may use an `AsyncLLMEngine`, whose constructor returns
    once the model is loaded. An `AsyncRayLLM` belongs to the event loop in which it was entered.
    Use the engine as an asynchronous context manager.
    """

    def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        lora_request: LoRARequest | None = None,
    ) -> AsyncDeltas:
        """Complete a prompt, yielding what each step adds to each of its ``n`` completions.

        Args:
            prompt: text or token ids, of any length.
            sampling_params: by default ``SamplingParams()``, which generates 16 tokens at most.
            request_id: a name for `abort`, which no unfinished request has; it is on every delta.
                By default the engine names the request.
            priority: smaller runs first. Streams have 0. While it waits, the lowest that runs gives
                its place and its memory, and goes on later with the tokens that it would have had.
            lora_request: the adapter that it is computed with, loaded when it is first asked for.

        Raises:
            ValueError: as `EngineApi.generate`.
        """
        ...

    def chat(
        self,
        messages: Messages,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        lora_request: LoRARequest | None = None,
        **options: Unpack[ChatSettings],
    ) -> AsyncDeltas:
        """Answer one conversation, as `EngineApi.chat`, yielding deltas as `generate` does."""
        ...

    @overload
    async def score(  # type: ignore[overload-overlap]
        self, prompts: Prompt, *, lora_request: LoRARequest | None = None
    ) -> Scores: ...

    @overload
    async def score(
        self, prompts: Sequence[Prompt], *, lora_request: LoRARequest | None = None
    ) -> list[Scores]: ...

    async def score(
        self, prompts: Prompt | Sequence[Prompt], *, lora_request: LoRARequest | None = None
    ) -> Scores | list[Scores]:
        """As `EngineApi.score`."""
        ...

    async def embed(
        self, prompts: Prompts, *, lora_request: LoRARequest | None = None
    ) -> list[EmbeddingRequestOutput]:
        """As `EngineApi.embed`."""
        ...

    async def get_tokenizer(self) -> PreTrainedTokenizerBase:
        """As `EngineApi.get_tokenizer`."""
        ...

    async def open_stream(
        self,
        *,
        num_sink_tokens: int | None = None,
        window_size: int | None = None,
        pin: Prompt | Messages | None = None,
        on_evict: OnEvict | None = None,
        lora_request: LoRARequest | None = None,
        **options: Unpack[WritingSettings],
    ) -> AsyncStreamApi:
        """As `EngineApi.open_stream`."""
        ...

    async def load_stream(
        self,
        source: FilePath | bytes,
        *,
        on_evict: OnEvict | None = None,
        lora_request: LoRARequest | None = None,
    ) -> AsyncStreamApi:
        """As `EngineApi.load_stream`."""
        ...

    async def add_lora(self, lora_request: LoRARequest) -> None:
        """As `EngineApi.add_lora`."""
        ...

    async def remove_lora(self, lora_id: int) -> bool:
        """As `EngineApi.remove_lora`."""
        ...

    async def list_loras(self) -> set[int]:
        """As `EngineApi.list_loras`."""
        ...

    async def abort(self, request_id: str) -> None:
        """As `EngineApi.abort`. The readers' last deltas have the ``finish_reason`` ``"abort"``."""
        ...

    async def stats(self) -> EngineStats:
        """As `EngineApi.stats`."""
        ...

    async def close(self) -> None:
        """As `EngineApi.close`. Whoever waits for the engine gets `EngineStoppedError`."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc_info: object) -> None: ...
