"""`LLMEngine` for asyncio services: a thread of its own computes, coroutines wait for deltas.

Only that thread touches the engine, and only it completes what others wait for. What they want done
is queued and done between two steps, so several threads and event loops may use one engine.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import logging
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from paged_stream.config import EngineConfig
from paged_stream.engine import LLMEngine
from paged_stream.inputs import Prompt
from paged_stream.mailbox import Call, EngineStoppedError, Mailbox
from paged_stream.outputs import EngineStats, RequestDelta, StreamStats
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.stream import Stream
from paged_stream.stream_file import write_stream_file

logger = logging.getLogger(__name__)
T = TypeVar("T")
Deltas = AsyncGenerator[RequestDelta, None]
OnEvict = Callable[[int, int], None]


class AsyncLLMEngine:
    """Runs requests and streams on one model for any number of coroutines.

    A slow reader holds up its own request or stream only: once ``max_unread`` of its deltas are
    unread, the engine passes it over. Use it as an asynchronous context manager, or call
    `shutdown`.

    Raises:
        ValueError: as `LLMEngine`. The model is loaded before the constructor returns.
    """

    def __init__(self, config: EngineConfig, *, max_unread: int = 16) -> None:
        if type(max_unread) is not int or max_unread < 1:
            raise ValueError(f"max_unread must be an int >= 1, got {max_unread!r}")
        self.engine = LLMEngine(config)
        self._max_unread = max_unread
        self._numbers = itertools.count()
        self._calls: queue.SimpleQueue[Call[Any]] = queue.SimpleQueue()
        self._lock = threading.Lock()  # nothing is queued once `_stopped` is set
        self._stopped: EngineStoppedError | None = None
        self._is_stopping = False
        # Of the engine's thread only:
        self._waiting: list[Call[Any]] = []
        self._mailboxes: set[Mailbox] = set()
        self._streams: dict[AsyncStream, None] = {}
        self._thread = threading.Thread(target=self._run, name="paged_stream", daemon=True)
        self._thread.start()
        atexit.register(self._stop)  # an interpreter that ends during a step would crash

    # Requests

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
    ) -> Deltas:
        """Complete a prompt, yielding what each step adds to each of its ``n`` completions.

        The request starts with the first item asked for. Closing the iterator (Python does when a
        ``break`` drops it), or cancelling the task that reads it, frees the request's blocks.

        Raises:
            ValueError: as `LLMEngine.add_request`.
            EngineStoppedError: the engine was shut down or has failed.
        """
        name = f"async-{next(self._numbers)}" if request_id is None else request_id

        def start(mailbox: Mailbox) -> None:
            self.engine.add_request(name, prompt, params, priority=priority, inbox=mailbox)
            mailbox.num_unfinished = 1 if params is None else params.n

        return self._read(start, lambda mailbox: self.engine.abort_request(name))

    async def _read(
        self, start: Callable[[Mailbox], None], stop: Callable[[Mailbox], None]
    ) -> Deltas:
        """Yield what comes into a mailbox. ``stop`` is only called if ``start`` has succeeded and
        what it started has not ended; both are in the engine's thread."""
        mailbox = Mailbox(self._max_unread, self._post)

        def enter() -> None:
            start(mailbox)
            self._mailboxes.add(mailbox)

        def leave() -> None:
            if mailbox in self._mailboxes:
                self._mailboxes.remove(mailbox)
                if not mailbox.has_ended:
                    stop(mailbox)

        mailbox.release = leave
        try:
            await self.call(enter)
            while (delta := await mailbox.get()) is not None:
                yield delta
        finally:
            self._post(leave)  # behind `enter`, which may still be queued

    # Streams

    async def open_stream(
        self,
        *,
        num_sink_tokens: int | None = None,
        window_size: int | None = None,
        pin: Prompt | Sequence[Mapping[str, Any]] | None = None,
        on_evict: OnEvict | None = None,
    ) -> AsyncStream:
        """Open a live stream, as `LLMEngine.open_stream`. ``on_evict`` is called in the engine's
        thread."""
        return await self._open(
            lambda: self.engine.open_stream(
                num_sink_tokens=num_sink_tokens,
                window_size=window_size,
                pin=pin,
                on_evict=on_evict,
            )
        )

    async def load_stream(
        self, path: str | Path, *, on_evict: OnEvict | None = None
    ) -> AsyncStream:
        """Open a saved stream, as `LLMEngine.load_stream`."""
        return await self._open(lambda: self.engine.load_stream(path, on_evict=on_evict))

    async def _open(
        self, function: Callable[[], Stream], when: Callable[[], bool] | None = None
    ) -> AsyncStream:
        opened: list[AsyncStream] = []

        def run() -> AsyncStream:
            opened.append(AsyncStream(self, function()))
            self._streams[opened[0]] = None
            return opened[0]

        def undo() -> None:
            for stream in opened:
                stream._close()

        try:
            return await self.call(run, when=when)
        except asyncio.CancelledError:
            self._post(undo)  # it may be running just now
            raise

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

        Raises:
            EngineStoppedError: there is a ``save_dir``, but the engine has stopped already.
            OSError: a file cannot be written. The engine goes on, so that you can try again; what
                was generating is over.
        """
        saved: dict[AsyncStream, Path] = {}
        if save_dir is not None:
            folder = Path(save_dir)
            saved = await self.call(lambda: self._save_streams(folder))
        await asyncio.to_thread(self._stop)
        atexit.unregister(self._stop)
        return saved

    def _stop(self) -> None:
        self._is_stopping = True
        self._post(lambda: None)
        self._thread.join()

    def _save_streams(self, folder: Path) -> dict[AsyncStream, Path]:
        folder.mkdir(parents=True, exist_ok=True)
        for mailbox in list(self._mailboxes):
            mailbox.release()
            mailbox.end(EngineStoppedError("the engine is being shut down"))
        saved = {}
        for number, stream in enumerate(self._streams):
            saved[stream] = folder / f"stream-{number}.safetensors"
            stream.inner.save(saved[stream])
        self._is_stopping = True  # before anybody can go on with a stream
        return saved

    async def __aenter__(self) -> AsyncLLMEngine:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.shutdown()

    # Between coroutines and the engine's thread

    async def call(self, function: Callable[[], T], *, when: Callable[[], bool] | None = None) -> T:
        """Run a function in the engine's thread between two steps, at once or as soon as ``when``
        holds, which is tested there too.

        Raises:
            EngineStoppedError: the engine was shut down or has failed.
        """
        call = Call(function, when)
        with self._lock:
            if self._stopped is not None:
                raise self._stopped_error()
            self._calls.put(call)
        return await asyncio.wrap_future(call.future)

    def _post(self, function: Callable[[], object]) -> None:
        """Have something done by the engine's thread if it is still there."""
        call = Call(function)
        call.future.add_done_callback(_log_failure)
        self._calls.put(call)

    def _stopped_error(self) -> EngineStoppedError:
        """One for each who waits: raising an exception changes it."""
        assert self._stopped is not None
        error = EngineStoppedError(*self._stopped.args)
        error.__cause__ = self._stopped.__cause__
        return error

    def _run(self) -> None:
        reason, is_idle = EngineStoppedError("the engine was shut down"), False
        try:
            while not self._is_stopping:
                # What was called for may be what another call waits for, so look once more.
                has_called = self._run_calls(wait=is_idle)
                is_idle = not (self._is_stopping or self.engine.advance() or has_called)
        except BaseException as error:
            logger.exception("the engine has failed")
            reason = EngineStoppedError(f"the engine has failed: {error!r}")
            reason.__cause__ = error
        with self._lock:
            self._stopped = reason
        self._run_calls(wait=False)
        for mailbox in self._mailboxes:
            mailbox.end(self._stopped_error())

    def _run_calls(self, *, wait: bool) -> bool:
        """Do what was asked for and can be done; if nothing was asked for, wait when told to.

        Returns:
            Whether anything was done.
        """
        calls, self._waiting = self._waiting, []
        if wait:
            try:
                calls.append(self._calls.get(timeout=self._seconds_to_parking()))
            except queue.Empty:
                pass
        calls += [self._calls.get_nowait() for _ in range(self._calls.qsize())]
        for call in calls:
            if self._stopped is not None:
                call.fail(self._stopped_error())
            elif self._is_stopping or not call.attempt():
                self._waiting.append(call)
        return len(self._waiting) < len(calls)

    def _seconds_to_parking(self) -> float | None:
        """How long the engine has nothing to do if nobody asks for anything; ``None``: for ever."""
        seconds = self.engine.config.park_after_seconds
        oldest = next(iter(self.engine.scheduler.idle_streams()), None)
        if seconds is None or oldest is None:
            return None
        left = self.engine.core.streams[oldest].last_used + seconds - time.monotonic()
        return min(max(left, 0.0), threading.TIMEOUT_MAX)


