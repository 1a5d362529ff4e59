"""Answers to questions that may be asked again, each found out once."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Answers(Generic[T]):
    """Remembers the answers that were asked for last, for the coroutines of one event loop.

    Args:
        limit: how many; with 0, each question is answered anew.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: OrderedDict[bytes, asyncio.Future[T]] = OrderedDict()

    async def get(self, question: bytes, find_out: Callable[[], Awaitable[T]]) -> T:
        """The answer to a question. Whoever asks while it is being found out waits for it; if that
        fails, it is for them as for the first, and nothing is remembered."""
        if not self._limit:
            return await find_out()
        if (known := self._known.get(question)) is not None:
            self._known.move_to_end(question)
            return await asyncio.shield(known)
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._known[question] = answer
        while len(self._known) > self._limit:
            self._known.popitem(last=False)
        try:
            answer.set_result(await find_out())
        except BaseException as error:
            if self._known.get(question) is answer:
                del self._known[question]
            if isinstance(error, asyncio.CancelledError):
                answer.cancel()
            else:
                answer.set_exception(error)
                answer.exception()  # if nobody else has asked
            raise
        return answer.result()
