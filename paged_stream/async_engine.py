"""`LLMEngine` for asyncio services: a thread of its own computes, coroutines wait for deltas.

Only that thread touches the engine. What others want done is queued and done between two steps, so
several threads and event loops may use one engine.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from paged_stream.config import EngineConfig
from paged_stream.engine import LLMEngine
from paged_stream.inputs import Prompt
from paged_stream.outputs import EngineStats, RequestDelta, StreamStats
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.stream import Stream
from paged_stream.stream_file import write_stream_file

T = TypeVar("T")


class EngineStoppedError(RuntimeError):
    """The engine was shut down or has failed; ``__cause__`` says why."""


class _Mailbox:
    """An inbox that a coroutine reads. Filled by the engine's thread."""

    def __init__(self, limit: int, wake_engine: Callable[[], None]) -> None:
        self._deltas: deque[RequestDelta] = deque()
        self._limit = limit
        self._wake_engine = wake_engine
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._error: EngineStoppedError | None = None

    @property
    def is_full(self) -> bool:
        return len(self._deltas) >= self._limit

    def append(self, delta: RequestDelta) -> None:
        self._deltas.append(delta)
        self._notify()

    def fail(self, error: EngineStoppedError) -> None:
        """Let the reader know that no more will come, once it has read what there is."""
        self._error = error
        self._notify()

    def _notify(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._ready.set)
        except RuntimeError:  # the loop is closed, so nobody waits
            pass

    async def get(self) -> RequestDelta:
        while not self._deltas:
            if self._error is not None:
                raise self._error
            self._ready.clear()
            if not self._deltas and self._error is None:
                await self._ready.wait()
        was_full = self.is_full
        delta = self._deltas.popleft()
        if was_full:
            self._wake_engine()
        return delta


class AsyncLLMEngine:
    """Runs requests and streams on one model for any number of coroutines.

    A slow reader holds up its own request or stream only: once ``max_unread`` of its deltas are
    unread, the engine passes it over.

    Use it as an asynchronous context manager, or call `shutdown`.

    Raises:
        ValueError: as `LLMEngine`. The model is loaded before the constructor returns.
    """

    def __init__(self, config: EngineConfig, *, max_unread: int = 16) -> None:
        if type(max_unread) is not int or max_unread < 1:
            raise ValueError(f"max_unread must be an int >= 1, got {max_unread!r}")
        self.engine = LLMEngine(config)
        self._max_unread = max_unread
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards `_stopped` together with what it lets in
        self._stopped: EngineStoppedError | None = None
        self._calls: set[Future[Any]] = set()
        self._conditions: list[tuple[Callable[[], bool], Future[None]]] = []
        self._mailboxes: set[_Mailbox] = set()
        self._streams: set[AsyncStream] = set()
        self._request_ids = (f"async-{number}" for number in itertools.count())
        self._thread = threading.Thread(target=self._run, name="paged_stream", daemon=True)
        self._thread.start()

    # Requests

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
    ) -> AsyncIterator[RequestDelta]:
        """Complete a prompt, yielding what each step adds to each of its ``n`` completions.

        Leaving the iterator, or cancelling the task that reads it, frees the request's blocks.

        Raises:
            ValueError: as `LLMEngine.add_request`.
            EngineStoppedError: the engine was shut down or has failed.
        """
        name = next(self._request_ids) if request_id is None else request_id
        mailbox = self._open_mailbox()
        try:
            await self.call(
                lambda: self.engine.add_request(
                    name, prompt, params, priority=priority, inbox=mailbox
                )
            )
            num_unfinished = (params or SamplingParams()).n
            while num_unfinished:
                delta = await mailbox.get()
                num_unfinished -= delta.finished
                yield delta
        finally:
            self._mailboxes.discard(mailbox)
            self._post(lambda: self.engine.abort_request(name))

    # Streams

    async def open_stream(
        self,
        *,
        num_sink_tokens: int | None = None,
        window_size: int | None = None,
        pin: Prompt | Sequence[Mapping[str, Any]] | None = None,
        on_evict: Callable[[int, int], None] | None = None,
    ) -> AsyncStream:
        """Open a live stream, as `LLMEngine.open_stream`. ``on_evict`` is called in the engine's
        thread."""
        stream = await self.call(
            lambda: self.engine.open_stream(
                num_sink_tokens=num_sink_tokens,
                window_size=window_size,
                pin=pin,
                on_evict=on_evict,
            )
        )
        return self._adopt(stream)

    async def load_stream(
        self, path: str | Path, *, on_evict: Callable[[int, int], None] | None = None
    ) -> AsyncStream:
        """Open a saved stream, as `LLMEngine.load_stream`."""
        stream = await self.call(lambda: self.engine.load_stream(path, on_evict=on_evict))
        return self._adopt(stream)

    def _adopt(self, stream: Stream) -> AsyncStream:
        adopted = AsyncStream(self, stream)
        self._streams.add(adopted)
        return adopted

    async def stats(self) -> EngineStats:
        """Describe the engine between two steps."""
        return await self.call(self.engine.stats)

    # The end

    async def shutdown(self, save_dir: str | Path | None = None) -> dict[AsyncStream, Path]:
        """Stop computing. Whoever waits gets `EngineStoppedError`; calling it again is harmless.

        Args:
            save_dir: save every open stream there first. One that is generating stops where it is.

        Returns:
            Where each stream was saved.
        """
        saved: dict[AsyncStream, Path] = {}
        if save_dir is not None and self._stopped is None:
            folder = Path(save_dir)
            folder.mkdir(parents=True, exist_ok=True)
            for number, stream in enumerate(list(self._streams)):
                path = folder / f"stream-{number}.safetensors"
                await self.call(stream.inner.end_turn)
                await stream.save(path)
                saved[stream] = path
        self._stop(EngineStoppedError("the engine was shut down"))
        await asyncio.to_thread(self._thread.join)
        return saved

    async def __aenter__(self) -> AsyncLLMEngine:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.shutdown()

    # Between coroutines and the engine's thread

    def call(self, function: Callable[[], T]) -> Awaitable[T]:
        """Run a function in the engine's thread, between two steps.

        Raises:
            EngineStoppedError: the engine was shut down or has failed.
        """
        future: Future[T] = Future()

        def run() -> None:
            self._calls.discard(future)
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        with self._lock:
            if self._stopped is not None:
                raise self._stopped
            self._calls.add(future)
            self._commands.put(run)
        return asyncio.wrap_future(future)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds; it is tested in the engine's thread, after each step."""
        future: Future[None] = Future()
        await self.call(lambda: self._conditions.append((condition, future)))
        await asyncio.wrap_future(future)

    def _post(self, function: Callable[[], None]) -> None:
        """Have something done by the engine's thread if it is still there."""
        with self._lock:
            if self._stopped is None:
                self._commands.put(function)

    def _wake(self) -> None:
        self._post(lambda: None)

    def _open_mailbox(self) -> _Mailbox:
        mailbox = _Mailbox(self._max_unread, self._wake)
        with self._lock:
            if self._stopped is not None:
                raise self._stopped
            self._mailboxes.add(mailbox)
        return mailbox

    def _run(self) -> None:
        engine, idle = self.engine, False
        try:
            while self._stopped is None:
                self._run_commands(wait=idle)
                idle = not engine.advance()
                self._test_conditions()
        except BaseException as error:
            stopped = EngineStoppedError(f"the engine has failed: {error!r}")
            stopped.__cause__ = error
            self._stop(stopped)

    def _run_commands(self, *, wait: bool) -> None:
        """Do what was asked for; if there is nothing, wait for it when told to."""
        try:
            if wait:
                self._commands.get(timeout=self.engine.config.park_after_seconds)()
            while True:
                self._commands.get_nowait()()
        except queue.Empty:
            pass

    def _test_conditions(self) -> None:
        waiting = []
        for condition, future in self._conditions:
            if future.cancelled():
                continue
            try:
                if not condition():
                    waiting.append((condition, future))
                    continue
                future.set_result(None)
            except BaseException as error:
                future.set_exception(error)
        self._conditions = waiting

    def _stop(self, reason: EngineStoppedError) -> None:
        with self._lock:
            if self._stopped is not None:
                return
            self._stopped = reason
            self._commands.put(lambda: None)
        for future in [*self._calls, *(future for _, future in self._conditions)]:
            if not future.done():
                future.set_exception(reason)
        for mailbox in list(self._mailboxes):
            mailbox.fail(reason)


