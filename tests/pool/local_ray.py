"""Ray as a pool uses it, with actors in this process and faults at chosen calls."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from typing import Any

import ray

_BESIDE = ("load", "beat", "close_engine", "stats")  # calls that are not counted
FAULTS = ("cancel when sent", "cancel when answered", "not done", "no answer", "unavailable")


class LocalRay:
    """Stands for the module ``ray`` in the pool's modules, in one event loop.

    Attributes:
        methods: what was called since the last `arm`.
    """

    exceptions = ray.exceptions

    def __init__(self) -> None:
        self.actors: list[Any] = []
        self.arm(None, None, lambda: None)

    def arm(self, number: int | None, fault: str | None, cancel: Callable[[], object]) -> None:
        """Let the fault happen to the call of this number from now on, 0 being the next one.

        Args:
            fault: one of `FAULTS`.
            cancel: cancels the victim.
        """
        self.methods: list[str] = []
        self._number, self._fault, self._cancel = number, fault, cancel

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 100.0}

    def remote(self, actor: type) -> Any:
        return _ActorClass(self, actor)

    def kill(self, handle: Any) -> None:
        handle._end()

    def cancel(self, answer: Any, *, recursive: bool) -> None:
        answer.task.cancel()

    def fault_of(self, method: str) -> str | None:
        if method in _BESIDE:
            return None
        self.methods.append(method)
        return self._fault if len(self.methods) - 1 == self._number else None

    async def answer(self, answer: Any, fault: str | None, work: Any) -> None:
        error: Exception | None = None
        if fault == "cancel when sent":
            self._cancel()
        try:
            result = None if fault == "not done" else pickle.loads(pickle.dumps(await work))
        except asyncio.CancelledError:
            error = ray.exceptions.TaskCancelledError()
        except Exception as cause:
            error = ray.exceptions.RayTaskError("method", "traceback", cause)
        if fault in ("not done", "no answer"):
            error = ray.exceptions.TaskCancelledError()
        elif fault == "unavailable":
            error = ray.exceptions.ActorUnavailableError("no connection", None)
        if not answer.done():
            answer.set_result(result) if error is None else answer.set_exception(error)
        if fault == "cancel when answered":
            self._cancel()


class _Answer(asyncio.Future):
    task: asyncio.Task


class _ActorClass:
    def __init__(self, ray: LocalRay, actor: type) -> None:
        self._ray, self._actor = ray, actor

    def options(self, **options: Any) -> Any:
        return self

    def remote(self) -> Any:
        handle = _Handle(self._ray, self._actor())
        self._ray.actors.append(handle._actor)
        return handle


class _Handle:
    def __init__(self, ray: LocalRay, actor: Any) -> None:
        self._ray, self._actor = ray, actor
        self._answers: set[_Answer] = set()

    def __getattr__(self, method: str) -> Any:
        return _Method(self, method)

    def _end(self) -> None:
        for answer in self._answers:
            answer.set_exception(ray.exceptions.ActorDiedError())
            answer.exception()


class _Method:
    def __init__(self, handle: _Handle, name: str) -> None:
        self._handle, self._name = handle, name

    def remote(self, *args: Any) -> _Answer:
        handle, loop = self._handle, asyncio.get_running_loop()
        answer = _Answer(loop=loop)
        fault = handle._ray.fault_of(self._name)
        work = getattr(handle._actor, self._name)(*pickle.loads(pickle.dumps(args)))
        if fault == "not done":
            work.close()
        answer.task = loop.create_task(handle._ray.answer(answer, fault, work))
        handle._answers.add(answer)
        answer.add_done_callback(handle._answers.discard)
        answer.add_done_callback(lambda answer: answer.cancelled() or answer.exception())
        return answer
