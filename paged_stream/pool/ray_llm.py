"""`RayLLM`: a pool of engines for plain Python, as `LLM` is one engine. It runs an `AsyncRayLLM` in
a thread of its own, so any number of threads may use it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from tqdm import tqdm

from paged_stream.engine.lifetime import Lifetime, refuse_pickling, when_abandoned
from paged_stream.engine.outputs import CompletionOutput, RequestDelta, RequestOutput, StreamStats
from paged_stream.engine.requests import (
    conversations_of,
    merge_delta,
    params_per_prompt,
    prompt_list_of,
)
from paged_stream.pool.async_ray_llm import AsyncRayLLM, PoolStats
from paged_stream.pool.async_stream import AsyncPoolStream
from paged_stream.pool.replica_set import PoolError
from paged_stream.scheduler.sampling_params import SamplingParams, whole_answer
from paged_stream.text.chat import Messages
from paged_stream.text.inputs import Prompt

__all__ = ["AsyncRayLLM", "PoolError", "PoolStats", "PoolStream", "RayLLM"]

T = TypeVar("T")
_REQUESTS_AT_ONCE = 1024  # per replica: its engine queues what it has no room for
_CANCEL_SECONDS = 60.0  # for what still runs when the pool is shut down


class RayLLM:
    """Use it as a context manager, or call `shutdown` or `close`. Afterwards every use raises
    `PoolError`, and in a forked child RuntimeError.

    Args:
        model: as in `AsyncRayLLM`, and so is the rest.

    Raises:
        ValueError: as `AsyncRayLLM` and its `start`.
    """

    def __init__(
        self,
        model: str,
        *,
        num_replicas: int = 1,
        save_dir: str | Path | None = None,
        save_every_tokens: int = 1024,
        **settings: Any,
    ) -> None:
        self.pool = AsyncRayLLM(
            model,
            num_replicas=num_replicas,
            save_dir=save_dir,
            save_every_tokens=save_every_tokens,
            **settings,
        )
        self.lifetime = Lifetime("pool")
        self._loop = asyncio.new_event_loop()
        # It knows the loop only: the pool may be collected unclosed.
        self._thread = threading.Thread(target=_run, args=[self._loop], name="pool", daemon=True)
        self._thread.start()
        try:
            self.run(self.pool.start())
        except BaseException:
            self._stop_loop()
            raise
        end = partial(_end_soon, self.pool, self._loop)
        when_abandoned(self, f"RayLLM of {model!r}", self.lifetime, end)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Complete one prompt (text or token ids) or a list of them, as `LLM.generate`.

        Raises:
            ValueError: a bad prompt or parameter; then nothing is run.
            PoolError: as `AsyncRayLLM.generate`.
        """
        prompt_list = prompt_list_of(prompts)
        per_prompt = params_per_prompt(sampling_params, len(prompt_list))
        token_ids = self.run(self.pool.encode(prompt_list, per_prompt))
        outputs = [
            RequestOutput(
                request_id=f"pool-{number}",
                prompt=prompt if isinstance(prompt, str) else None,
                prompt_token_ids=ids,
                outputs=[CompletionOutput(index=index) for index in range(params.n)],
                prompt_logprobs=None if params.prompt_logprobs is None else [None],
            )
            for number, (prompt, ids, params) in enumerate(
                zip(prompt_list, token_ids, per_prompt, strict=True)
            )
        ]
        with tqdm(total=len(outputs), unit="request", disable=not use_tqdm) as bar:
            self.run(self._complete(outputs, per_prompt, bar))
        return outputs

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answer one conversation, or a list of them, as `LLM.chat`."""
        conversations = conversations_of(messages)
        prompts = self.run(self.pool.ask("render_chat", conversations))
        params = params_per_prompt(sampling_params, len(prompts), default=whole_answer(None))
        return self.generate(prompts, params, use_tqdm=use_tqdm)

    def score(self, prompt: Prompt) -> list[float | None]:
        """Log-probability of each token of a prompt of any length, as `LLM.score`."""
        return self.run(self.pool.score(prompt))

    def open_stream(
        self,
        *,
        num_sink_tokens: int | None = None,
        window_size: int | None = None,
        pin: Prompt | Messages | None = None,
    ) -> PoolStream:
        """Open a live stream, as `LLMEngine.open_stream`."""
        opened = self.pool.open_stream(
            num_sink_tokens=num_sink_tokens, window_size=window_size, pin=pin
        )
        return PoolStream(self, self.run(opened))

    def load_stream(self, path: str | Path) -> PoolStream:
        """Open a saved stream, as `LLMEngine.load_stream`."""
        return PoolStream(self, self.run(self.pool.load_stream(path)))

    def stats(self) -> PoolStats:
        """As `AsyncRayLLM.stats`."""
        return self.run(self.pool.stats())

    def wait_until_ready(self) -> None:
        """As `AsyncRayLLM.wait_until_ready`."""
        self.run(self.pool.wait_until_ready())

    def scale_to(self, num_replicas: int, *, drain_seconds: float = 30.0) -> None:
        """As `AsyncRayLLM.scale_to`."""
        self.run(self.pool.scale_to(num_replicas, drain_seconds=drain_seconds))

    def rolling_restart(self, *, drain_seconds: float = 30.0) -> None:
        """As `AsyncRayLLM.rolling_restart`."""
        self.run(self.pool.rolling_restart(drain_seconds=drain_seconds))

    def shutdown(self) -> None:
        """As `AsyncRayLLM.shutdown`."""
        if not self.lifetime.is_over:
            self.run(self.pool.shutdown())
            self._stop_loop()

    def close(self) -> None:
        """As `shutdown`."""
        self.shutdown()

    def __enter__(self) -> RayLLM:
        self._check()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()

    def __repr__(self) -> str:
        if not hasattr(self, "pool"):
            return "<RayLLM that was not made>"
        config, state = self.pool.config, self.lifetime.state
        return f"<RayLLM of {config.model!r}: {self.pool.num_replicas} replicas, {state}>"

    def __reduce__(self) -> NoReturn:
        refuse_pickling("a pool", "make one in each process")

    def _check(self) -> None:
        self.lifetime.check_process()
        if self.lifetime.is_closed:
            raise PoolError("the pool was shut down")

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait for a coroutine of the pool, from any thread.

        Raises:
            PoolError: the pool was shut down, perhaps meanwhile; and what the coroutine raises.
        """
        future = self.submit(coroutine)
        try:
            return future.result()
        except CancelledError:
            raise PoolError("the pool was shut down") from None
        except BaseException:
            future.cancel()  # as when Ctrl-C ends the wait
            raise

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine of the pool, from any thread.

        Raises:
            PoolError: the pool was shut down.
            RuntimeError: it was made in another process.
        """
        try:
            self._check()
        except RuntimeError:
            coroutine.close()
            raise
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def iterate(self, deltas: AsyncGenerator[RequestDelta, None]) -> Iterator[RequestDelta]:
        """Read a generator of the pool, and close it where the reader leaves."""
        reader = DeltaReader(deltas)
        try:
            while (delta := self.run(reader.next())) is not None:
                yield delta
        finally:
            if not self.lifetime.is_over:
                self.run(reader.close())

    async def _complete(
        self, outputs: list[RequestOutput], params: list[SamplingParams], bar: Any
    ) -> None:
        room = asyncio.Semaphore(_REQUESTS_AT_ONCE * self.pool.num_replicas)

        async def complete(output: RequestOutput, sampling_params: SamplingParams) -> None:
            async with room:
                async for delta in self.pool.generate(output.prompt_token_ids, sampling_params):
                    merge_delta(output, delta)
            bar.update()

        tasks = [
            asyncio.ensure_future(complete(*each)) for each in zip(outputs, params, strict=True)
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def _stop_loop(self) -> None:
        self.lifetime.is_closed = True
        # In other threads somebody may wait for what is not done yet.
        asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


class PoolStream:
    """A live stream of a `RayLLM`; its methods are those of `Stream`."""

    def __init__(self, llm: RayLLM, stream: AsyncPoolStream) -> None:
        self._llm = llm
        self.inner = stream

    @property
    def position(self) -> int:
        """Where the next token will stand."""
        return self.inner.position

    def append(self, prompt: Prompt) -> None:
        self._llm.run(self.inner.append(prompt))

    def generate(self, params: SamplingParams | None = None) -> Iterator[RequestDelta]:
        return self._llm.iterate(self.inner.generate(params))

    def chat(
        self, messages: str | Messages, params: SamplingParams | None = None
    ) -> Iterator[RequestDelta]:
        return self._llm.iterate(self.inner.chat(messages, params))

    def fork(self) -> PoolStream:
        return PoolStream(self._llm, self._llm.run(self.inner.fork()))

    def cut(self, start: int, end: int) -> None:
        self._llm.run(self.inner.cut(start, end))

    def rewind(self, position: int) -> None:
        self._llm.run(self.inner.rewind(position))

    def park(self) -> None:
        self._llm.run(self.inner.park())

    def save(self, path: str | Path) -> None:
        self._llm.run(self.inner.save(Path(path).expanduser().resolve()))

    def stats(self) -> StreamStats:
        return self._llm.run(self.inner.stats())

    def close(self) -> None:
        """Free the stream; harmless twice, and after the pool or in a forked child."""
        if not self._llm.lifetime.is_over:
            self._llm.run(self.inner.close())

    def __enter__(self) -> PoolStream:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _end_soon(pool: AsyncRayLLM, loop: asyncio.AbstractEventLoop) -> None:
    """Shut a pool down that nobody has any more, without waiting for it."""

    async def end() -> None:
        try:
            await pool.shutdown()
        finally:
            await _cancel_others()
            loop.stop()

    asyncio.run_coroutine_threadsafe(end(), loop)


async def _cancel_others() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_CANCEL_SECONDS)


class DeltaReader:
    """Reads a generator of the pool for somebody outside of its event loop. A wait that is given up
    takes a while to come to its end, and the generator cannot be closed before."""

    def __init__(self, deltas: AsyncGenerator[RequestDelta, None]) -> None:
        self._deltas = deltas
        self._lock = asyncio.Lock()

    async def next(self) -> RequestDelta | None:
        """The next delta; ``None`` behind the last."""
        async with self._lock:
            return await anext(self._deltas, None)

    async def close(self) -> None:
        async with self._lock:
            await self._deltas.aclose()
