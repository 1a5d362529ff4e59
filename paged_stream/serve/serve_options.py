"""`ServeOptions`: what the user may set about a service, beside its pool and its engines."""

from __future__ import annotations

from dataclasses import dataclass

from paged_stream.scheduler.fields import Integer, Number
from paged_stream.scheduler.settings import check_fields, setting
from paged_stream.scheduler.word_fields import Text


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Settings of one service.

    Args:
        host: address to listen on. ``0.0.0.0`` is all of the machine's.
        port: TCP port to listen on.
        max_idle_seconds: close streams that no request has named for so long, when another one is
            opened. ``None`` keeps them until they are deleted.

    Raises:
        ValueError: names the field, its value and what is allowed.
    """

    host: str = setting("127.0.0.1", Text(form="an address"))
    port: int = setting(8000, Integer(1, 65535))
    max_idle_seconds: float | None = setting(None, Number(0.0, open_low=True, optional=True))

    def __post_init__(self) -> None:
        check_fields(self)
