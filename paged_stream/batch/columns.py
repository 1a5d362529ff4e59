"""Which columns of the input a batch sees, and under which names and types."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paged_stream.batch.inputs import InputFile

_INT64 = 2**63


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnView:
    """Picks columns, gives them other names, and adds those that folders name.

    Args:
        columns: the input's names of the columns to read; ``None`` is all.
        rename: new names by the input's.
        wanted: new names of the columns that somebody needs; ``None`` is all.
        partitions: columns that folders name, and whether all of their values are integers.
        schema: names and types that all tables get, a pyarrow schema; ``None`` for JSON.
    """

    columns: Collection[str] | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    wanted: Collection[str] | None = None
    partitions: Mapping[str, bool] = field(default_factory=dict)
    schema: Any = None

    @property
    def changes_rows(self) -> bool:
        """Whether `row` may give something else than it gets."""
        chosen = self.columns is not None or self.wanted is not None
        return chosen or bool(self.rename) or bool(self.partitions)

    def has(self, name: str) -> bool:
        """Whether a column of the input, by its own name, is read."""
        if self.columns is not None and name not in self.columns:
            return False
        return self.wanted is None or self.rename.get(name, name) in self.wanted

    def row(self, values: Mapping[str, Any], partition: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of one JSON row.

        Raises:
            ValueError: two columns have one name.
        """
        names = [name for name in {**values, **partition} if self.has(name)]
        row = {self.rename.get(n, n): values[n] if n in values else partition[n] for n in names}
        if len(row) < len(names):
            raise ValueError(f"rename gives two columns one name: {', '.join(names)}")
        return row

    def partition_of(self, file: InputFile) -> dict[str, int | str | None]:
        """The columns that a file's folders name."""
        if not self.partitions:
            return {}
        values = file.partition()
        return {
            name: int(value) if value is not None and is_int else value
            for name, is_int in self.partitions.items()
            for value in [values.get(name)]
        }

    def schema_of(self, schema: Any) -> Any:
        """A table's schema with the names that a batch sees, and the columns of folders.

        Raises:
            ValueError: two columns have one name.
        """
        import pyarrow as pa

        fields = [
            each.with_name(self.rename.get(each.name, each.name))
            for each in schema
            if self.has(each.name)
        ]
        for name, is_int in self.partitions.items():
            if name not in schema.names and self.has(name):
                kind = pa.int64() if is_int else pa.string()
                fields.append(pa.field(self.rename.get(name, name), kind))
        names = [each.name for each in fields]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"input has two columns named {', '.join(sorted(twice))}")
        return pa.schema(fields)

    def table(self, batch: Any, partition: Mapping[str, Any]) -> Any:
        """A record batch as a table of `schema`.

        Raises:
            pyarrow.ArrowException: a value does not fit its column's type.
        """
        import pyarrow as pa

        own = {self.rename.get(name, name): name for name in batch.schema.names}
        of_folder = {self.rename.get(name, name): value for name, value in partition.items()}
        arrays = []
        for each in self.schema:
            if each.name in own:
                array = batch.column(own[each.name])
                arrays.append(array if array.type == each.type else array.cast(each.type))
            else:
                value, count = of_folder.get(each.name), batch.num_rows
                is_null = value is None
                arrays.append(
                    pa.nulls(count, each.type)
                    if is_null
                    else pa.repeat(pa.scalar(value, each.type), count)
                )
        return pa.table(arrays, schema=self.schema)


def find_partitions(files: Sequence[InputFile]) -> dict[str, bool]:
    """Columns that the files' folders name, and whether all of their values are integers."""
    partitions: dict[str, bool] = {}
    for file in files:
        if "=" in file.path:
            for name, value in file.partition().items():
                is_int = value is None or _is_int(value)
                partitions[name] = is_int and partitions.get(name, True)
    return partitions


def _is_int(text: str) -> bool:
    """Whether text is how Python writes an int64."""
    return re.fullmatch("0|-?[1-9][0-9]*", text) is not None and -_INT64 <= int(text) < _INT64


def unify(schemas: Sequence[tuple[Any, str]], view: ColumnView) -> tuple[Any, str | None]:
    """One schema for all tables, as Arrow promotes types; and a line that says so if they differ.

    Args:
        schemas: of the files, and the first file of each.

    Raises:
        ValueError: names two files whose columns do not go together.
    """
    import pyarrow as pa

    seen = [(view.schema_of(schema), name) for schema, name in schemas]
    merged, first = seen[0]
    for schema, name in seen[1:]:
        try:
            merged = pa.unify_schemas([merged, schema], promote_options="permissive")
        except pa.ArrowException as error:
            raise ValueError(
                f"input files must have columns that go together, {first} and {name} have not: "
                f"{error}; columns names those to read"
            ) from None
    differing = [(schema, name) for schema, name in seen if not schema.equals(merged)]
    if not differing or len(seen) == 1:
        return merged, None
    schema, name = differing[0]
    changes = [
        f"{each.name}: {each.type}, here {_type_in(schema, each.name)}"
        for each in merged
        if _type_in(schema, each.name) != str(each.type)
    ]
    what = ", ".join(changes) or "another order"
    return merged, f"input files differ in their columns and are read as one; {name}: {what}"


def _type_in(schema: Any, name: str) -> str:
    return str(schema.field(name).type) if name in schema.names else "missing"