class AsyncStream:
    """A live stream of an `AsyncLLMEngine`. Its methods are those of `Stream`, to be awaited."""

    def __init__(self, engine: AsyncLLMEngine, stream: Stream) -> None:
        self._engine = engine
        self.inner = stream  # for the engine's thread only
        self._mailbox: Mailbox | None = None  # of the last turn

    async def append(self, prompt: str | Sequence[int]) -> None:
        """Add text or token ids; returns once no more than a step's worth waits."""
        await self._engine.call(lambda: self.inner.queue(prompt))
        await self._engine.call(lambda: None, when=lambda: not self.inner.is_behind)

    def generate(self, params: SamplingParams | None = None) -> Deltas:
        """Generate until something stops it, yielding what each step adds. Closing the iterator,
        or cancelling the task that reads it, ends the turn where it is; closing the stream ends
        the iterator."""
        return self._turn(lambda mailbox: self.inner.start_turn(params, mailbox))

    def chat(
        self, messages: str | Sequence[Mapping[str, Any]], params: SamplingParams | None = None
    ) -> Deltas:
        """Append the next messages of a conversation and generate the answer."""

        def start(mailbox: Mailbox) -> None:
            self.inner.queue_chat(messages, params)
            self.inner.start_turn(params, mailbox)

        return self._turn(start)

    def _turn(self, start: Callable[[Mailbox], None]) -> Deltas:
        def start_and_remember(mailbox: Mailbox) -> None:
            start(mailbox)
            self._mailbox = mailbox

        return self._engine._read(start_and_remember, self.inner.end_turn)

    async def fork(self) -> AsyncStream:
        return await self._engine._open(self.inner.fork, self._is_ready)

    async def cut(self, start: int, end: int) -> None:
        await self._engine.call(lambda: self.inner.cut(start, end), when=self._is_ready)

    async def rewind(self, position: int) -> None:
        await self._engine.call(lambda: self.inner.rewind(position), when=self._is_ready)

    async def park(self) -> None:
        await self._engine.call(self.inner.park, when=self._is_ready)

    async def save(self, path: str | Path) -> None:
        saved = await self._engine.call(self.inner.snapshot, when=self._is_ready)
        await asyncio.to_thread(write_stream_file, Path(path), saved)

    async def stats(self) -> StreamStats:
        return await self._engine.call(self.inner.stats)

    async def close(self) -> None:
        """Free the stream's blocks; harmless twice, and when the engine has stopped."""
        self._engine._post(self._close)

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def _close(self) -> None:
        self._engine._streams.pop(self, None)
        self.inner.close()
        if self._mailbox is not None:
            self._mailbox.end()

    def _is_ready(self) -> bool:
        """Whether the stream's editing methods would return, or raise, without computing."""
        return self.inner.is_generating or self.inner.is_settled


def _log_failure(future: Future[Any]) -> None:
    if (error := future.exception()) and not isinstance(error, EngineStoppedError):
        logger.error("the engine could not do what was asked for", exc_info=error)
