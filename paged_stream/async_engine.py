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
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

from paged_stream.async_stream import AsyncStream, Deltas, encode
from paged_stream.chat import Messages
from paged_stream.config import EngineConfig, takes_config
from paged_stream.engine import LLMEngine
from paged_stream.inputs import Prompt
from paged_stream.mailbox import Call, EngineStoppedError, Mailbox
from paged_stream.outputs import EngineStats
from paged_stream.scheduler.fields import as_int
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.stream import Stream

logger = logging.getLogger(__name__)
T = TypeVar("T")
OnEvict = Callable[[int, int], None]


class AsyncLLMEngine:
    """Runs requests and streams on one model for any number of coroutines.

    A slow reader holds up its own request or stream only: once ``max_unread`` of its deltas are
    unread, the engine passes it over. Use it as an asynchronous context manager, or call
    `shutdown`.

    Raises:
        ValueError: as `LLMEngine`. The model is loaded before the constructor returns.
    """

    @takes_config
    def __init__(self, config: EngineConfig, *, max_unread: int = 16) -> None:
        max_unread = as_int("max_unread", max_unread, 1)
        self.engine = LLMEngine(config)
        if self.engine.tokenizer is not None:
            # Takes back what the tokenizer's file may limit, which must not happen in two threads.
            self.engine.tokenizer.encode("")
        self._max_unread = max_unread
        self._numbers = itertools.count()
        self._calls: queue.SimpleQueue[Call[Any]] = queue.SimpleQueue()
        self._lock = threading.Lock()  # nothing is queued once `_stopped` is set
        self._stopped: EngineStoppedError | None = None
        self._is_stopping = False
        # Of the engine's thread only:
        self._waiting: list[Call[Any]] = []
        self._mailboxes: set[Mailbox] = set()
        self.streams: dict[AsyncStream, None] = {}
        self._thread = threading.Thread(target=self._run, name="paged_stream", daemon=True)
        self._thread.start()
        atexit.register(self._stop)  # an interpreter that ends during a step would crash

    # Requests

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
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

        def start(mailbox: Mailbox, token_ids: list[int]) -> None:
            self.engine.add_encoded_request(
                name, token_ids, params, priority=priority, inbox=mailbox
            )
            mailbox.num_unfinished = 1 if params is None else params.n

        return self.deltas(
            lambda: encode(self.engine.encode, prompt),
            start,
            lambda mailbox: self.engine.abort_request(name),
        )

    async def score(self, prompt: Prompt) -> list[float | None]:
        """Log-probability of each token of a prompt of any length, as `LLM.score`.

        Raises:
            ValueError: as `generate`.
        """
        token_ids = await encode(self.engine.encode, prompt)
        scores: list[float | None] = [None]
        if len(token_ids) == 1:
            return scores
        name = f"async-{next(self._numbers)}"

        async def prepare() -> None:
            pass

        def start(mailbox: Mailbox, prepared: None) -> None:
            self.engine.add_score_request(name, token_ids, inbox=mailbox)
            mailbox.num_unfinished = 1

        deltas = self.deltas(prepare, start, lambda mailbox: self.engine.abort_request(name))
        async with aclosing(deltas):
            async for delta in deltas:
                scores += [entry.logprob for entry in delta.prompt_logprobs or ()]
        return scores

    # Streams

    async def open_stream(
        self,
        *,
        num_sink_tokens: int | None = None,
        window_size: int | None = None,
        pin: Prompt | Messages | None = None,
        on_evict: OnEvict | None = None,
    ) -> AsyncStream:
        """Open a live stream, as `LLMEngine.open_stream`. ``on_evict`` is called in the engine's
        thread."""
        pinned = None if pin is None else await encode(self.engine.prompts.encode_pin, pin)
        return await self.open_with(
            lambda: self.engine.open_stream(
                num_sink_tokens=num_sink_tokens,
                window_size=window_size,
                pin=pinned,
                on_evict=on_evict,
            )
        )

    async def load_stream(
        self, path: str | Path, *, on_evict: OnEvict | None = None
    ) -> AsyncStream:
        """Open a saved stream, as `LLMEngine.load_stream`."""
        saved = await asyncio.to_thread(self.engine.read_stream, path)
        return await self.open_with(lambda: self.engine.restore_stream(saved, on_evict=on_evict))

    async def stats(self) -> EngineStats:
        """Describe the engine between two steps."""
        return await self.call(self.engine.stats)

    # What requests and `AsyncStream` are made of

    async def deltas(
        self,
        prepare: Callable[[], Awaitable[T]],
        start: Callable[[Mailbox, T], None],
        stop: Callable[[Mailbox], None],
    ) -> Deltas:
        """Yield what comes into a mailbox.

        Args:
            prepare: what can be done without the engine; its result is for ``start``.
            start: lets something fill the mailbox.
            stop: ends that. It is only called if ``start`` has succeeded and what it started has
                not ended; both are in the engine's thread.
        """
        mailbox = Mailbox(self._max_unread, self.post)
        prepared = await prepare()

        def enter() -> None:
            start(mailbox, prepared)
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
            self.post(leave)  # behind `enter`, which may still be queued

    async def open_with(
        self, function: Callable[[], Stream], when: Callable[[], bool] | None = None
    ) -> AsyncStream:
        """Open a stream in the engine's thread, at once or as soon as ``when`` holds; it is closed
        again if whoever opens it is cancelled meanwhile."""
        opened: list[AsyncStream] = []

        def run() -> AsyncStream:
            opened.append(AsyncStream(self, function()))
            self.streams[opened[0]] = None
            return opened[0]

        def undo() -> None:
            for stream in opened:
                stream.close_now()

        try:
            return await self.call(run, when=when)
        except asyncio.CancelledError:
            self.post(undo)  # it may be running just now
            raise

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
            folder = Path(save_dir).expanduser()
            saved = await self.call(lambda: self._save_streams(folder))
        await asyncio.to_thread(self._stop)
        atexit.unregister(self._stop)
        return saved

    def _stop(self) -> None:
        self._is_stopping = True
        self.post(lambda: None)
        self._thread.join()
        self.engine.close()

    def _save_streams(self, folder: Path) -> dict[AsyncStream, Path]:
        folder.mkdir(parents=True, exist_ok=True)
        for mailbox in list(self._mailboxes):
            mailbox.release()
            mailbox.end(EngineStoppedError("the engine is being shut down"))
        saved = {}
        for stream in self.streams:
            # A name of its own: streams of an earlier shutdown may lie there.
            saved[stream] = folder / f"stream-{uuid.uuid4().hex}.safetensors"
            stream.inner.save(saved[stream])
        self._is_stopping = True  # before anybody can go on with a stream
        return saved

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.engine.config!r})"

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

    def post(self, function: Callable[[], object]) -> None:
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
        left = self.engine.core.streams[oldest].last_used + seconds - self.engine.core.clock()
        return min(max(left, 0.0), threading.TIMEOUT_MAX)


def _log_failure(future: Future[Any]) -> None:
    if (error := future.exception()) and not isinstance(error, EngineStoppedError):
        logger.error("the engine could not do what was asked for", exc_info=error)
