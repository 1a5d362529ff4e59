"""A connection that breaks when the driver of a batch dies, so that its workers end at once.

Ray ends them too, but some seconds later, and until then they hold processors and GPUs that the
next driver waits for.
"""

from __future__ import annotations

import logging
import os
import socket
import threading

logger = logging.getLogger(__name__)
_MOST_WORKERS = 4096  # that connect; the others end when Ray notices
_CONNECT_SECONDS = 10.0

Address = tuple[str, int]


class Lifeline:
    """The driver's end. It is closed by `close`, or by the death of the process.

    Connections wait for ever to be accepted, which is all that they are for.

    Args:
        host: address of this machine that workers reach.
    """

    def __init__(self, host: str) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, 0), family=family, backlog=_MOST_WORKERS)
        self.address: Address = (host, self._socket.getsockname()[1])

    def close(self) -> None:
        self._socket.close()


def end_with(address: Address) -> None:
    """End this process as soon as a lifeline is closed. One that cannot be reached is left alone.

    Args:
        address: of the `Lifeline`.
    """
    try:
        connection = socket.create_connection(address, _CONNECT_SECONDS)
    except OSError as error:
        logger.warning("the driver at %s:%d cannot be reached: %s", *address, error)
        return
    connection.settimeout(None)
    threading.Thread(target=_wait, args=(connection,), name="lifeline", daemon=True).start()


def _wait(connection: socket.socket) -> None:
    try:
        connection.recv(1)
    except OSError:
        pass
    os._exit(1)
