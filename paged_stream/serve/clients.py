"""Ends what a client has asked for when the client leaves, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

T = TypeVar("T")


class ClientLeftError(Exception):
    """There is nobody left to answer."""


async def while_connected(receive: Receive, answering: Coroutine[Any, Any, T]) -> T:
    """Wait for a coroutine. If the client leaves, cancel it, and wait until it has cleaned up.

    Args:
        receive: of the request, whose body has been read.

    Raises:
        ClientLeftError: the client has left.
    """
    task, departure = asyncio.ensure_future(answering), asyncio.ensure_future(_departure(receive))
    try:
        await asyncio.wait([task, departure], return_when=asyncio.FIRST_COMPLETED)
    finally:
        task.cancel()  # does nothing if it is done
        departure.cancel()
        await asyncio.wait([task, departure])
    if task.cancelled():
        raise ClientLeftError
    return task.result()


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
