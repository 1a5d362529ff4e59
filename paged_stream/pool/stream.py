"""A live stream of a pool for plain Python: each method waits for that of an `AsyncPoolStream`."""

from __future__ import annotations

from typing import NoReturn, Self, Unpack

from paged_stream.engine.api import Deltas, FilePath, OnEvict, StreamApi
from paged_stream.engine.lifetime import refuse_pickling
from paged_stream.engine.outputs import StreamStats, VisibleText
from paged_stream.pool.async_stream import AsyncPoolStream
from paged_stream.pool.loop_thread import LoopThread
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.text.chat import Messages
from paged_stream.text.chat_options import StreamChatSettings
from paged_stream.text.inputs import Prompt


class PoolStream(StreamApi):
    """A stream of a `RayLLM`, for any number of threads. `RayLLM.open_stream` makes it.

    Besides what the contract says, every method may raise `PoolError`: the pool is closed, or no
    replica can do what was asked for.

    Args:
        thread: where the pool runs.
        inner: the stream itself, for coroutines in that thread only.
    """

    def __init__(self, thread: LoopThread, inner: AsyncPoolStream) -> None:
        self._thread = thread
        self.inner = inner

    @property
    def position(self) -> int:
        """As `StreamApi.position`."""
        return self.inner.position

    @property
    def is_generating(self) -> bool:
        """As `StreamApi.is_generating`."""
        return self.inner.is_generating

    def append(self, prompt: Prompt) -> None:
        """As `StreamApi.append`."""
        self._thread.run(self.inner.append_or_refuse(prompt))

    def generate(self, sampling_params: SamplingParams | None = None) -> Deltas:
        """As `StreamApi.generate`."""
        return self._thread.read(self.inner.generate(sampling_params))

    def complete(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Deltas:
        """As `StreamApi.complete`."""
        return self._thread.read(self.inner.complete(prompt, sampling_params))

    def chat(
        self,
        messages: str | Messages,
        sampling_params: SamplingParams | None = None,
        **options: Unpack[StreamChatSettings],
    ) -> Deltas:
        """As `StreamApi.chat`."""
        return self._thread.read(self.inner.chat(messages, sampling_params, **options))

    def score(self, prompt: Prompt) -> list[float | None]:
        """As `StreamApi.score`."""
        return self._thread.run(self.inner.score(prompt))

    def end_turn(self) -> None:
        """As `StreamApi.end_turn`."""
        self._thread.run(self.inner.end_turn())

    def fork(self, *, on_evict: OnEvict | None = None) -> PoolStream:
        """As `StreamApi.fork`."""
        return PoolStream(self._thread, self._thread.run(self.inner.fork(on_evict=on_evict)))

    def cut(self, start: int, end: int) -> None:
        """As `StreamApi.cut`."""
        self._thread.run(self.inner.cut(start, end))

    def rewind(self, position: int) -> None:
        """As `StreamApi.rewind`."""
        self._thread.run(self.inner.rewind(position))

    def park(self) -> None:
        """As `StreamApi.park`."""
        self._thread.run(self.inner.park())

    def save(self, path: FilePath) -> None:
        """As `StreamApi.save`."""
        self._thread.run(self.inner.save(path))

    def save_bytes(self) -> bytes:
        """As `StreamApi.save_bytes`."""
        return self._thread.run(self.inner.save_bytes())

    def stats(self) -> StreamStats:
        """As `StreamApi.stats`."""
        return self._thread.run(self.inner.stats())

    def visible(self) -> VisibleText:
        """As `StreamApi.visible`."""
        return self._thread.run(self.inner.visible())

    def close(self) -> None:
        """As `StreamApi.close`."""
        if not self._thread.lifetime.is_over:
            self._thread.run(self.inner.close())

    def __enter__(self) -> Self:
        self.inner.check_open()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        inner = getattr(self, "inner", None)
        return f"<PoolStream {'that was not made' if inner is None else inner.summary}>"

    def __reduce__(self) -> NoReturn:
        refuse_pickling("a stream", "use save and load_stream, or fork")
