"""A live stream that computes in the thread that calls it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn, Self, Unpack

from paged_stream.engine.api import Deltas, FilePath, OnEvict, StreamApi
from paged_stream.engine.lifetime import refuse_pickling
from paged_stream.engine.live_stream import LiveStream
from paged_stream.engine.outputs import DeltaQueue, StreamStats, VisibleText
from paged_stream.engine.requests import scores_of
from paged_stream.engine.stream_file import stream_bytes, write_stream_file
from paged_stream.scheduler.sampling_params import SamplingParams, whole_answer
from paged_stream.text.chat import Messages
from paged_stream.text.chat_options import StreamChatOptions, StreamChatSettings
from paged_stream.text.inputs import Prompt


class Stream(StreamApi):
    """A stream of an `LLMEngine` or `LLM`, which `open_stream` or `load_stream` makes.

    Attributes:
        inner: the stream inside its engine.
    """

    def __init__(self, inner: LiveStream) -> None:
        self.inner = inner

    @property
    def position(self) -> int:
        """As `StreamApi.position`."""
        self.inner.enter()
        return self.inner.position

    @property
    def is_generating(self) -> bool:
        """As `StreamApi.is_generating`."""
        self.inner.enter()
        return self.inner.is_generating

    # Turns

    def append(self, prompt: Prompt) -> None:
        """As `StreamApi.append`."""
        inner = self.inner
        appended = inner.queue(prompt, inner.encode(prompt))
        try:
            while inner.is_behind:
                inner.core.advance()
        except BaseException as error:
            inner.withdraw_for(appended, error)
            raise

    def generate(self, sampling_params: SamplingParams | None = None) -> Deltas:
        """As `StreamApi.generate`."""
        params = SamplingParams() if sampling_params is None else sampling_params
        self.inner.check_can_generate(params)
        return self._turn(partial(self.inner.start_turn, params))

    def complete(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Deltas:
        """As `StreamApi.complete`."""
        params = SamplingParams() if sampling_params is None else sampling_params
        self.inner.check_can_generate(params, appends=True)
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
        self.inner.check_can_generate(params, appends=True)
        addition = self.inner.encode_chat(messages, self.inner.hear(), written)

        def start(inbox: DeltaQueue) -> None:
            inner = self._settled() if written.on_rewrite == "cut" else self.inner
            inner.start_chat(messages, params, written, addition, inbox)

        return self._turn(start)

    def score(self, prompt: Prompt) -> list[float | None]:
        """As `StreamApi.score`."""
        inner = self._settled()
        inbox = DeltaQueue()
        scores: list[float | None] = [*inner.start_scoring(prompt, inner.encode(prompt), inbox)]
        for delta in self._read(inbox):
            scores += scores_of(delta)
        return scores

    def _turn(self, start: Callable[[DeltaQueue], object]) -> Deltas:
        inbox = DeltaQueue()
        start(inbox)
        yield from self._read(inbox)

    def _read(self, inbox: DeltaQueue) -> Deltas:
        """Drive the engine until the turn that fills ``inbox`` ends."""
        inner, core, seq_id = self.inner, self.inner.core, self.inner.seq_id
        finished = False
        try:
            while not finished and not inner.is_closed:
                core.lifetime.check()
                if inbox:
                    delta = inbox.popleft()
                    finished = delta.finished
                    yield delta
                elif core.turns.has(seq_id, inbox):
                    core.advance()
                elif inbox.error is not None:
                    raise inbox.error
                else:
                    break  # `end_turn` was called meanwhile
        finally:
            if not finished:  # perhaps it is the garbage collector that ends this, at any moment
                core.errands.add(lambda core: core.end_turn(seq_id, inbox))

    def end_turn(self) -> None:
        """As `StreamApi.end_turn`."""
        self.inner.end_turn()

    # Editing, between turns

    def fork(self, *, on_evict: OnEvict | None = None) -> Self:
        """As `StreamApi.fork`."""
        return type(self)(self._settled().fork(on_evict))

    def cut(self, start: int, end: int) -> None:
        """As `StreamApi.cut`."""
        self._settled().cut(start, end)

    def rewind(self, position: int) -> None:
        """As `StreamApi.rewind`."""
        self.inner.check_at_rest()
        while not self.inner.rewinds_now(position):
            self.inner.core.advance()
        self.inner.rewind(position)

    # Away and back

    def park(self) -> None:
        """As `StreamApi.park`."""
        self._settled().park()

    def save(self, path: FilePath) -> None:
        """As `StreamApi.save`."""
        write_stream_file(Path(path).expanduser(), self._settled().snapshot())

    def save_bytes(self) -> bytes:
        """As `StreamApi.save_bytes`."""
        return stream_bytes(self._settled().snapshot())

    def stats(self) -> StreamStats:
        """As `StreamApi.stats`."""
        return self.inner.stats()

    def visible(self) -> VisibleText:
        """As `StreamApi.visible`."""
        return self.inner.with_text(self.inner.visible_runs())

    def close(self) -> None:
        """As `StreamApi.close`."""
        self.inner.close()

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

    def _settled(self) -> LiveStream:
        """The stream at rest, with what was appended computed."""
        self.inner.check_at_rest()
        while not self.inner.is_settled:
            self.inner.core.advance()
        return self.inner
