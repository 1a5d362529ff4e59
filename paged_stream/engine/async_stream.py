"""A live stream whose methods are awaited, and the streams that one engine has open."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar, Unpack
from weakref import WeakSet

from paged_stream.engine.api import AsyncDeltas, AsyncStreamApi, FilePath, OnEvict
from paged_stream.engine.async_thread import AsyncThread
from paged_stream.engine.lifetime import refuse_pickling
from paged_stream.engine.live_stream import Addition, Appended, LiveStream
from paged_stream.engine.mailbox import Mailbox
from paged_stream.engine.outputs import StreamStats, VisibleText
from paged_stream.engine.requests import scores_of
from paged_stream.engine.stream_file import SavedStream, stream_bytes, write_stream_file
from paged_stream.engine.stream_rules import closed_error
from paged_stream.scheduler.sampling_params import SamplingParams, whole_answer
from paged_stream.text.chat import Messages, is_messages
from paged_stream.text.chat_options import StreamChatOptions, StreamChatSettings
from paged_stream.text.inputs import Prompt, plain_prompt
from paged_stream.text.next_messages import NextMessages
from paged_stream.text.prompts import PromptEncoder

T = TypeVar("T")


class AsyncStreams:
    """The open streams of one engine, which live as long as its thread. It lives as long as any of
    them, or the engine.

    Attributes:
        open: for the engine's thread only. It does not keep them: they may be collected unclosed.
    """

    def __init__(self, thread: AsyncThread) -> None:
        self.thread = thread
        self.open: WeakSet[AsyncStream] = WeakSet()

    async def add(
        self, function: Callable[[], LiveStream], when: Callable[[], bool] | None = None
    ) -> AsyncStream:
        """Open a stream in the engine's thread, at once or as soon as ``when`` holds; it is closed
        again if whoever opens it is cancelled meanwhile."""

        def run() -> AsyncStream:
            stream = AsyncStream(function(), self)
            self.open.add(stream)
            return stream

        return await self.thread.call(run, when=when, undo=AsyncStream.close_now)


class AsyncStream(AsyncStreamApi):
    """A stream of an `AsyncLLMEngine`, which `open_stream` or `load_stream` makes.

    Attributes:
        inner: the stream itself, for the engine's thread only.
    """

    def __init__(self, inner: LiveStream, streams: AsyncStreams) -> None:
        self.inner = inner
        self._streams = streams
        self._thread = streams.thread
        self._mailbox: Mailbox | None = None  # of the last turn
        self._is_closed = False  # or will be, by the engine's thread

    @property
    def position(self) -> int:
        """As `StreamApi.position`."""
        self._check_open()
        return self.inner.position

    @property
    def is_generating(self) -> bool:
        """As `StreamApi.is_generating`."""
        self._check_open()
        is_left = self._mailbox is not None and self._mailbox.is_left
        return self.inner.is_generating and not is_left  # then it is about to end

    # Turns

    async def append(self, prompt: Prompt) -> None:
        """As `AsyncStreamApi.append`."""
        self._check_open()
        addition = await beside_the_loop(self.inner.encode, prompt)
        count = len(addition.token_ids)
        queued: list[Appended] = []

        def withdraw(error: BaseException | None) -> None:
            for appended in queued:
                self.inner.withdraw(appended, error)

        try:
            await self._thread.call(
                lambda: queued.append(self.inner.queue(prompt, addition)),
                when=lambda: self.inner.has_room_for(count),
            )
            await self._thread.call(lambda: None, when=lambda: not self.inner.is_behind)
        except asyncio.CancelledError as error:
            # Whoever hears of the cancellation may ask at once where the stream is.
            withdrawing = self._thread.call(partial(withdraw, error))
            await asyncio.wait([asyncio.ensure_future(withdrawing)])
            raise
        except BaseException:  # for example, Ctrl-C has ended the event loop
            self._thread.post(partial(withdraw, None))
            raise

    def generate(self, sampling_params: SamplingParams | None = None) -> AsyncDeltas:
        """As `StreamApi.generate`."""
        return self.resume(SamplingParams() if sampling_params is None else sampling_params, 0)

    def resume(
        self,
        params: SamplingParams,
        num_generated: int,
        generated: Sequence[int] = (),
        template_rewrote: bool = False,
    ) -> AsyncDeltas:
        """Go on with a turn that was interrupted after so many tokens, as in
        `LiveStream.start_turn`."""

        def start(mailbox: Mailbox, prepared: None) -> None:
            self.inner.start_turn(
                params,
                mailbox,
                num_generated=num_generated,
                generated=generated,
                template_rewrote=template_rewrote,
            )

        return self._turn(lambda: check_beside_the_loop(self.inner.prompts, params), start)

    def complete(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> AsyncDeltas:
        """As `StreamApi.complete`."""
        params = SamplingParams() if sampling_params is None else sampling_params

        def start(mailbox: Mailbox, addition: Addition) -> None:
            self.inner.start_completion(prompt, params, addition, mailbox)

        async def prepare() -> Addition:
            await check_beside_the_loop(self.inner.prompts, params)
            return await beside_the_loop(self.inner.encode, prompt)

        return self._turn(prepare, start)

    def chat(
        self,
        messages: str | Messages,
        sampling_params: SamplingParams | None = None,
        **options: Unpack[StreamChatSettings],
    ) -> AsyncDeltas:
        """As `StreamApi.chat`."""
        params, written = whole_answer(sampling_params), StreamChatOptions(**options)

        def start(mailbox: Mailbox, addition: NextMessages) -> None:
            self.inner.start_chat(messages, params, written, addition, mailbox)

        return self._turn(
            lambda: self.encode_chat(messages, params, written),
            start,
            lambda: self.inner.is_ready_for_chat(written),
        )

    async def encode_chat(
        self, messages: str | Messages, params: SamplingParams, options: StreamChatOptions
    ) -> NextMessages:
        """As `LiveStream.encode_chat`, after the parameters are checked."""
        await check_beside_the_loop(self.inner.prompts, params)
        heard = await self._thread.call(self.inner.hear)
        return await asyncio.to_thread(self.inner.encode_chat, messages, heard, options)

    async def score(self, prompt: Prompt) -> list[float | None]:
        """As `AsyncStreamApi.score`."""
        scores: list[float | None] = []

        def start(mailbox: Mailbox, addition: Addition) -> None:
            scores.extend(self.inner.start_scoring(prompt, addition, mailbox))
            if not self.inner.has_turn:
                mailbox.end()

        deltas = self._turn(
            lambda: beside_the_loop(self.inner.encode, prompt), start, when=self.inner.is_ready
        )
        async with aclosing(deltas):
            async for delta in deltas:
                scores += scores_of(delta)
        self._check_open()  # otherwise some are missing
        return scores

    def _turn(
        self,
        prepare: Callable[[], Awaitable[T]],
        start: Callable[[Mailbox, T], None],
        when: Callable[[], bool] | None = None,
    ) -> AsyncDeltas:
        def begin(mailbox: Mailbox, prepared: T) -> None:
            start(mailbox, prepared)
            self._mailbox = mailbox

        return self._thread.deltas(prepare, begin, self.inner.turn_ender(), when)

    async def end_turn(self) -> None:
        """As `StreamApi.end_turn`."""
        self._check_open()

        def end() -> None:
            self.inner.check_open()
            if self.inner.is_generating:
                self.inner.end_turn()
                assert self._mailbox is not None
                self._mailbox.end()

        await self._thread.call(end)

    # Editing, between turns

    async def fork(self, *, on_evict: OnEvict | None = None) -> AsyncStream:
        """As `StreamApi.fork`."""
        return await self._streams.add(partial(self.inner.fork, on_evict), self.inner.is_ready)

    async def cut(self, start: int, end: int) -> None:
        """As `StreamApi.cut`."""
        await self._at_rest(lambda: self.inner.cut(start, end))

    async def rewind(self, position: int) -> None:
        """As `StreamApi.rewind`."""
        self._check_open()
        await self._thread.call(
            lambda: self.inner.rewind(position), when=partial(self.inner.rewinds_now, position)
        )

    # Away and back

    async def park(self) -> None:
        """As `StreamApi.park`."""
        await self._at_rest(self.inner.park)

    async def save(self, path: FilePath) -> None:
        """As `StreamApi.save`."""
        saved = await self.snapshot()
        await asyncio.to_thread(write_stream_file, Path(path).expanduser(), saved)

    async def save_bytes(self) -> bytes:
        """As `StreamApi.save_bytes`."""
        return await asyncio.to_thread(stream_bytes, await self.snapshot())

    async def snapshot(self, *, in_turn: bool = False) -> SavedStream:
        """Copy all that the stream is, as `LiveStream.snapshot`."""
        self._check_open()
        return await self._thread.call(
            lambda: self.inner.snapshot(in_turn=in_turn),
            when=None if in_turn else self.inner.is_ready,
        )

    async def stats(self) -> StreamStats:
        """As `StreamApi.stats`."""
        self._check_open()
        return await self._thread.call(self.inner.stats)

    async def visible(self) -> VisibleText:
        """As `StreamApi.visible`."""
        self._check_open()
        visible = await self._thread.call(self.inner.visible_runs)
        return await asyncio.to_thread(self.inner.with_text, visible)

    async def close(self) -> None:
        """As `StreamApi.close`."""
        self._is_closed = True
        self._thread.post(self.close_now)

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def close_now(self) -> None:
        """Close the stream; for the engine's thread only."""
        self._is_closed = True
        self._streams.open.discard(self)
        self.inner.close()
        if self._mailbox is not None:
            self._mailbox.end()

    def __repr__(self) -> str:
        inner = getattr(self, "inner", None)
        return f"<AsyncStream {'that was not made' if inner is None else inner.summary}>"

    def __reduce__(self) -> NoReturn:
        refuse_pickling("a stream", "use save and load_stream, or fork")

    def _check_open(self) -> None:
        self._thread.check()
        if self._is_closed:
            raise closed_error()

    async def _at_rest(self, function: Callable[[], T]) -> T:
        """Do something once all that was appended is computed."""
        self._check_open()
        return await self._thread.call(function, when=self.inner.is_ready)


async def beside_the_loop(function: Callable[[Any], T], prompt: Any) -> T:
    """Tokenize beside the event loop and the engine's thread; what has been tokenized, at once."""
    if isinstance(plain_prompt(prompt), str) or is_messages(prompt):
        return await asyncio.to_thread(function, prompt)
    return function(prompt)


async def check_beside_the_loop(prompts: PromptEncoder, params: SamplingParams) -> None:
    """Check parameters now if that takes long, so that it does not in the engine's thread."""
    if not prompts.is_known(params):
        await asyncio.to_thread(prompts.check_params, params)
