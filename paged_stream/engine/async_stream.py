"""A live stream of an `AsyncLLMEngine`, whose methods are awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from paged_stream.engine.lifetime import refuse_pickling
from paged_stream.engine.mailbox import Deltas, Mailbox
from paged_stream.engine.outputs import StreamStats
from paged_stream.engine.stream import Addition, Stream
from paged_stream.engine.stream_file import write_stream_file
from paged_stream.scheduler.sampling_params import SamplingParams, whole_answer
from paged_stream.text.chat import Messages, is_messages
from paged_stream.text.inputs import Prompt

if TYPE_CHECKING:
    from paged_stream.engine.async_engine import AsyncLLMEngine

T = TypeVar("T")


class AsyncStream:
    """A live stream of an `AsyncLLMEngine`. Its methods are those of `Stream`, to be awaited; only
    `Stream.score` has none like it. Use it as an asynchronous context manager, or call `close`."""

    def __init__(self, engine: AsyncLLMEngine, stream: Stream) -> None:
        self._engine = engine  # which lives as long
        self.inner = stream  # for the engine's thread only
        self._mailbox: Mailbox | None = None  # of the last turn
        self._is_closed = False  # or will be, by the engine's thread

    async def append(self, prompt: Prompt) -> None:
        """Add text or token ids; returns once no more than a step's worth waits.

        While the stream generates, they queue behind the turn. When `stream.MAX_QUEUED_TOKENS`
        would be exceeded, that waits for the end of the turn, which others have to read. Several
        that wait at once are appended in any order.
        """
        self._engine.thread.check()
        addition = await encode(self.inner.encode, prompt)
        count = len(addition.token_ids)
        await self._engine.call(
            lambda: self.inner.queue(prompt, addition), when=lambda: self.inner.has_room_for(count)
        )
        await self._engine.call(lambda: None, when=lambda: not self.inner.is_behind)

    def generate(self, params: SamplingParams | None = None, *, num_generated: int = 0) -> Deltas:
        """Generate until something stops it, yielding what each step adds. Closing the iterator,
        or cancelling the task that reads it, ends the turn where it is; closing the stream ends
        the iterator. ``num_generated`` is as in `Stream.start_turn`."""

        async def prepare() -> None:
            pass

        def start(mailbox: Mailbox, prepared: None) -> None:
            self.inner.start_turn(params, mailbox, num_generated=num_generated)
            self._mailbox = mailbox

        return self._engine.thread.deltas(prepare, start, self.inner.turn_ender())

    def chat(self, messages: str | Messages, params: SamplingParams | None = None) -> Deltas:
        """Append the next messages of a conversation and generate the answer, as `Stream.chat`."""
        params = whole_answer(params)

        def start(mailbox: Mailbox, addition: Addition) -> None:
            self.inner.queue_chat(messages, params, addition)
            self.inner.start_turn(params, mailbox)
            self._mailbox = mailbox

        return self._engine.thread.deltas(
            lambda: asyncio.to_thread(self.inner.encode_chat, messages),
            start,
            self.inner.turn_ender(),
        )

    async def end_turn(self) -> None:
        """Stop generating where it is: the turn's iterator gives what is computed, and ends."""

        def end() -> None:
            self.inner.end_turn(self._mailbox)
            if self._mailbox is not None:
                self._mailbox.end()

        await self._engine.call(end)

    async def fork(self) -> AsyncStream:
        return await self._engine.open_with(self.inner.fork, self._is_ready)

    async def cut(self, start: int, end: int) -> None:
        await self._engine.call(lambda: self.inner.cut(start, end), when=self._is_ready)

    async def rewind(self, position: int) -> None:
        await self._engine.call(lambda: self.inner.rewind(position), when=self._is_ready)

    async def park(self) -> None:
        await self._engine.call(self.inner.park, when=self._is_ready)

    async def save(self, path: str | Path) -> None:
        saved = await self._engine.call(self.inner.snapshot, when=self._is_ready)
        await asyncio.to_thread(write_stream_file, Path(path).expanduser(), saved)

    async def stats(self) -> StreamStats:
        return await self._engine.call(self.inner.stats)

    async def close(self) -> None:
        """Free the stream's blocks; harmless twice, when the engine has stopped, and in a forked
        child."""
        self._is_closed = True
        self._engine.thread.post(self.close_now)

    async def __aenter__(self) -> AsyncStream:
        self._engine.thread.check()
        if self._is_closed:
            raise ValueError("the stream is closed")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def close_now(self) -> None:
        """Close the stream; for the engine's thread only."""
        self._engine.streams.pop(self.inner.seq_id, None)
        self.inner.close()
        if self._mailbox is not None:
            self._mailbox.end()

    def __repr__(self) -> str:
        inner = getattr(self, "inner", None)
        return f"<AsyncStream {'that was not made' if inner is None else inner.summary}>"

    def __reduce__(self) -> NoReturn:
        refuse_pickling("a stream", "use save and load_stream, or fork")

    def _is_ready(self) -> bool:
        """Whether the stream's editing methods would return, or raise, without computing."""
        return self.inner.is_generating or self.inner.is_settled


async def encode(function: Callable[[Any], T], prompt: Any) -> T:
    """Tokenize beside the event loop and the engine's thread; what has been tokenized, at once."""
    if isinstance(prompt, str) or is_messages(prompt):
        return await asyncio.to_thread(function, prompt)
    return function(prompt)
