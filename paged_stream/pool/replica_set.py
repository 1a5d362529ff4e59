"""The replicas of a pool: started, watched, replaced when they die, and chosen by load."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from paged_stream.config import EngineConfig
from paged_stream.engine.lifetime import EngineStoppedError
from paged_stream.pool.replica_process import Replica
from paged_stream.system.ray_extra import import_ray

ray = import_ray()
logger = logging.getLogger(__name__)

# Replicas that fail one after the other before any gets ready, until the pool gives up.
MAX_FAILED_STARTS = 3
_CALLS_AT_ONCE = 100_000  # every turn waits in a call of its own
_GRACE = 10.0  # seconds for an engine that is replaced to end its own processes


class ReplicaLostError(RuntimeError):
    """A replica died, or its engine did, before it had answered."""

    def __init__(self, member: Member, reason: str) -> None:
        super().__init__(f"replica {member.number}: {reason}")
        self.member = member


class PoolError(RuntimeError):
    """The pool cannot do what it was asked for any more; says why."""


class Member:
    """One replica as the pool sees it.

    ``load`` counts the requests and turns that run there, ``streams`` those that live there.
    """

    def __init__(self, number: int, actor: Any) -> None:
        self.number = number
        self.actor = actor
        self.pid = 0
        self.load = 0
        self.streams: set[Any] = set()
        self.is_ready = self.is_draining = self.is_ending = self.is_gone = False

    async def call(self, method: str, *args: Any) -> Any:
        """Call a method of the replica.

        Raises:
            ReplicaLostError: it is gone, and whatever was asked for with it.
            ValueError: as the method.
        """
        try:
            return await getattr(self.actor, method).remote(*args)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, EngineStoppedError):
                raise ReplicaLostError(self, str(error.cause)) from error
            raise error.cause from None
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            raise ReplicaLostError(self, reason) from error


class ReplicaSet:
    """Keeps as many replicas as are wanted. Belongs to one event loop."""

    def __init__(self, config: EngineConfig, size: int) -> None:
        self._config = config
        self._members: list[Member] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()
        self._failed_starts = 0
        self._failure: Exception | None = None
        self._is_closed = False
        self.size = size
        self.num_started = 0
        self.num_lost = 0

    @property
    def members(self) -> list[Member]:
        return list(self._members)

    async def start(self) -> None:
        """Start all, and return when they are ready.

        Raises:
            ValueError: as `LLMEngine`.
        """
        if not ray.is_initialized():
            await asyncio.to_thread(ray.init, include_dashboard=False)
        self.resize(self.size)
        await self.wait_for_size()

    def resize(self, size: int) -> None:
        """Want another number of replicas; more of them start at once, none ends.

        Raises:
            ValueError: the cluster has no room for so many.
        """
        self._check_room(size)
        self.size = size
        self._fill()

    async def wait_for_size(self) -> None:
        """Wait until as many replicas as are wanted are ready."""
        await self._wait(lambda: sum(m.is_ready for m in self._members) >= self.size)

    async def pick(self, key: Callable[[Member], Any]) -> Member:
        """The replica with the smallest key, once there is one that takes work.

        Raises:
            PoolError: no replica can be started any more.
        """

        def candidates() -> list[Member]:
            return [m for m in self._members if m.is_ready and not m.is_draining]

        await self._wait(lambda: bool(candidates()))
        return min(candidates(), key=key)

    def report_lost(self, member: Member, error: Exception) -> None:
        """End a replica that did not answer, so that it does nothing any more, and replace it."""
        if not (member.is_gone or member.is_ending or self._is_closed):
            logger.warning("lost %s", error)
            self.num_lost += 1
            if not member.is_ready:
                self._note_failed_start(error)
        self._remove(member)

    def _remove(self, member: Member) -> None:
        if member.is_gone:
            return
        member.is_gone = True
        self._members.remove(member)
        try:
            ray.kill(member.actor)
        except Exception as error:  # it may be gone, or Ray itself
            logger.debug("ray.kill: %r", error)
        if not self._is_closed:
            self._fill()
            self._notify()

    async def replace(self, member: Member) -> None:
        """End a replica that was drained, and start another unless there are enough."""
        await self._end(member)
        await self.wait_for_size()

    async def close(self) -> None:
        self._is_closed = True
        self._failure = self._failure or PoolError("the pool was shut down")
        await asyncio.gather(*(self._end(member) for member in self.members))
        for task in self._tasks:
            task.cancel()
        self._notify()

    async def _end(self, member: Member) -> None:
        member.is_ending = True
        if member.is_ready:  # one that is being started has nothing to end, and answers late
            try:
                await asyncio.wait_for(member.call("close_engine"), _GRACE)
            except (TimeoutError, ReplicaLostError):
                pass
        self._remove(member)

    def _fill(self) -> None:
        while self._failure is None and len(self._members) < self.size:
            actor = ray.remote(Replica).options(max_concurrency=_CALLS_AT_ONCE, **self._needs())
            member = Member(self.num_started, actor.remote())
            self.num_started += 1
            self._members.append(member)
            self._spawn(self._watch(member))

    async def _watch(self, member: Member) -> None:
        """Load a replica's model, and notice its end."""
        try:
            member.pid = await member.call("load", self._config)
            member.is_ready = True
            self._failed_starts = 0
            self._notify()
            await member.call("live")
        except Exception as error:
            self.report_lost(member, error)

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

        self._spawn(notify())

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)  # the loop itself does not keep it
        task.add_done_callback(self._tasks.discard)

    def _needs(self) -> dict[str, float]:
        """What Ray reserves for a replica; ranks of a model that is shared reserve theirs."""
        config = self._config
        if config.tensor_parallel_size > 1:
            return {"num_cpus": 0}
        gpus = ray.cluster_resources().get("GPU", 0)
        if str(config.device).startswith("cuda") or (config.device == "auto" and gpus):
            return {"num_cpus": 0, "num_gpus": 1}
        return {"num_cpus": config.num_threads or 1}

    def _check_room(self, size: int) -> None:
        has, ranks = ray.cluster_resources(), self._config.tensor_parallel_size
        needs = self._needs()
        if ranks > 1:
            if has.get("GPU", 0) and self._config.device != "cpu":
                needs = {"num_gpus": ranks}
            else:
                needs = {"num_cpus": ranks * (self._config.num_threads or 1)}
        for name, amount in needs.items():
            kind = name.removeprefix("num_").removesuffix("s").upper()
            if has.get(kind, 0) < amount * size:
                raise ValueError(
                    f"num_replicas={size} needs {amount * size:g} {kind}s, and the Ray "
                    f"cluster has {has.get(kind, 0):g}"
                )
