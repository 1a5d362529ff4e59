"""`ServeOptions`: what the user may set about a service, beside its pool and its engines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paged_stream.scheduler.fields import Bytes, Integer, Number
from paged_stream.scheduler.settings import check_fields, setting
from paged_stream.scheduler.word_fields import Text, Texts
from paged_stream.setting_kinds import FilePath, Folder


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Settings of one service.

    Args:
        host: address to listen on. ``0.0.0.0`` is all of the machine's.
        port: TCP port to listen on.
        max_idle_seconds: close streams that nobody has used for so long. ``None`` keeps them until
            they are deleted.
        max_streams: keep so many streams, those that were saved included. More are refused with
            status 429; but those of responses make room.
        max_streams_per_key: the same for the streams of one key; by default as many as in all.
        max_responses: keep so many answers of ``/v1/responses`` and their streams. One that others
            went on from is the first to go.
        state_dir: folder where streams are when the service does not run. Without one, they end
            with it, and none can be saved. Of a pool, it is one that all machines share.
        api_key: keys of clients. Without any, and without ``api_key_file``, nobody is asked for
            one. Others who use the machine can read command lines; a file or the environment is
            safer.
        api_key_file: a file with more keys, one a line.
        allowed_hosts: names that clients may use for the service, ``*`` for any. By default, those
            of this machine if it listens to no other, and else any.
        allowed_origins: web sites whose pages may use the service, ``*`` for any.
        max_requests: answer so many requests at once, those that queue for the batch included; more
            are refused with status 429.
        max_connections: serve so many connections at once, idle ones included; more are closed with
            status 503. Behind Ray Serve's proxy, that decides. The process needs so many open
            files, and some more.
        max_prompt_tokens: refuse requests whose prompts have more tokens together. In streams and
            responses, the texts of messages and tools count. ``None``: as many as the body has room
            for.
        max_body_bytes: refuse larger bodies.
        request_seconds: hang up if the head or the body of a request takes longer to come.
        drain_seconds: after SIGTERM, let answers that are under way go on for so long.

    Raises:
        ValueError: names the field, its value and what is allowed.
    """

    host: str = setting("127.0.0.1", Text(form="an address"))
    port: int = setting(8000, Integer(1, 65535))
    max_idle_seconds: float | None = setting(3600.0, Number(0.0, open_low=True, optional=True))
    max_streams: int = setting(1024, Integer(1))
    max_streams_per_key: int | None = setting(None, Integer(1, optional=True))
    max_responses: int = setting(256, Integer(1))
    state_dir: FilePath | None = setting(None, Folder(optional=True))
    api_key: str | tuple[str, ...] | None = setting((), Texts())
    api_key_file: str | None = setting(None, Text(form="a file", optional=True))
    allowed_hosts: str | tuple[str, ...] | None = setting((), Texts())
    allowed_origins: str | tuple[str, ...] | None = setting((), Texts())
    max_requests: int = setting(1024, Integer(1))
    max_connections: int = setting(2048, Integer(1))
    max_prompt_tokens: int | None = setting(None, Integer(1, optional=True))
    max_body_bytes: int = setting(16 << 20, Bytes(1))
    request_seconds: float = setting(60.0, Number(0.0, open_low=True))
    drain_seconds: float = setting(30.0, Number(0.0))

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys, those of the file included.

        Raises:
            ValueError: the file cannot be read, or has no key.
        """
        keys = tuple(self.api_key or ())
        if self.api_key_file is None:
            return keys
        try:
            lines = Path(self.api_key_file).expanduser().read_text(encoding="utf-8").splitlines()
            found = tuple(line.strip() for line in lines if line.strip())
            if not found:
                raise ValueError("it has no key")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"api_key_file={self.api_key_file!r} cannot be used: {error}"
            ) from None
        return keys + found
