"""Shards as a source for Ray Data: a task reads each when there is room for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from paged_stream.batch.reading import read_shard
from paged_stream.batch.shards import InputShard


class ShardSource(Datasource):
    """Gives a row per shard, so that Ray Data never parts it: its index, and all that it holds."""

    def __init__(self, shards: Sequence[InputShard], max_row_bytes: int) -> None:
        super().__init__()
        self._shards = shards
        self._max_row_bytes = max_row_bytes

    def get_name(self) -> str:
        return "Shards"

    def estimate_inmemory_data_size(self) -> int:
        return sum(shard.num_bytes for shard in self._shards)

    def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[ReadTask]:
        return [
            ReadTask(
                partial(_read, index, shard, self._max_row_bytes),
                BlockMetadata(
                    num_rows=1, size_bytes=shard.num_bytes, input_files=None, exec_stats=None
                ),
            )
            for index, shard in enumerate(self._shards)
        ]


def _read(index: int, shard: InputShard, max_row_bytes: int) -> Iterable[Any]:
    import pyarrow as pa

    rows = read_shard(shard, max_row_bytes).to_bytes()
    yield pa.table({"index": [index], "rows": pa.array([rows], pa.large_binary())})
