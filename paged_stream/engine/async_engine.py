"""`LLMEngine` for asyncio services: a thread of its own computes, coroutines wait for deltas."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import NoReturn, TypeVar
from weakref import WeakValueDictionary

from paged_stream.config import EngineConfig, takes_config
from paged_stream.engine.async_stream import AsyncStream, encode
from paged_stream.engine.lifetime import EngineStoppedError, refuse_pickling, when_abandoned
from paged_stream.engine.llm_engine import LLMEngine
from paged_stream.engine.mailbox import Deltas, Mailbox
from paged_stream.engine.outputs import EngineStats
from paged_stream.engine.stream import Stream
from paged_stream.engine.thread import EngineThread
from paged_stream.scheduler.fields import as_int
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.text.chat import Messages
from paged_stream.text.inputs import Prompt

T = TypeVar("T")
OnEvict = Callable[[int, int], None]


class AsyncLLMEngine:
    """Runs requests and streams on one model for any number of coroutines.

    A slow reader holds up its own request or stream only: once ``max_unread`` of its deltas are
    unread, the engine passes it over. Any number of threads and event loops may use it, also one
    loop after another. Use it as an asynchronous context manager, or call `shutdown` or `close`.
    Afterwards every use raises `EngineStoppedError`. It belongs to the process that made it: in a
    forked child every use raises RuntimeError.

    Raises:
        ValueError: as `LLMEngine`. The model is loaded before the constructor returns.
    """

    @takes_config
    def __init__(self, config: EngineConfig, *, max_unread: int = 16) -> None:
        max_unread = as_int("max_unread", max_unread, 1)
        self.engine = LLMEngine(config)
        try:
            if self.engine.tokenizer is not None:
                # Takes back what the tokenizer's file may limit: not to be done in two threads.
                self.engine.tokenizer.encode("")
            self.thread = EngineThread(self.engine, max_unread)
        except BaseException:
            self.engine.close()
            raise
        self._numbers = itertools.count()
        # For the engine's thread only. It does not keep them: they may be collected unclosed.
        self.streams: WeakValueDictionary[int, AsyncStream] = WeakValueDictionary()
        name = f"AsyncLLMEngine of {config.model!r}"
        when_abandoned(self, name, self.engine.lifetime, self.thread.stop_soon)

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
            EngineStoppedError: the engine is closed or has failed.
        """
        engine = self.engine
        name = f"async-{next(self._numbers)}" if request_id is None else request_id

        def start(mailbox: Mailbox, token_ids: list[int]) -> None:
            self.engine.add_encoded_request(
                name, token_ids, params, priority=priority, inbox=mailbox
            )
            mailbox.num_unfinished = 1 if params is None else params.n

        return self.thread.deltas(
            lambda: encode(self.engine.encode, prompt),
            start,
            lambda mailbox: engine.abort_request(name),
        )

    async def score(self, prompt: Prompt) -> list[float | None]:
        """Log-probability of each token of a prompt of any length, as `LLM.score`.

        Raises:
            ValueError: as `generate`.
        """
        self.thread.check()
        engine = self.engine
        token_ids = await encode(engine.encode, prompt)
        scores: list[float | None] = [None]
        if len(token_ids) == 1:
            return scores
        name = f"async-{next(self._numbers)}"

        async def prepare() -> None:
            pass

        def start(mailbox: Mailbox, prepared: None) -> None:
            engine.add_score_request(name, token_ids, inbox=mailbox)
            mailbox.num_unfinished = 1

        deltas = self.thread.deltas(prepare, start, lambda mailbox: engine.abort_request(name))
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
        self.thread.check()
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
        self.thread.check()
        saved = await asyncio.to_thread(self.engine.read_stream, path)
        return await self.open_with(lambda: self.engine.restore_stream(saved, on_evict=on_evict))

    async def stats(self) -> EngineStats:
        """Describe the engine between two steps."""
        return await self.call(lambda: self.engine.stats())

    # What `AsyncStream` is made of

    async def call(self, function: Callable[[], T], *, when: Callable[[], bool] | None = None) -> T:
        """As `EngineThread.call`."""
        return await self.thread.call(function, when=when)

    async def open_with(
        self, function: Callable[[], Stream], when: Callable[[], bool] | None = None
    ) -> AsyncStream:
        """Open a stream in the engine's thread, at once or as soon as ``when`` holds; it is closed
        again if whoever opens it is cancelled meanwhile."""
        opened: list[AsyncStream] = []

        def run() -> AsyncStream:
            opened.append(AsyncStream(self, function()))
            self.streams[opened[0].inner.seq_id] = opened[0]
            return opened[0]

        def undo() -> None:
            for stream in opened:
                stream.close_now()

        try:
            return await self.call(run, when=when)
        except asyncio.CancelledError:
            self.thread.post(undo)  # it may be running just now
            raise

    # The end

    async def shutdown(self, save_dir: str | Path | None = None) -> dict[AsyncStream, Path]:
        """Stop computing and free everything. Whoever waits gets `EngineStoppedError`. Calling it
        again is harmless, and so is calling it in a forked child, where nothing runs.

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
        await asyncio.to_thread(self.thread.stop)
        return saved

    async def close(self) -> None:
        """As `shutdown`, which can save streams first."""
        await self.shutdown()

    def _save_streams(self, folder: Path) -> dict[AsyncStream, Path]:
        folder.mkdir(parents=True, exist_ok=True)
        for mailbox in list(self.thread.mailboxes):
            mailbox.release()
            mailbox.end(EngineStoppedError("the engine is being shut down"))
        saved = {}
        for stream in list(self.streams.values()):
            # A name of its own: streams of an earlier shutdown may lie there.
            saved[stream] = folder / f"stream-{uuid.uuid4().hex}.safetensors"
            stream.inner.save(saved[stream])
        self.thread.is_stopping = True  # before anybody can go on with a stream
        return saved

    async def __aenter__(self) -> AsyncLLMEngine:
        self.thread.check()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.shutdown()

    def __repr__(self) -> str:
        engine = getattr(self, "engine", None)
        return f"<AsyncLLMEngine {'that was not made' if engine is None else engine.summary}>"

    def __reduce__(self) -> NoReturn:
        refuse_pickling("an engine", "make one in each process")
