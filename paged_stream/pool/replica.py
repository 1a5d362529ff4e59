"""One replica as its pool sees it: how busy it is, and how to call it."""

from __future__ import annotations

from typing import Any, Protocol

from paged_stream.engine.lifetime import EngineStoppedError
from paged_stream.system.ray_extra import import_ray

ray = import_ray()


class Resident(Protocol):
    """A stream that lives on a replica."""

    async def save_now(self) -> None:
        """Save it as it is now, so that another replica can go on with it."""
        ...


class ReplicaLostError(RuntimeError):
    """A replica died, or its engine did, before it had answered."""

    def __init__(self, replica: Replica, reason: str) -> None:
        super().__init__(f"replica {replica.number}: {reason}")
        self.replica = replica


class Replica:
    """A process that Ray runs for the pool, with an engine in it.

    Attributes:
        pid: the process's id, once the engine is ready.
        load: how many requests and turns run there.
        streams: those that live there.
        is_ready: whether its model is loaded.
        is_draining: whether it takes no more work, because it is about to be ended.
        is_ending: whether it is being ended, so that its death is no loss.
        is_gone: whether it has died or was ended.

    Args:
        number: its number; no other replica of the pool ever has the same.
        process: Ray's handle of a `ReplicaProcess`.
    """

    def __init__(self, number: int, process: Any) -> None:
        self.number = number
        self.process = process
        self.pid = 0
        self.load = 0
        self.streams: set[Resident] = set()
        self.is_ready = self.is_draining = self.is_ending = self.is_gone = False

    async def call(self, method: str, *args: Any) -> Any:
        """Call a method of the process.

        Raises:
            ReplicaLostError: the replica is gone. It may or may not have done what it was asked.
            ValueError: as the method.
        """
        try:
            return await getattr(self.process, method).remote(*args)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, EngineStoppedError):
                raise ReplicaLostError(self, str(error.cause)) from error
            raise error.cause from None
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            raise ReplicaLostError(self, reason) from error

    def call_soon(self, method: str, *args: Any) -> None:
        """Call a method of the process without waiting for it. Does nothing if the replica is
        gone."""
        if not self.is_gone:
            getattr(self.process, method).remote(*args)

    def kill(self) -> None:
        """End the process, whatever it is doing."""
        ray.kill(self.process)
