"""A live stream whose caller waits while the engine's thread computes for it, step by step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NoReturn, Self, TypeVar, Unpack

from paged_stream.engine.api import Deltas, FilePath, OnEvict, StreamApi
from paged_stream.engine.caller import Caller
from paged_stream.engine.calls import Reader
from paged_stream.engine.lifetime import EngineStoppedError, refuse_pickling
from paged_stream.engine.live_stream import Appended, LiveStream
from paged_stream.engine.outputs import DeltaQueue, StreamStats, VisibleText
from paged_stream.engine.requests import scores_of
from paged_stream.engine.stream_file import stream_bytes, write_stream_file
from paged_stream.scheduler.sampling_params import SamplingParams, whole_answer
from paged_stream.text.chat import Messages
from paged_stream.text.chat_options import StreamChatOptions, StreamChatSettings
from paged_stream.text.inputs import Prompt

T = TypeVar("T")


class Stream(StreamApi):
    """A stream of an `LLMEngine` or `LLM`, which `open_stream` or `load_stream` makes.

    Attributes:
        inner: the stream inside its engine.
        caller: the way to the engine's thread, which alone uses ``inner``.
    """

    def __init__(self, inner: LiveStream, caller: Caller) -> None:
        self.inner = inner
        self.caller = caller

    @property
    def position(self) -> int:
        """As `StreamApi.position`."""
        return self.caller.call(lambda: self.inner.position)

    @property
    def is_generating(self) -> bool:
        """As `StreamApi.is_generating`."""
        return self.caller.call(lambda: self.inner.is_generating)

    # Turns

    def append(self, prompt: Prompt) -> None:
        """As `StreamApi.append`."""
        inner, addition = self.inner, self.inner.encode(prompt)
        core, appended, reader = inner.core, list[Appended](), Reader()

        def take_back(error: BaseException | None) -> None:
            for each in appended:
                inner.withdraw(each, error)
            appended.clear()

        leaving = core.errands.when_gone(reader, lambda core: take_back(None))

        def begin() -> None:
            if leaving() is not None:  # otherwise the caller was interrupted before
                appended.append(inner.queue(prompt, addition))

        def advance() -> bool:
            if not core.advance_if(inner.is_behind):
                appended.clear()  # for good
            return bool(appended)

        try:
            self.caller.call(begin)
            while self.caller.call(advance):
                pass
        except BaseException as error:
            with suppress(RuntimeError, ValueError):  # the engine is closed, or the stream
                self.caller.call(partial(take_back, error))
            raise
        finally:
            del reader  # an exception may keep this frame

    def generate(self, sampling_params: SamplingParams | None = None) -> Deltas:
        """As `StreamApi.generate`."""
        params = SamplingParams() if sampling_params is None else sampling_params
        self._check_can_generate(params)
        return self._turn(partial(self.inner.start_turn, params))

    def complete(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Deltas:
        """As `StreamApi.complete`."""
        params = SamplingParams() if sampling_params is None else sampling_params
        self._check_can_generate(params, appends=True)
        addition = self.inner.encode(prompt)
        return self._turn(partial(self.inner.start_completion, prompt, params, addition))

    def chat(
        self,
        messages: str | Messages,
        sampling_params: SamplingParams | None = None,
        **options: Unpack[StreamChatSettings],
    ) -> Deltas:
        """As `StreamApi.chat`."""
        params, written = whole_answer(sampling_params), StreamChatOptions(**options)
        self._check_can_generate(params, appends=True)
        addition = self.inner.encode_chat(messages, self.caller.call(self.inner.hear), written)
        start = partial(self.inner.start_chat, messages, params, written, addition)
        return self._turn(start, self._at_rest if written.on_rewrite == "cut" else None)

    def score(self, prompt: Prompt) -> list[float | None]:
        """As `StreamApi.score`."""
        self.caller.call(self.inner.check_at_rest)
        addition = self.inner.encode(prompt)
        scores: list[float | None] = []

        def start(inbox: DeltaQueue) -> None:
            scores.extend(self.inner.start_scoring(prompt, addition, inbox))

        for delta in self._turn(start, self._at_rest):
            scores += scores_of(delta)
        return scores

    def _check_can_generate(self, params: SamplingParams, *, appends: bool = False) -> None:
        self.inner.check_params(params)
        self.caller.call(lambda: self.inner.check_can_generate(params, appends=appends))

    def _turn(
        self,
        start: Callable[[DeltaQueue], None],
        call: Callable[[Callable[[], None]], None] | None = None,
    ) -> Deltas:
        """Let a turn begin, and drive the engine until it ends.

        Args:
            start: lets something fill the inbox.
            call: runs it in the engine's thread; by default at once.
        """
        inner, core, seq_id = self.inner, self.inner.core, self.inner.seq_id
        inbox, reader, finished = DeltaQueue(), Reader(), False
        leaving = core.errands.when_gone(reader, lambda core: core.end_turn(seq_id, inbox))

        def begin() -> None:
            if leaving() is not None:  # otherwise the reader was interrupted before
                start(inbox)

        def advance() -> bool:
            return self.caller.call(lambda: core.advance_if(core.turns.has(seq_id, inbox)))

        try:
            (call or self.caller.call)(begin)
            while not finished and not inner.is_closed:
                core.lifetime.check()
                if inbox:
                    delta = inbox.popleft()
                    finished = delta.finished
                    yield delta
                elif not advance() and not inbox:
                    if inbox.error is not None:
                        raise inbox.error
                    break  # `end_turn` was called meanwhile
        finally:
            del reader  # an exception may keep this frame

    def end_turn(self) -> None:
        """As `StreamApi.end_turn`."""
        self.caller.call(self.inner.end_turn)

    # Editing, between turns

    def fork(self, *, on_evict: OnEvict | None = None) -> Self:
        """As `StreamApi.fork`."""
        return type(self)(self._at_rest(lambda: self.inner.fork(on_evict)), self.caller)

    def cut(self, start: int, end: int) -> None:
        """As `StreamApi.cut`."""
        self._at_rest(lambda: self.inner.cut(start, end))

    def rewind(self, position: int) -> None:
        """As `StreamApi.rewind`."""
        inner = self.inner
        self._once(lambda: inner.rewinds_now(position), lambda: inner.rewind(position))

    # Away and back

    def park(self) -> None:
        """As `StreamApi.park`."""
        self._at_rest(self.inner.park)

    def save(self, path: FilePath) -> None:
        """As `StreamApi.save`."""
        write_stream_file(Path(path).expanduser(), self._at_rest(self.inner.snapshot))

    def save_bytes(self) -> bytes:
        """As `StreamApi.save_bytes`."""
        return stream_bytes(self._at_rest(self.inner.snapshot))

    def stats(self) -> StreamStats:
        """As `StreamApi.stats`."""
        return self.caller.call(self.inner.stats)

    def visible(self) -> VisibleText:
        """As `StreamApi.visible`."""
        return self.inner.with_text(self.caller.call(self.inner.visible_runs))

    def close(self) -> None:
        """As `StreamApi.close`."""
        if self.inner.core.lifetime.is_over:
            self.inner.close()
            return
        try:
            self.caller.call(self.inner.close)
        except EngineStoppedError:
            pass  # another thread has closed the engine meanwhile

    def __enter__(self) -> Self:
        self.inner.check_open()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        inner = getattr(self, "inner", None)
        return f"<Stream {'that was not made' if inner is None else inner.summary}>"

    def __reduce__(self) -> NoReturn:
        refuse_pickling("a stream", "use save and load_stream, or fork")

    def _at_rest(self, function: Callable[[], T]) -> T:
        """Do something in the engine's thread, once all that was appended is computed."""
        return self._once(lambda: self.inner.is_settled, function)

    def _once(self, is_ready: Callable[[], bool], function: Callable[[], T]) -> T:
        """Do something with the stream at rest in the engine's thread, as soon as ``is_ready``
        holds there; computes until it does."""
        inner, results = self.inner, list[T]()

        def attempt() -> bool:
            inner.check_at_rest()
            if is_ready():
                results.append(function())
            else:
                inner.core.advance()
            return bool(results)

        while not self.caller.call(attempt):
            pass
        return results[0]
