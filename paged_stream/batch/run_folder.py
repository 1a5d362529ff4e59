"""A run's folder: shards are committed one by one, whole or not at all, and only once.

    manifest.json          settings; at the end also totals and all shards
    data/part-000012.parquet, errors/part-000012.jsonl   rows with output, and without
    shards/000012.json     written last: the shard is committed

All names follow from the shard, and what is in the files from the shard and the settings. So a
shard that is computed twice, because somebody died between two of these steps or was thought dead,
gives the same files again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from paged_stream.batch.files import OutputFolder
from paged_stream.batch.reading import BadRow
from paged_stream.batch.shards import InputShard

MANIFEST = "manifest.json"
_VERSION = 1


class RunFolder:
    """Reads and writes a run's folder.

    Args:
        suffix: of data files.
    """

    def __init__(self, uri: str, suffix: str) -> None:
        self._folder = OutputFolder(uri)
        self._suffix = suffix

    # A worker's part

    def commit(
        self, shard: InputShard, data: bytes, bad: Sequence[BadRow], about: Mapping[str, Any]
    ) -> None:
        """Write a shard's output.

        Args:
            about: totals of the shard, for its record.
        """
        name = f"data/part-{shard.number:06d}.{self._suffix}"
        errors = f"errors/part-{shard.number:06d}.jsonl"
        size = self._folder.write(name, lambda stream: stream.write(data))
        if bad:
            lines = [json.dumps({"shard": shard.number, **asdict(row)}) + "\n" for row in bad]
            self._folder.write(errors, lambda stream: stream.write("".join(lines).encode()))
        record = {"shard": shard.number, "file": name, "bytes": size, "bad": len(bad), **about}
        if bad:
            record["errors"] = errors
        self._folder.write(_record(shard.number), lambda stream: stream.write(_json(record)))

    # The driver's part

    def manifest(self) -> dict[str, Any] | None:
        """What `begin` or `complete` has written; ``None`` before."""
        content = self._folder.read(MANIFEST)
        return None if content is None else json.loads(content)

    def begin(self, manifest: Mapping[str, Any]) -> None:
        """Make the folders and write the settings."""
        self._folder.make("data", "errors", "shards")
        if self.manifest() is None:
            self._write_manifest({**manifest, "status": "running"})

    def committed(self) -> list[dict[str, Any]]:
        """Records of the shards that are committed, by number."""
        names = self._folder.names("shards")
        contents = [self._folder.read(f"shards/{name}") for name in names]
        return [json.loads(content) for content in contents if content is not None]

    def complete(
        self,
        manifest: Mapping[str, Any],
        totals: Mapping[str, Any],
        records: Sequence[Mapping[str, Any]],
    ) -> None:
        """Write that all is done."""
        self._folder.clean()
        self._write_manifest(
            {**manifest, "status": "complete", "totals": totals, "shards": list(records)}
        )

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        content = _json({"version": _VERSION, **manifest})
        self._folder.write(MANIFEST, lambda stream: stream.write(content))


def check_settings(saved: Mapping[str, Any], settings: Mapping[str, Any], uri: str) -> None:
    """Refuse to go on with a run under other settings.

    Raises:
        ValueError: names a setting, what it was and what it is.
    """
    now = json.loads(_json(settings))  # as it would have been read back
    for name in [*saved, *(name for name in now if name not in saved)]:
        before, after = saved.get(name), now.get(name)
        if before == after:
            continue
        if isinstance(before, list) and isinstance(after, list):
            before, after = _first_difference(before, after)
        raise ValueError(
            f"resume: {name} is {after!r}, but {uri} was begun with {before!r}; pass what it was "
            "begun with, or another output"
        )


def _first_difference(before: list[Any], after: list[Any]) -> tuple[Any, Any]:
    for old, new in zip(before, after, strict=False):
        if old != new:
            return old, new
    return f"{len(before)} entries", f"{len(after)} entries"


def _record(number: int) -> str:
    return f"shards/{number:06d}.json"


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
