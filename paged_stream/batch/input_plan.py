"""How input files are read: as which shards, and with which columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from paged_stream.batch.columns import ColumnView, find_partitions, unify
from paged_stream.batch.footers import Footers
from paged_stream.batch.inputs import InputFiles
from paged_stream.batch.parts import PartSize
from paged_stream.batch.reading import Reader
from paged_stream.batch.shards import Shards, cut, part_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class InputPlan:
    """Input files, ready to be read.

    Args:
        notes: what the user should know about them, in lines.
    """

    files: InputFiles
    shards: Shards
    reader: Reader
    notes: Sequence[str]


def plan_input(
    files: InputFiles, view: ColumnView, max_row_bytes: int, shard_bytes: int | None
) -> InputPlan:
    """Cut files into shards, and find the columns of tables.

    Args:
        view: without what follows from the files.
        max_row_bytes: as in `BatchConfig`.
        shard_bytes: as in `BatchConfig`.

    Raises:
        ValueError: a file that is damaged, files whose columns do not go together, or no rows.
    """
    view = replace(view, partitions=find_partitions(files))
    size = PartSize(part_bytes(files, shard_bytes), shard_bytes is None)
    notes = []
    if files.num_skipped:
        notes.append(f"{files.num_skipped:,} files beside the data are not read")
    if files.kinds[0].is_table:
        footers = Footers(files, size.num_bytes)
        shards = cut(files, size.num_bytes, footers)
        schema, note = unify(footers.schemas, view)
        view = replace(view, schema=schema)
        notes += [note] if note else []
    else:
        shards = cut(files, size.num_bytes)
    if not len(shards):
        raise ValueError(f"input must have rows, {files[0].name} and the others have none")
    reader = Reader(max_row_bytes=max_row_bytes, size=size, view=view)
    return InputPlan(files=files, shards=shards, reader=reader, notes=notes)
