"""Responses that are made whoever reads them, until they are kept or have failed."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator
from contextlib import aclosing

from paged_stream.serve.choices import Json
from paged_stream.serve.errors import UnknownStreamError

_NUM_REMEMBERED = 8192  # events of a response
_NUM_OVER = 64  # responses of an owner whose end is remembered here
_ERRORS = (RuntimeError, ValueError)  # what a response that has begun may end with


class Ongoing:
    """A response that goes on by itself.

    Attributes:
        response: as the last event tells that has all of it.
        is_over: whether nothing will be added.

    Args:
        first: its first event.
        events: the others, which are read from now on.
    """

    def __init__(self, first: Json, events: AsyncGenerator[Json, None]) -> None:
        self.is_over = False
        self.response: Json = first["response"]
        self._events: deque[Json] = deque([first], maxlen=_NUM_REMEMBERED)
        self._news = asyncio.Event()
        self._task = asyncio.ensure_future(self._read(events))

    async def _read(self, events: AsyncGenerator[Json, None]) -> None:
        try:
            async with aclosing(events):
                async for event in events:
                    self._add(event)
        except asyncio.CancelledError:
            self.response = self.response | {"status": "cancelled"}
        except _ERRORS as error:
            self._fail(str(error))
        finally:
            self.is_over = True
            self._news.set()

    def _add(self, event: Json) -> None:
        self.response = event.get("response", self.response)
        self._events.append(event)
        self._news.set()

    def _fail(self, message: str) -> None:
        wrong = {"status": "failed", "error": {"code": "server_error", "message": message}}
        number = self._events[-1]["sequence_number"] + 1
        event = {"type": "response.failed", "sequence_number": number}
        self._add(event | {"response": self.response | wrong})

    async def cancel(self) -> None:
        """End it where it is, and wait for that. Harmless once it is over."""
        self._task.cancel()
        await asyncio.wait([self._task])

    def follow(self, after: int) -> AsyncGenerator[Json, None]:
        """What happens in it until its end.

        Args:
            after: the number of an event: those behind it come first.

        Raises:
            ValueError: some of them are forgotten.
        """
        if self._events[0]["sequence_number"] > after + 1:
            raise ValueError(f"starting_after={after}: only the last {_NUM_REMEMBERED} are there")
        return self._follow(after)

    async def _follow(self, after: int) -> AsyncGenerator[Json, None]:
        while True:
            oldest = self._events[0]["sequence_number"]
            at = max(after + 1 - oldest, 0)
            if at < len(self._events):
                after = self._events[at]["sequence_number"]
                yield self._events[at]
            elif self.is_over:
                return
            else:
                self._news.clear()
                await self._news.wait()


class Background:
    """The responses of a service that go on by themselves, and the last ones that did."""

    def __init__(self) -> None:
        self._owned: dict[str, OrderedDict[str, Ongoing]] = {}

    async def begin(self, owner: str, events: AsyncGenerator[Json, None]) -> Ongoing:
        """Let a response go on that has begun.

        Args:
            events: of the response, the first of which is at hand.
        """
        ongoing = Ongoing(await anext(events), events)
        own = self._owned.setdefault(owner, OrderedDict())
        own[ongoing.response["id"]] = ongoing
        for over in [name for name, each in own.items() if each.is_over][:-_NUM_OVER]:
            del own[over]
        return ongoing

    def find(self, owner: str, name: str) -> Ongoing | None:
        """One of an owner's responses, if it is remembered here."""
        return self._owned.get(owner, OrderedDict()).get(name)

    async def remove(self, owner: str, name: str) -> bool:
        """End a response and forget it.

        Returns:
            Whether it was here, and is not kept anywhere else.
        """
        ongoing = self._owned.get(owner, OrderedDict()).pop(name, None)
        if ongoing is None:
            return False
        await ongoing.cancel()
        return ongoing.response["status"] in ("cancelled", "failed")

    async def cancel(self, owner: str, name: str) -> Json:
        """End a response where it is.

        Returns:
            The response.

        Raises:
            UnknownStreamError: the owner has none of that name that was made in the background.
        """
        ongoing = self.find(owner, name)
        if ongoing is None:
            raise UnknownStreamError(f"there is no response {name!r} in the background")
        await ongoing.cancel()
        return ongoing.response

    async def end(self) -> None:
        """End all of them: the service ends."""
        for own in self._owned.values():
            for each in own.values():
                await each.cancel()
