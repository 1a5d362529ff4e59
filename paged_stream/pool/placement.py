"""Which replica does what: requests go where there is the least to do, streams where the fewest
live, and whatever a replica dies of is tried on another."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from paged_stream.config import EngineConfig
from paged_stream.engine.lifetime import Lifetime
from paged_stream.pool.errors import PoolError
from paged_stream.pool.pool_options import PoolOptions
from paged_stream.pool.replica import NoAnswerError, Replica, Resident
from paged_stream.pool.replica_set import ReplicaSet
from paged_stream.pool.stats import PoolStats, ReplicaStats, sum_stats
from paged_stream.pool.uninterrupted import uninterrupted

MAX_ATTEMPTS = 4  # at one thing, whether replicas die of it or do not answer


class Placement:
    """Places the requests and streams of one pool, in one event loop.

    Attributes:
        lifetime: of the pool.
        open_streams: all of them, wherever they live.
        num_restored_streams: how often a stream was restored on another replica.
        num_replayed_tokens: how many tokens were computed again for that.

    Args:
        config: settings of every replica's engine.
        options: settings of the pool.
    """

    def __init__(self, config: EngineConfig, options: PoolOptions) -> None:
        self.config = config
        self.lifetime = Lifetime("pool")
        self.replicas = ReplicaSet(config, options.num_replicas, options.heartbeat_seconds)
        self.save_every_tokens = options.save_every_tokens
        self.open_streams: set[Resident] = set()
        self.num_restored_streams = 0
        self.num_replayed_tokens = 0
        self._save_dir = options.save_dir
        self._folder: Path | None = None
        self._numbers = itertools.count()

    async def start(self) -> None:
        """Start the replicas and wait until all are ready. Harmless once that is done.

        Raises:
            ValueError: as `LLMEngine`, or the cluster has no room.
        """
        if self._folder is not None or self.lifetime.is_over:
            self.check()
            return
        save_dir = None if self._save_dir is None else Path(self._save_dir).expanduser()
        if save_dir is not None:
            save_dir.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix="streams-", dir=save_dir)).resolve()
        try:
            await self.replicas.start()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End the replicas and remove the saved streams. Harmless twice, before the start, and in a
        forked child."""
        if not self.lifetime.is_over:
            self.lifetime.is_closed = True
            await uninterrupted(self._close())

    async def _close(self) -> None:
        await self.replicas.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def check(self) -> None:
        """Refuse to be used unless the pool is open.

        Raises:
            PoolError: it is closed, or was not started.
            RuntimeError: it was made in another process.
        """
        self.lifetime.check_process()
        if self.lifetime.is_closed:
            raise PoolError("the pool is closed")
        if self._folder is None:
            raise PoolError("the pool was not started; use it in `async with`")

    @property
    def folder(self) -> Path:
        """The folder for saved streams, an absolute path."""
        assert self._folder is not None, "the pool was not started"
        return self._folder

    def new_name(self, kind: str) -> str:
        """Make a name that nothing else in this pool has."""
        return f"{kind}-{next(self._numbers)}"

    @property
    def summary(self) -> str:
        """The model, the replicas and the state in words, at any time and in any thread."""
        return f"of {self.config.model!r}: {self.replicas.size} replicas, {self.lifetime.state}"

    async def stats(self) -> PoolStats:
        """Ask every replica for its engine's statistics, and add them up."""
        self.check()
        answers = await self._call_all("stats")
        sums = sum_stats([engine for _, engine in answers])
        return PoolStats(
            **(sums | {"num_streams": len(self.open_streams)}),
            replicas=[
                ReplicaStats(
                    number=replica.number,
                    pid=replica.pid,
                    load=replica.load,
                    num_streams=len(replica.streams),
                    engine=engine,
                )
                for replica, engine in answers
            ],
            num_replicas=self.replicas.size,
            num_lost_replicas=self.replicas.num_lost,
            num_restored_streams=self.num_restored_streams,
            num_replayed_tokens=self.num_replayed_tokens,
        )

    async def ask_all(self, method: str, *args: Any) -> list[Any]:
        """Call a method on every replica that is ready, one after the other; returns the answers
        that there were.

        Raises:
            ValueError: as the method, on the first that raises it.
        """
        self.check()
        return [answer for _, answer in await self._call_all(method, *args)]

    async def _call_all(self, method: str, *args: Any) -> list[tuple[Replica, Any]]:
        answers = []
        for replica in self.replicas.replicas:
            if not replica.is_ready:
                continue
            try:
                answers.append((replica, await replica.call(method, *args)))
            except NoAnswerError as error:
                self.replicas.report(error)
        return answers

    @asynccontextmanager
    async def replica_for_request(self) -> AsyncIterator[Replica]:
        """Pick the replica with the least to do. It counts as busy until the block ends.

        Raises:
            PoolError: there is none, and none can be started any more.
        """
        replica = await self.replicas.pick(lambda r: (r.load, len(r.streams)))
        replica.load += 1
        try:
            yield replica
        finally:
            replica.load -= 1

    async def replica_for_stream(self, stream: Resident) -> Replica:
        """Pick the replica on which the fewest streams live. This one counts there from now on.

        Raises:
            PoolError: as `replica_for_request`.
        """
        replica = await self.replicas.pick(lambda r: (len(r.streams), r.load))
        replica.streams.add(stream)
        return replica

    async def ask(self, method: str, *args: Any) -> Any:
        """Call a method on some replica; again, perhaps on another one, if there is no answer.

        Args:
            method: one that changes nothing on the replica.

        Raises:
            PoolError: no replica can do it.
            ValueError: as the method.
        """
        self.check()
        attempts = Attempts(self.replicas)
        while True:
            async with self.replica_for_request() as replica:
                try:
                    return await replica.call(method, *args)
                except NoAnswerError as error:
                    attempts.failed(error)


class Attempts:
    """Attempts at one thing, on one replica after the other."""

    def __init__(self, replicas: ReplicaSet) -> None:
        self._replicas = replicas
        self._num_failed = 0

    def failed(self, error: NoAnswerError) -> None:
        """Note that there was no answer, and report the replica if it is lost.

        Raises:
            PoolError: it has failed so often that it would fail again.
        """
        self._replicas.report(error)
        self._num_failed += 1
        if self._num_failed >= MAX_ATTEMPTS:
            times = f"{self._num_failed} replicas, one after the other"
            raise PoolError(f"there was no answer from {times}: {error}") from error

    def succeeded(self) -> None:
        """Begin to count anew: what comes next is another thing."""
        self._num_failed = 0
