"""Shards as a source for Ray Data: tasks read them and give each part as soon as it is read."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from paged_stream.batch.reading import Reader
from paged_stream.batch.run_folder import Committed
from paged_stream.batch.shards import InputShard, Shards

# A task reads shards that follow each other. With too many tasks, Ray is busy with them alone.
_MOST_TASKS = 1024


class ShardSource(Datasource):
    """Gives a row per part of a shard, so that Ray Data never parts it.

    Args:
        committed: parts that are not wanted.
    """

    def __init__(self, shards: Shards, reader: Reader, committed: Committed) -> None:
        super().__init__()
        self._shards = shards
        self._reader = reader
        self._committed = committed
        self._wanted = [i for i in range(len(shards)) if not committed.has(i)]

    @property
    def num_tasks(self) -> int:
        return min(len(self._wanted), _MOST_TASKS)

    def get_name(self) -> str:
        return "Shards"

    def estimate_inmemory_data_size(self) -> int:
        return self._shards.num_bytes

    def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[ReadTask]:
        count, total = self.num_tasks, len(self._wanted)
        bounds = [total * i // count for i in range(count + 1)]
        return [self._task(self._wanted[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]

    def _task(self, numbers: Sequence[int]) -> ReadTask:
        shards = [self._shards[number] for number in numbers]
        # A million paths are much, but much the same.
        packed = zlib.compress(pickle.dumps(shards), 1)
        done = {n: self._committed.parts[n] for n in numbers if n in self._committed.parts}
        size = sum(shard.num_bytes for shard in shards)
        about = BlockMetadata(num_rows=None, size_bytes=size, input_files=None, exec_stats=None)
        return ReadTask(partial(_read, packed, self._reader, done), about)


def _read(packed: bytes, reader: Reader, done: dict[int, set[int]]) -> Iterator[Any]:
    import pyarrow as pa

    shards: list[InputShard] = pickle.loads(zlib.decompress(packed))
    for shard in shards:
        for part in reader.parts(shard):
            if part.number not in done.get(shard.number, ()):
                yield pa.table({"part": pa.array([part.to_bytes()], pa.large_binary())})
