"""When replicas are lost: never for what one call has come to, only for death and silence."""

from __future__ import annotations

import asyncio
import contextvars

import pytest

pytest.importorskip("ray")

import ray

from paged_stream import EngineConfig
from paged_stream.engine.lifetime import EngineStoppedError
from paged_stream.pool.heartbeat import listen
from paged_stream.pool.replica import NoAnswerError, Replica, ReplicaLostError
from paged_stream.pool.replica_set import ReplicaSet


@pytest.mark.parametrize("is_ready", [False, True])
def test_only_a_replica_that_is_ready_is_asked_to_close_its_engine(is_ready):
    asked = []

    async def answer(method):
        asked.append(method)

    async def run():
        replicas = ReplicaSet(EngineConfig(model="m"), 1, 60.0)
        replica = Replica(0, process=None)
        replica.call, replica.is_ready = answer, is_ready
        replicas._replicas.append(replica)
        await replicas.close()
        assert replicas.replicas == []

    asyncio.run(run())
    assert asked == ["close_engine"] * is_ready


class Process:
    """Ray's handle of a process whose every method answers with the next of these."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.contexts = []

    def __getattr__(self, name):
        return self

    def remote(self, *args):
        self.contexts.append(contextvars.copy_context())
        answer = asyncio.get_running_loop().create_future()
        result = self.answers.pop(0)
        if isinstance(result, BaseException):
            answer.set_exception(result)
        elif result != "nothing":
            answer.set_result(result)
        return answer


def of_task(cause):
    return ray.exceptions.RayTaskError("method", "its traceback", cause)


@pytest.mark.parametrize(
    ("error", "expected", "is_silent"),
    [
        (ray.exceptions.ActorDiedError(), ReplicaLostError, False),
        (of_task(EngineStoppedError("failed")), ReplicaLostError, False),
        (ray.exceptions.ActorUnavailableError("no connection", None), NoAnswerError, True),
        (ray.exceptions.TaskCancelledError(), NoAnswerError, False),
        (ray.exceptions.GetTimeoutError(), NoAnswerError, False),
        (ray.exceptions.ObjectStoreFullError(), NoAnswerError, False),
        (ray.exceptions.OwnerDiedError("", b"", ""), NoAnswerError, False),
        (of_task(ValueError("refused")), ValueError, False),
        (of_task(OSError("the disk is full")), OSError, False),
    ],
)
def test_what_an_error_of_ray_says_of_the_replica(error, expected, is_silent):
    async def run():
        replica = Replica(0, Process(error))
        with pytest.raises(expected) as raised:
            await replica.call("method")
        assert type(raised.value) is expected
        assert replica.is_silent == is_silent

    asyncio.run(run())


def test_calls_carry_nothing_of_who_makes_them():
    """Ray and Ray Serve keep the task and the request in context variables."""
    request = contextvars.ContextVar("request")

    async def run():
        request.set("of one client")
        process = Process(None)
        await Replica(0, process).call("method")
        assert request not in process.contexts[0]

    asyncio.run(run())


HICCUP = ray.exceptions.ActorUnavailableError("no connection", None)


@pytest.mark.parametrize(
    ("answers", "is_lost"),
    [
        (["nothing", "nothing", None], False),
        ([HICCUP, HICCUP, None], False),
        ([None, ray.exceptions.TaskCancelledError(), None], False),
        (["nothing", HICCUP, "nothing"], True),
        ([ray.exceptions.ActorDiedError()], True),
        ([of_task(EngineStoppedError("failed"))], True),
    ],
)
def test_the_heartbeat_decides(monkeypatch, answers, is_lost):
    """It is asked three times, each for a third of the limit."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    class EndedError(Exception):
        """The answers were read."""

    async def run():
        process = Process(*answers, of_task(EndedError()))
        replica = Replica(0, process)
        with pytest.raises(ReplicaLostError if is_lost else EndedError):
            await listen(replica, 0.03, lambda: None)
        assert len(process.answers) == is_lost
        assert not replica.is_silent or is_lost

    asyncio.run(run())


def test_one_that_is_silent_takes_no_work_until_it_answers():
    async def run():
        replicas = ReplicaSet(EngineConfig(model="m"), 2, 60.0)
        for number in range(2):
            replica = Replica(number, Process(HICCUP, None, of_task(KeyError())))
            replica.is_ready = True
            replicas._replicas.append(replica)
        with pytest.raises(NoAnswerError) as raised:
            await replicas.replicas[0].call("method")
        replicas.report(raised.value)
        assert replicas.num_lost == 0 and len(replicas.replicas) == 2
        assert (await replicas.pick(lambda r: r.number)).number == 1
        with pytest.raises(KeyError):
            await listen(replicas.replicas[0], 60.0, replicas._notify)
        assert (await replicas.pick(lambda r: r.number)).number == 0

    asyncio.run(run())