class AsyncStream:
    """A live stream of an `AsyncLLMEngine`. Its methods are those of `Stream`, to be awaited."""

    def __init__(self, engine: AsyncLLMEngine, stream: Stream) -> None:
        self._engine = engine
        self.inner = stream

    async def append(self, prompt: str | Sequence[int]) -> None:
        """Add text or token ids; returns once no more than a step's worth waits."""
        await self._engine.call(lambda: self.inner.queue(prompt))
        await self._engine.until(lambda: not self.inner.is_behind)

    async def generate(self, params: SamplingParams | None = None) -> AsyncIterator[RequestDelta]:
        """Generate until something stops it, yielding what each step adds. Leaving the iterator,
        or cancelling the task that reads it, ends the turn where it is."""
        mailbox = self._engine._open_mailbox()
        try:
            await self._engine.call(lambda: self.inner.start_turn(params, mailbox))
            finished = False
            while not finished:
                delta = await mailbox.get()
                finished = delta.finished
                yield delta
        finally:
            self._engine._mailboxes.discard(mailbox)
            self._engine._post(lambda: self.inner.end_turn(mailbox))

    async def chat(
        self, messages: str | Sequence[Mapping[str, Any]], params: SamplingParams | None = None
    ) -> AsyncIterator[RequestDelta]:
        """Append the next messages of a conversation and generate the answer."""
        await self._engine.call(lambda: self.inner.queue_chat(messages, params))
        async for delta in self.generate(params):
            yield delta

    async def fork(self) -> AsyncStream:
        return self._engine._adopt(await self._settled(self.inner.fork))

    async def cut(self, start: int, end: int) -> None:
        await self._settled(lambda: self.inner.cut(start, end))

    async def rewind(self, position: int) -> None:
        await self._settled(lambda: self.inner.rewind(position))

    async def park(self) -> None:
        await self._settled(self.inner.park)

    async def save(self, path: str | Path) -> None:
        saved = await self._settled(self.inner.snapshot)
        await asyncio.to_thread(write_stream_file, Path(path), saved)

    async def stats(self) -> StreamStats:
        return await self._engine.call(self.inner.stats)

    async def close(self) -> None:
        self._engine._streams.discard(self)
        await self._engine.call(self.inner.close)

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._engine._streams.discard(self)
        self._engine._post(self.inner.close)

    async def _settled(self, function: Callable[[], T]) -> T:
        """Call a function that would otherwise keep the engine's thread until the stream is at
        rest."""
        await self._engine.until(lambda: self.inner.is_generating or self.inner.is_settled)
        return await self._engine.call(function)
