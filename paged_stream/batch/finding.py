"""Input files found by paths, URIs and patterns, and their formats."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from paged_stream.batch.files import hide_secrets, open_filesystem
from paged_stream.batch.formats import (
    FORMATS,
    HEAD_BYTES,
    FileKind,
    Format,
    codec_of,
    codec_of_bytes,
    format_of_bytes,
    is_side_file,
    kind_of,
)
from paged_stream.batch.inputs import InputFile, InputFiles, Place

_WILD = re.compile(r"[*?\[]")


def find_files(inputs: Sequence[str], format: Format | None = None) -> InputFiles:
    """The files of the inputs, in order, each once.

    Args:
        format: of all files; ``None`` looks at their names and, where these say nothing, into them.

    Raises:
        ValueError: names an input that is missing or empty, a file that is of no known format, or
            two files that no batch can read together.
    """
    files, seen = InputFiles(), set[int]()
    for uri in inputs:
        place, found = _find(uri)
        for path, size, is_named in found:
            if not is_named and _is_hidden(path.removeprefix(place.base)):
                files.num_skipped += 1
            elif len(inputs) == 1 or _is_new(place.display(path), seen):
                files.add(_with_kind(InputFile(place, path, size, FileKind("text")), format))
    if not len(files):
        raise ValueError(f"input must have files, {_names(inputs)} has none")
    families = list(dict.fromkeys(kind.family for kind in files.kinds))
    if len(families) > 1:
        first, second = (files.first_of(family).name for family in families[:2])
        raise ValueError(
            f"input must be all of one format, got {families[0]} ({first}) and {families[1]} "
            f"({second}); name the files by a pattern such as *.parquet"
        )
    return files


def _is_new(name: str, seen: set[int]) -> bool:
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    is_new = key not in seen
    seen.add(key)
    return is_new


def _with_kind(file: InputFile, format: Format | None) -> InputFile:
    kind = kind_of(file.path)
    if format is not None:
        kind = FileKind(format, codec_of(file.path)[1])
    if kind is None:
        kind = _look_into(file)
    return replace(file, kind=kind)


def _look_into(file: InputFile) -> FileKind:
    """The kind of a file whose name says nothing.

    Raises:
        ValueError: it is none.
    """
    with file.open() as raw:
        head = raw.read(HEAD_BYTES)
    codec = codec_of_bytes(head)
    if codec is not None:
        stream, _ = replace(file, kind=FileKind("text", codec)).open_stream()
        with stream:
            head = stream.read(HEAD_BYTES)
    format = format_of_bytes(head)
    if format is None:
        raise ValueError(
            f"input {file.name!r} is no file of rows that a batch can read; its name must end in "
            ".jsonl, .json, .csv, .tsv, .txt, .md, .parquet or .arrow, perhaps with .gz or .zst "
            f"behind it, or input_format must say which of {', '.join(FORMATS)} it is"
        )
    return FileKind(format, codec)


def _is_hidden(below: str) -> bool:
    """Whether a file is skipped in a folder: a hidden one, or one beside the data."""
    *folders, name = below.split("/")
    hidden = (part.startswith((".", "_")) and "=" not in part for part in [*folders, name])
    return any(hidden) or is_side_file(name)


# Looking for files. All of these give path, size, and whether the user has named just this file.
_Found = Iterator[tuple[str, int, bool]]


def _find(uri: str) -> tuple[Place, _Found]:
    from fsspec.utils import glob_translate
    from pyarrow import fs

    filesystem, path = open_filesystem(uri)
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.File:
        return Place(uri, os.path.dirname(path)), iter([(path, info.size, True)])
    if info.type == fs.FileType.Directory:
        base = path.rstrip("/")
        return Place(uri, base), ((*pair, False) for pair in _walk(filesystem, base))
    wild = _WILD.search(path)
    if wild is None:
        raise ValueError(f"input {hide_secrets(uri)!r} does not exist")
    base = path[: path.rfind("/", 0, wild.start())]
    matches = re.compile(glob_translate(path)).match
    is_deep = "/" in path[wild.start() :]
    found = (pair for pair in _walk(filesystem, base, is_deep=is_deep) if matches(pair[0]))
    return Place(uri, base), ((*pair, False) for pair in found)


def _walk(filesystem: Any, folder: str, *, is_deep: bool = True) -> Iterator[tuple[str, int]]:
    """Files in a folder, and below it, with their sizes, in an order that is always the same."""
    from pyarrow import fs

    if filesystem.type_name == "local":
        yield from _walk_local(folder or "/", is_deep)
        return
    selector = fs.FileSelector(folder, recursive=is_deep, allow_not_found=True)
    found = filesystem.get_file_info(selector)
    found.sort(key=lambda info: info.path)
    for info in found:
        if info.type == fs.FileType.File:
            yield info.path, info.size


def _walk_local(folder: str, is_deep: bool) -> Iterator[tuple[str, int]]:
    """One folder at a time, so that nobody holds all of a large tree."""
    with os.scandir(folder) as entries:
        found = sorted((entry.name, entry) for entry in entries)
    for name, entry in found:
        path = f"{folder.rstrip('/')}/{name}"
        if entry.is_file():
            yield path, entry.stat().st_size
        elif is_deep and entry.is_dir():
            yield from _walk_local(path, is_deep)


def _names(inputs: Sequence[str]) -> str:
    return ", ".join(map(hide_secrets, inputs))
