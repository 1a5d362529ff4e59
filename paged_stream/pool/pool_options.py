"""`PoolOptions`: what the user may set about a pool, beside its engines' settings."""

from __future__ import annotations

from dataclasses import dataclass

from paged_stream.scheduler.fields import Integer
from paged_stream.scheduler.settings import check_fields, setting
from paged_stream.setting_kinds import FilePath, Folder


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """Settings of one pool.

    Args:
        num_replicas: engines, each in a process of its own, with a GPU if there are any, else with
            ``num_threads`` (one if not set) processors. With ``tensor_parallel_size``, each is as
            many processes.
        save_dir: folder where streams are saved, on a file system that all machines share. ``None``
            is one for temporary files, which is enough for one machine.
        save_every_tokens: save a stream when so many tokens came since the last save. When a worker
            dies, that is about how many are computed again for each of its streams that is used
            again: no more than these, what one ``append`` brings, and what comes during a save.

    Raises:
        ValueError: names the field, its value and what is allowed.
    """

    num_replicas: int = setting(1, Integer(1))
    save_dir: FilePath | None = setting(None, Folder(optional=True))
    save_every_tokens: int = setting(1024, Integer(1))

    def __post_init__(self) -> None:
        check_fields(self)
