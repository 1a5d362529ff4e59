"""A GGUF model in one file, or in several that are numbered: ``name-00001-of-00003.gguf``."""

from __future__ import annotations

import re
from pathlib import Path

from paged_stream.models.formats.gguf_file import GGUFFile, read_gguf
from paged_stream.system.short_text import some

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def part_paths(path: Path) -> list[Path]:
    """All files of a model, any of which may be given.

    Raises:
        ValueError: names those that are missing.
    """
    part = _PART.fullmatch(path.name)
    if part is None:
        return [path]
    stem, count = part[1], int(part[3])
    paths = [path.with_name(f"{stem}-{i + 1:05}-of-{count:05}.gguf") for i in range(count)]
    if missing := [each.name for each in paths if not each.is_file()]:
        raise ValueError(f"{path} is one of {count} files; missing {some(missing)}")
    return paths


def read_model(path: Path) -> GGUFFile:
    """Read the headers of all files; the first has what is said of the model.

    Raises:
        ValueError: one is damaged, missing, or not of this model.
        OSError: one cannot be read.
    """
    paths = part_paths(path)
    files = [read_gguf(each) for each in paths]
    tensors = dict(files[0].tensors)
    for index, (each, file) in enumerate(zip(paths, files, strict=True)):
        count = file.metadata.get("split.count", 1)
        if len(paths) == 1 and count != 1:
            raise ValueError(
                f"{path} is one of several; name them -00001-of-00003.gguf and so on, or "
                "join them with llama-gguf-split --merge"
            )
        if count != len(paths) or file.metadata.get("split.no", 0) != index:
            raise ValueError(
                f"{each} says that it is file {file.metadata.get('split.no', 0)} of {count} "
                f"(split.no, split.count), not {index} of {len(paths)}"
            )
        if index and (twice := sorted(tensors.keys() & file.tensors.keys())):
            raise ValueError(f"{each} has tensors that files before it have: {some(twice)}")
        tensors |= file.tensors
    return GGUFFile(files[0].metadata, tensors)
