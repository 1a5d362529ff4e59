"""A run's folder: parts of shards are committed one by one, whole or not at all, and only once.

    manifest.json     settings; at the end also totals
    inputs.parquet    path and size of each input file
    data/part-000012-00003.parquet, errors/part-000012-00003.jsonl   rows with output, and without
    shards/000012-00003.json   written last: part 3 of shard 12 is committed
    summary.json      of the last run: totals, rates and time

All names follow from shard and part, and what is in the files from these and the settings. So a
part that is computed twice, because somebody died between two of these steps or was thought dead,
gives the same files again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from paged_stream.batch.files import OutputFolder
from paged_stream.batch.parts import BadRow, Part

MANIFEST = "manifest.json"
_INPUTS, _SUMMARY = "inputs.parquet", "summary.json"
_VERSION = 1
_READERS, _READ_AHEAD = 16, 1024
TOTALS = ("rows", "bad", "prompt_tokens", "output_tokens")


class RunFolder:
    """Reads and writes a run's folder.

    Args:
        suffix: of data files.
    """

    def __init__(self, uri: str, suffix: str) -> None:
        self._folder = OutputFolder(uri)
        self._suffix = suffix

    # A worker's part

    def output_of(self, part: Part) -> bytes | None:
        """The data file that somebody has written for a part that is not committed; ``None`` if
        there is none. Its rows need not be computed again."""
        return self._folder.read(self._data_name(part))

    def commit(
        self,
        part: Part,
        data: bytes,
        bad: Sequence[BadRow],
        about: Mapping[str, Any],
        *,
        is_again: bool = False,
    ) -> None:
        """Write a part's output.

        Args:
            about: totals of the part, for its record.
            is_again: whether the part has been written before, perhaps with other bad rows.
        """
        number, name = _number(part), self._data_name(part)
        errors = f"errors/part-{number}.jsonl"
        size = self._folder.write(name, lambda stream: stream.write(data))
        if bad:
            lines = "".join(row.line(part.shard) for row in bad)
            self._folder.write(errors, lambda stream: stream.write(lines.encode()))
        elif is_again:
            self._folder.remove(errors)
        record: dict[str, Any] = {
            "shard": part.shard,
            "part": part.number,
            "last": part.is_last,
            "input_bytes": part.num_bytes,
            "file": name,
            "bytes": size,
            "bad": len(bad),
            **about,
        }
        if bad:
            record["errors"] = errors
        self._folder.write(f"shards/{number}.json", lambda stream: stream.write(_json(record)))

    def _data_name(self, part: Part) -> str:
        return f"data/part-{_number(part)}.{self._suffix}"

    # The driver's part

    @property
    def files(self) -> OutputFolder:
        return self._folder

    def record(self) -> RunRecord | None:
        """What the folder says of its run; ``None`` if there is none, or one that has written no
        output, as after a start that failed."""
        content = self._folder.read(MANIFEST)
        has_output = any(self._folder.names(name) for name in ("shards", "data"))
        if content is None or not has_output:
            return None
        manifest = json.loads(content)
        return RunRecord(manifest["settings"], manifest["status"], self._folder.read(_INPUTS))

    def begin(self, manifest: Mapping[str, Any], listing: bytes) -> None:
        """Make the folders and write the settings and the list of the input, before anything is
        computed.

        Args:
            listing: as `listing.to_parquet` gives it.
        """
        self._folder.make("data", "errors", "shards")
        self._folder.clean()
        self._write_manifest({**manifest, "status": "running"})
        self._folder.write(_INPUTS, lambda stream: stream.write(listing))

    def forget_bad(self) -> int:
        """Make parts with bad rows uncommitted. Their output stays where it is, so only the bad
        rows are computed again; returns how many these are."""
        count = 0
        for name, record in self._records():
            if record["bad"]:
                count += record["bad"]
                content = _json({**record, "again": True})
                self._folder.write(f"shards/{name}", partial(_put, content))
        return count

    def committed(self) -> Committed:
        """What is committed so far."""
        committed = Committed()
        for _, record in self._records():
            committed.add(record)
        return committed

    def _records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The records of committed parts, by the names of their files."""
        names = self._folder.names("shards")
        with ThreadPoolExecutor(_READERS) as pool:
            for start in range(0, len(names), _READ_AHEAD):
                some = names[start : start + _READ_AHEAD]
                read = pool.map(lambda name: self._folder.read(f"shards/{name}"), some)
                for name, content in zip(some, read, strict=True):
                    if content is not None:
                        yield name, json.loads(content)

    def complete(self, manifest: Mapping[str, Any], committed: Committed) -> None:
        """Write that all is done."""
        self._folder.clean()
        totals = {name: getattr(committed, name) for name in TOTALS}
        self._write_manifest({**manifest, "status": "complete", "totals": totals})

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write what a run has done, for programs."""
        self._folder.write(_SUMMARY, lambda stream: stream.write(_json(summary)))

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        content = _json({"version": _VERSION, **manifest})
        self._folder.write(MANIFEST, lambda stream: stream.write(content))


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run that has been begun.

    Args:
        status: ``"running"`` or ``"complete"``.
        listing: its input files, as `listing.to_parquet` gives them.
    """

    settings: Mapping[str, Any]
    status: str
    listing: bytes | None


@dataclass(slots=True)
class Committed:
    """The parts of shards that are committed, and their totals.

    Args:
        last: number of the last part, of each shard whose last part is there.
        input_bytes: of the input.
        weights: fingerprints of the weights behind them.
    """

    parts: dict[int, set[int]] = field(default_factory=dict)
    last: dict[int, int] = field(default_factory=dict)
    rows: int = 0
    bad: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    input_bytes: int = 0
    weights: set[str] = field(default_factory=set)

    @property
    def num_parts(self) -> int:
        return sum(map(len, self.parts.values()))

    @property
    def num_shards(self) -> int:
        """Shards that are there as a whole."""
        return sum(map(self.has, self.last))

    def add(self, record: Mapping[str, Any]) -> None:
        self.weights.add(record["weights"])
        if record.get("again"):
            return
        self.parts.setdefault(record["shard"], set()).add(record["part"])
        if record["last"]:
            self.last[record["shard"]] = record["part"]
        for name in (*TOTALS, "input_bytes"):
            setattr(self, name, getattr(self, name) + record[name])

    def has(self, shard: int) -> bool:
        """Whether all parts of a shard are there."""
        return len(self.parts.get(shard, ())) == self.last.get(shard, -2) + 1


def check_settings(saved: Mapping[str, Any], settings: Mapping[str, Any], uri: str) -> None:
    """Refuse to go on with a run under other settings.

    Raises:
        ValueError: names a setting, what it was and what it is.
    """
    now = json.loads(_json(settings))  # as it would have been read back
    for name in [*saved, *(name for name in now if name not in saved)]:
        before, after = saved.get(name), now.get(name)
        if before != after:
            raise ValueError(
                f"resume: {name} is {after!r}, but {uri} was begun with {before!r}; pass what it "
                "was begun with, or another output"
            )


def _number(part: Part) -> str:
    return f"{part.shard:06d}-{part.number:05d}"


def _put(content: bytes, stream: Any) -> None:
    stream.write(content)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
