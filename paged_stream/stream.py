"""A live stream: one endless sequence whose K and V stay in the cache between turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from paged_stream.outputs import RequestDelta, StreamStats
from paged_stream.scheduler.sampling_params import SamplingParams

if TYPE_CHECKING:
    from paged_stream.engine import LLMEngine


class Stream:
    """Made by `LLMEngine.open_stream`. Append to it and generate from it, in any order, for ever:
    only new tokens are computed, and memory stays the same.

    Use it as a context manager, or call `close`.
    """

    def __init__(self, engine: LLMEngine, seq_id: int) -> None:
        self._engine = engine
        self._seq_id = seq_id
        self._appended: list[int] = []
        self._has_tokens = False
        self._generating = False
        self._closed = False

    def append(self, prompt: str | Sequence[int]) -> None:
        """Add text or token ids. They are computed with the next `generate`.

        Raises:
            ValueError: as `LLMEngine.add_request`, the stream is closed, or it would grow beyond
                the trained length of a model that cannot stream.
        """
        self._check_open()
        token_ids = self._engine.encode(prompt, continues=self._has_tokens)
        self._engine.stream_check_length(self._seq_id, len(self._appended) + len(token_ids))
        self._appended += token_ids
        self._has_tokens = True

    def generate(self, params: SamplingParams | None = None) -> Iterator[RequestDelta]:
        """Generate until something stops it, yielding what each step adds.

        What was generated is part of the stream, the stop token included. Leaving the iterator
        early (``break``) ends the turn where it is. The turn starts with the first item asked for;
        the iterator ends early if the stream is closed meanwhile.

        Raises:
            ValueError: the stream is closed, empty or generating already, or ``params`` are wrong.
        """
        self._check_idle()
        params = params or SamplingParams()
        self._engine.check_params(params)
        self._engine.stream_check_length(self._seq_id, len(self._appended))
        if params.n != 1:
            raise ValueError(f"n must be 1 for a stream, got {params.n}")
        return self._generate(params)

    def _generate(self, params: SamplingParams) -> Iterator[RequestDelta]:
        self._check_idle()  # again: time has passed since generate() was called
        inbox = self._engine.stream_start_turn(self._seq_id, self._appended, params)
        self._appended = []
        self._generating = True
        try:
            finished = False
            while not finished and not self._closed:
                if not inbox:
                    self._engine.stream_step()
                    continue
                delta = inbox.popleft()
                finished = delta.finished
                yield delta
        finally:
            self._generating = False
            if not self._closed:
                self._engine.stream_end_turn(self._seq_id)

    def stats(self) -> StreamStats:
        """Tokens seen, visible and evicted; blocks and bytes held."""
        self._check_open()
        return self._engine.stream_stats(self._seq_id)

    def close(self) -> None:
        """Free the stream's blocks. Closing twice is harmless."""
        if not self._closed:
            self._closed = True
            self._engine.stream_close(self._seq_id)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _check_idle(self) -> None:
        self._check_open()
        if not self._has_tokens:
            raise ValueError("the stream is empty; append to it before generating")
        if self._generating:
            raise ValueError("the stream is generating already")

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the stream is closed")
