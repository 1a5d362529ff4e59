"""`PoolOptions`: what the user may set about a pool, beside its engines' settings."""

from __future__ import annotations

from dataclasses import dataclass

from paged_stream.scheduler.fields import Integer, Number
from paged_stream.scheduler.settings import check_fields, setting
from paged_stream.setting_kinds import FilePath, Folder


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """Settings of one pool.

    Args:
        num_replicas: how many engines there are. Each runs in a process of its own, with a GPU if
            the cluster has any, else with ``num_threads`` processors (one if that is not set). With
            ``tensor_parallel_size``, each takes that many processes.
        save_dir: folder where streams are saved, on a file system that all machines share. ``None``
            is one for temporary files, which is enough for one machine.
        save_every_tokens: save a stream once this many tokens came since the last save. When a
            replica dies, each of its streams computes at most these again when it is used next,
            plus what one ``append`` brought and what came during a save.
        heartbeat_seconds: a replica whose process does not answer for so long is lost: it is ended
            and replaced. One whose process dies is replaced at once.

    Raises:
        ValueError: names the field, its value and what is allowed.
    """

    num_replicas: int = setting(1, Integer(1))
    save_dir: FilePath | None = setting(None, Folder(optional=True))
    save_every_tokens: int = setting(1024, Integer(1))
    heartbeat_seconds: float = setting(60.0, Number(0.0, open_low=True))

    def __post_init__(self) -> None:
        check_fields(self)
