"""One replica as its pool sees it: how busy it is, and how to call it."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable
from typing import Any, Protocol

from paged_stream.engine.lifetime import EngineStoppedError
from paged_stream.system.ray_extra import import_ray
from paged_stream.system.trace_context import to_headers

ray = import_ray()
logger = logging.getLogger(__name__)
_MAX_CLEANUPS = 4  # calls without an answer, after which something stays on the replica


class Resident(Protocol):
    """A stream that lives on a replica."""

    async def save_now(self) -> None:
        """Save it as it is now, so that another replica can go on with it."""
        ...


class NoAnswerError(RuntimeError):
    """A call to a replica ended without an answer. The replica may or may not have done what it was
    asked, and may well be alive."""

    def __init__(self, replica: Replica, reason: str) -> None:
        super().__init__(f"replica {replica.number}: {reason}")
        self.replica = replica


class ReplicaLostError(NoAnswerError):
    """The replica's process has died or does not answer its heartbeat, or its engine has failed."""


def by_the_pool(function: Callable[..., Any], *args: Any) -> Any:
    """Call Ray on behalf of the pool.

    Ray keeps the task that runs in a context variable. What is called within a task is a child of
    it, and is cancelled together with it, as Ray Serve does when a client leaves. What the pool
    calls is for everybody, so it is called in an empty context.
    """
    return contextvars.Context().run(function, *args)


class Replica:
    """A process that Ray runs for the pool, with an engine in it.

    Attributes:
        pid: the process's id, once the engine is ready.
        load: how many requests and turns run there.
        streams: those that live there.
        is_ready: whether its model is loaded.
        is_silent: whether Ray could not reach it, and it has not answered since.
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
        self.is_ready = self.is_silent = False
        self.is_draining = self.is_ending = self.is_gone = False

    @property
    def takes_work(self) -> bool:
        """Whether it is for the pool to choose."""
        return self.is_ready and not self.is_silent and not self.is_draining

    async def call(self, method: str, *args: Any) -> Any:
        """Call a method of the process. If the waiting task is cancelled, so is the call.

        Raises:
            ReplicaLostError: the process has died, or its engine has failed.
            NoAnswerError: Ray has no answer for another reason, and the replica may be alive.
            ValueError: as the method.
        """
        if trace := to_headers():
            method, args = "call_within", (trace, method, *args)
        answer = by_the_pool(getattr(self.process, method).remote, *args)
        try:
            return await answer
        except asyncio.CancelledError:
            if ray.is_initialized():  # otherwise this would start another Ray
                ray.cancel(answer, recursive=False)
            raise
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, EngineStoppedError):
                raise ReplicaLostError(self, str(error.cause)) from error
            raise error.cause from None
        except ray.exceptions.ActorDiedError as error:
            raise ReplicaLostError(self, _first_line(error)) from error
        except ray.exceptions.RayError as error:
            self.is_silent |= isinstance(error, ray.exceptions.ActorUnavailableError)
            raise NoAnswerError(self, _first_line(error)) from error

    async def clean_up(self, method: str, *args: Any) -> None:
        """Call a method that frees something and is harmless twice, again if there is no answer.
        Does nothing if the replica is gone."""
        for _ in range(_MAX_CLEANUPS):
            if self.is_gone:
                return
            try:
                await self.call(method, *args)
                return
            except NoAnswerError as error:
                logger.debug("%s: %s", method, error)

    def kill(self) -> None:
        """End the process, whatever it is doing."""
        if ray.is_initialized():
            ray.kill(self.process)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
