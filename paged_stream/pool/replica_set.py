"""The replicas of a pool: starting, watching and replacing them, and choosing among them."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from paged_stream.config import EngineConfig
from paged_stream.pool.cluster import check_room, replica_options
from paged_stream.pool.errors import PoolError
from paged_stream.pool.heartbeat import listen
from paged_stream.pool.replica import (
    NoAnswerError,
    Replica,
    ReplicaLostError,
    by_the_pool,
    ray,
)
from paged_stream.pool.replica_process import ReplicaProcess
from paged_stream.system.ray_extra import start_ray

logger = logging.getLogger(__name__)

# Replicas that fail one after the other before any gets ready, until the pool gives up.
MAX_FAILED_STARTS = 3
_CALLS_AT_ONCE = 100_000  # every turn waits in a call of its own
_GRACE = 10.0  # seconds for an engine that is replaced to end its own processes


class ReplicaSet:
    """Keeps the wanted number of replicas alive, in one event loop.

    Attributes:
        size: how many replicas are wanted.
        num_started: how many were started so far.
        num_lost: how many of them died or did not answer.

    Args:
        heartbeat_seconds: as in `PoolOptions`.
    """

    def __init__(self, config: EngineConfig, size: int, heartbeat_seconds: float) -> None:
        self._config = config
        self._heartbeat_seconds = heartbeat_seconds
        self._replicas: list[Replica] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()
        self._failed_starts = 0
        self._failure: Exception | None = None
        self._is_closed = False
        self.size = size
        self.num_started = 0
        self.num_lost = 0

    @property
    def replicas(self) -> list[Replica]:
        return list(self._replicas)

    async def start(self) -> None:
        """Start all replicas and wait until they are ready.

        Raises:
            ValueError: as `LLMEngine`.
        """
        await asyncio.to_thread(start_ray, ray)
        self._want(self.size)
        await self.wait_for_size()

    async def resize(self, size: int, drain_seconds: float) -> None:
        """Change the number of replicas, and wait until new ones are ready and others gone.

        Raises:
            ValueError: the cluster has no room for so many.
        """
        self._want(size)
        by_use = sorted(self._replicas, key=lambda r: (r.is_ready, len(r.streams), r.load))
        leaving = by_use[: max(0, len(by_use) - size)]
        await asyncio.gather(*(self._replace(replica, drain_seconds) for replica in leaving))
        await self.wait_for_size()

    async def restart(self, drain_seconds: float) -> None:
        """Replace one replica after the other."""
        for replica in self.replicas:
            await self._replace(replica, drain_seconds)

    def _want(self, size: int) -> None:
        """Start the replicas that are missing. None is ended."""
        check_room(self._config, size)
        self.size = size
        self._fill()

    async def wait_for_size(self) -> None:
        """Wait until the wanted number of replicas are ready.

        Raises:
            PoolError: no replica can be started any more.
        """
        await self._wait(lambda: sum(r.is_ready for r in self._replicas) >= self.size)

    async def pick(self, key: Callable[[Replica], Any]) -> Replica:
        """Choose the replica with the smallest key, once there is one that takes work.

        Raises:
            PoolError: no replica can be started any more.
        """

        def candidates() -> list[Replica]:
            return [r for r in self._replicas if r.takes_work]

        await self._wait(lambda: bool(candidates()))
        return min(candidates(), key=key)

    def report(self, error: NoAnswerError) -> None:
        """Replace the replica that a call had no answer from, if it is lost. Otherwise its
        heartbeat decides."""
        if isinstance(error, ReplicaLostError):
            self.report_lost(error.replica, error)

    def report_lost(self, replica: Replica, error: Exception) -> None:
        """Kill a replica that is lost, so that it does nothing any more, and replace it."""
        if not (replica.is_gone or replica.is_ending or self._is_closed):
            logger.warning("lost %s", error)
            self.num_lost += 1
            if not replica.is_ready:
                self._note_failed_start(error)
        self._remove(replica)

    def _remove(self, replica: Replica) -> None:
        if replica.is_gone:
            return
        replica.is_gone = True
        self._replicas.remove(replica)
        try:
            replica.kill()
        except Exception as error:  # it may be gone, or Ray itself
            logger.debug("ray.kill: %r", error)
        if not self._is_closed:
            try:
                self._fill()
            except Exception as error:  # Ray itself is gone
                self._failure = PoolError(f"no replica can be started any more: {error}")
            self._notify()

    async def _replace(self, replica: Replica, drain_seconds: float) -> None:
        """Let a replica finish its work, save its streams, end it, and start another one unless
        there are enough."""
        replica.is_draining = True
        deadline = time.monotonic() + drain_seconds
        while replica.load and not replica.is_gone and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        saves = (stream.save_now() for stream in list(replica.streams))
        for result in await asyncio.gather(*saves, return_exceptions=True):
            if isinstance(result, Exception):
                logger.warning("a stream could not be saved, so more is replayed: %s", result)
        await self._end(replica)
        await self.wait_for_size()

    async def close(self) -> None:
        """End all replicas. Whoever waits for one gets a `PoolError`."""
        self._is_closed = True
        self._failure = self._failure or PoolError("the pool is closed")
        await asyncio.gather(*(self._end(replica) for replica in self.replicas))
        for task in self._tasks:
            task.cancel()
        self._notify()

    async def _end(self, replica: Replica) -> None:
        replica.is_ending = True
        if replica.is_ready:  # one that is being started has nothing to end, and answers late
            try:
                await asyncio.wait_for(replica.call("close_engine"), _GRACE)
            except (TimeoutError, NoAnswerError):
                pass
        self._remove(replica)

    def _fill(self) -> None:
        while self._failure is None and len(self._replicas) < self.size:
            process = ray.remote(ReplicaProcess).options(
                max_concurrency=_CALLS_AT_ONCE, **replica_options(self._config)
            )
            replica = Replica(self.num_started, by_the_pool(process.remote))
            self.num_started += 1
            self._replicas.append(replica)
            self.spawn(self._watch(replica))

    async def _watch(self, replica: Replica) -> None:
        """Load a replica's model, and notice its end."""
        try:
            replica.pid = await replica.call("load", self._config)
            replica.is_ready = True
            self._failed_starts = 0
            self._notify()
            await listen(replica, self._heartbeat_seconds, self._notify)
        except Exception as error:
            self.report_lost(replica, error)

    def _note_failed_start(self, error: Exception) -> None:
        self._failed_starts += 1
        if isinstance(error, ValueError | ImportError):
            self._failure = error  # another try would end in the same way
        elif self._failed_starts >= MAX_FAILED_STARTS:
            self._failure = PoolError(
                f"{self._failed_starts} replicas failed to start, one after the other: {error}"
            )

    async def _wait(self, condition: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._failure is not None or condition())
        if self._failure is not None:
            raise type(self._failure)(*self._failure.args) from self._failure

    def _notify(self) -> None:
        async def notify() -> None:
            async with self._changed:
                self._changed.notify_all()

        self.spawn(notify())

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in the background, until the set is closed."""
        # In a context of its own: it outlives the request that this may be part of.
        task = asyncio.get_running_loop().create_task(coroutine, context=contextvars.Context())
        self._tasks.add(task)  # the loop itself does not keep it
        task.add_done_callback(self._tasks.discard)
