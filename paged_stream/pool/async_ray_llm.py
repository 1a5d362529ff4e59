"""A pool of engines behind the API of one: requests go where the least is to do, streams stay where
they are, and nothing that was acknowledged is lost when a worker dies."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paged_stream.config import EngineConfig
from paged_stream.engine.outputs import EngineStats, RequestDelta
from paged_stream.pool.async_stream import AsyncPoolStream
from paged_stream.pool.home import MAX_ATTEMPTS, Resident, whole
from paged_stream.pool.replica_set import (
    Member,
    PoolError,
    ReplicaLostError,
    ReplicaSet,
)
from paged_stream.pool.request_progress import Progress
from paged_stream.scheduler.fields import as_int
from paged_stream.scheduler.sampling_params import (
    SamplingParams,
    check_params_type,
    whole_answer,
)
from paged_stream.text.chat import Messages
from paged_stream.text.inputs import Prompt

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStats:
    """One replica: its number and process, the requests and turns that it runs (``load``), the
    streams that live there, and what its engine says of itself."""

    number: int
    pid: int
    load: int
    num_streams: int
    engine: EngineStats


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """A pool at one moment, for whoever decides how many replicas there should be.

    Args:
        replicas: those that are ready.
        num_replicas: as many are wanted.
        num_streams: open ones; each lives on a replica, or on none until it is used again.
        num_lost_replicas: that died since the start.
        num_restored_streams: times that a stream was brought to another worker; together
            ``num_replayed_tokens`` were computed again for it.
    """

    replicas: list[ReplicaStats]
    num_replicas: int
    num_streams: int
    num_lost_replicas: int
    num_restored_streams: int
    num_replayed_tokens: int


class AsyncRayLLM:
    """For the coroutines of one event loop. Use it as an asynchronous context manager, or call
    `start` and `shutdown` or `close`.

    Args:
        model: as in `LLM`; it must lead to the same files on every machine of the cluster.
        num_replicas: engines, each in a process of its own, with a GPU if there are any, else with
            ``num_threads`` (one if not set) processors. With ``tensor_parallel_size``, each is as
            many processes.
        save_dir: where streams are saved, on a file system that all machines share; ``None`` is a
            folder for temporary files, which is enough for one machine.
        save_every_tokens: save a stream when so many tokens came since the last save. When a worker
            dies, that is about how many are computed again for each of its streams that is used
            again: no more than these, what one `append` brings, and what comes during a save.
        settings: any other field of `EngineConfig`.

    Raises:
        ValueError: as `EngineConfig`.
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
        num_replicas = as_int("num_replicas", num_replicas, 1)
        save_every_tokens = as_int("save_every_tokens", save_every_tokens, 1)
        self.config = EngineConfig(model=model, **settings)
        self.save_every_tokens = save_every_tokens
        self.num_restored_streams = 0
        self.num_replayed_tokens = 0
        self._save_dir = save_dir
        self._size = num_replicas
        self._replicas: ReplicaSet
        self._streams: set[Resident] = set()
        self._names = itertools.count()
        self._seeds = random.Random(self.config.seed)
        self._is_closed = False
        self.folder: Path

    async def start(self) -> None:
        """Start the replicas; returns when all are ready.

        Raises:
            ValueError: as `LLMEngine`, or the cluster has no room.
        """
        save_dir = None if self._save_dir is None else Path(self._save_dir).expanduser()
        if save_dir is not None:
            save_dir.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix="streams-", dir=save_dir)).resolve()
        self._replicas = ReplicaSet(self.config, self._size)
        try:
            await self._replicas.start()
        except BaseException:
            await self.shutdown()
            raise

    async def shutdown(self) -> None:
        """End all replicas; what is open is lost. Calling it again is harmless."""
        if not self._is_closed:
            self._is_closed = True
            await self._replicas.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    async def close(self) -> None:
        """As `shutdown`."""
        await self.shutdown()

    async def __aenter__(self) -> AsyncRayLLM:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.shutdown()

    # Requests

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
    ) -> AsyncGenerator[RequestDelta, None]:
        """As `AsyncLLMEngine.generate`. If its worker dies, another one computes the request again,
        and what was yielded before is not yielded again.

        Raises:
            ValueError: as `AsyncLLMEngine.generate`.
            PoolError: no worker can do it; or another one does not come to the same tokens, which
                rounding can cause, and some were yielded already.
        """
        name = f"request-{next(self._names)}"
        params = SamplingParams() if params is None else params
        check_params_type(params)
        if params.seed is None:
            params = replace(params, seed=self._seeds.getrandbits(62))
        progress = Progress(name if request_id is None else request_id)
        for attempt in range(MAX_ATTEMPTS):
            member = await self._replicas.pick(lambda m: (m.load, len(m.streams)))
            member.load += 1
            progress.begin(params.n)
            try:
                await member.call("start_request", name, prompt, params, priority)
                while not progress.is_over:
                    for delta in await member.call("take_request", name):
                        if (fresh := progress.note(delta)) is not None:
                            yield fresh
                return
            except ReplicaLostError as error:
                self._replicas.report_lost(member, error)
                if attempt + 1 == MAX_ATTEMPTS:
                    raise PoolError(
                        f"{MAX_ATTEMPTS} workers were lost over this: {error}"
                    ) from None
            finally:
                member.load -= 1
                if not member.is_gone:
                    member.actor.stop_request.remote(name)

    async def chat(
        self, messages: Messages, params: SamplingParams | None = None
    ) -> AsyncGenerator[RequestDelta, None]:
        """Answer a conversation, given as a whole, with the model's chat template. Without
        ``params``, the answer ends where the model ends its turn."""
        prompt = (await self.ask("render_chat", [list(messages)]))[0]
        async for delta in self.generate(prompt, whole_answer(params)):
            yield delta

    async def score(self, prompt: Prompt) -> list[float | None]:
        """As `AsyncLLMEngine.score`. If its worker dies, another one begins again.

        Raises:
            ValueError: as `AsyncLLMEngine.score`.
            PoolError: no worker can do it.
        """
        scores: list[float | None] = await self.ask("score", prompt)
        return scores

    async def encode(
        self, prompts: Sequence[Prompt], params: Sequence[SamplingParams] = ()
    ) -> list[list[int]]:
        """Token ids of prompts, checked together with parameters.

        Raises:
            ValueError: as `LLMEngine.add_request`.
        """
        token_ids: list[list[int]] = await self.ask("encode", list(prompts), list(params))
        return token_ids

    async def ask(self, method: str, *args: Any) -> Any:
        """Ask some replica for what changes nothing."""
        for _ in range(MAX_ATTEMPTS):
            member = await self._replicas.pick(lambda m: m.load)
            member.load += 1
            try:
                return await member.call(method, *args)
            except ReplicaLostError as error:
                self._replicas.report_lost(member, error)
            finally:
                member.load -= 1
        raise PoolError(f"{MAX_ATTEMPTS} workers were lost over {method}")

    # Streams

    async def open_stream(
        self,
        *,
        num_sink_tokens: int | None = None,
        window_size: int | None = None,
        pin: Prompt | Messages | None = None,
    ) -> AsyncPoolStream:
        """Open a live stream, as `LLMEngine.open_stream`, where the fewest live."""
        stream = self.new_stream(
            {"num_sink_tokens": num_sink_tokens, "window_size": window_size, "pin": pin}
        )
        await self._open(stream)
        return stream

    async def load_stream(self, path: str | Path) -> AsyncPoolStream:
        """Open a saved stream, as `LLMEngine.load_stream`."""
        stream = self.new_stream({})
        await self._open(stream, str(Path(path).expanduser().resolve()))
        return stream

    async def _open(self, stream: AsyncPoolStream, path: str | None = None) -> None:
        """Open a stream; it is closed again if whoever waits for it is cancelled."""
        try:
            await whole(stream.open(path))
        except asyncio.CancelledError:
            await stream.close()
            raise

    def new_stream(self, options: dict[str, Any]) -> AsyncPoolStream:
        """A stream that is on no replica yet."""
        name = f"stream-{next(self._names)}"
        stream = AsyncPoolStream(self, name, options, self._seeds.getrandbits(62))
        self._streams.add(stream)
        return stream

    def forget(self, stream: Resident) -> None:
        self._streams.discard(stream)

    async def pick_for_stream(self, stream: Resident) -> Member:
        """The replica on which the fewest live; the stream counts there from now on."""
        member = await self._replicas.pick(lambda m: (len(m.streams), m.load))
        member.streams.add(stream)
        return member

    def report_lost(self, member: Member, error: Exception) -> None:
        self._replicas.report_lost(member, error)

    # Replicas

    @property
    def num_replicas(self) -> int:
        """As many are wanted."""
        return self._replicas.size

    async def stats(self) -> PoolStats:
        """Describe the pool: the load by which to choose the number of replicas."""
        replicas = []
        for member in self._replicas.members:
            try:
                if member.is_ready:
                    engine = await member.call("stats")
                    replicas.append(
                        ReplicaStats(
                            number=member.number,
                            pid=member.pid,
                            load=member.load,
                            num_streams=len(member.streams),
                            engine=engine,
                        )
                    )
            except ReplicaLostError as error:
                self._replicas.report_lost(member, error)
        return PoolStats(
            replicas=replicas,
            num_replicas=self._replicas.size,
            num_streams=len(self._streams),
            num_lost_replicas=self._replicas.num_lost,
            num_restored_streams=self.num_restored_streams,
            num_replayed_tokens=self.num_replayed_tokens,
        )

    async def wait_until_ready(self) -> None:
        """Wait until as many replicas as are wanted are ready, after one has died for example."""
        await self._replicas.wait_for_size()

    async def scale_to(self, num_replicas: int, *, drain_seconds: float = 30.0) -> None:
        """Have another number of replicas; returns when they are ready, or drained and gone.

        Raises:
            ValueError: fewer than one, or more than the cluster has room for.
        """
        num_replicas = as_int("num_replicas", num_replicas, 1)
        self._replicas.resize(num_replicas)
        members = sorted(self._replicas.members, key=lambda m: (m.is_ready, len(m.streams), m.load))
        leaving = members[: max(0, len(members) - num_replicas)]
        await asyncio.gather(*(self._replace(member, drain_seconds) for member in leaving))
        await self._replicas.wait_for_size()

    async def rolling_restart(self, *, drain_seconds: float = 30.0) -> None:
        """Replace one replica after the other. Requests and turns have ``drain_seconds`` to end;
        those that take longer go on with another worker, as after its death."""
        for member in self._replicas.members:
            await self._replace(member, drain_seconds)

    async def _replace(self, member: Member, drain_seconds: float) -> None:
        member.is_draining = True
        deadline = time.monotonic() + drain_seconds
        while member.load and not member.is_gone and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        try:
            await asyncio.gather(*(stream.save_now() for stream in list(member.streams)))
        except Exception as error:
            logger.warning("not all streams could be saved, so more is replayed: %s", error)
        await self._replicas.replace(member)
