"""Which files of a model folder are its weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from paged_stream.models.formats.files import ModelFiles, is_weights_file
from paged_stream.system.short_text import short, some

# Preferred first. A file may be one of several, which an index lists, and a variant in another
# dtype, whose name stands before the suffix: model.fp16.safetensors.
_KINDS = (("model", ".safetensors"), ("consolidated", ".safetensors"), ("pytorch_model", ".bin"))


def checkpoint_paths(files: ModelFiles) -> list[Path]:
    """List the weight files of a model folder.

    Raises:
        ValueError: there are none, there are several variants and none without a name, or the user
            has named another file of the folder.
    """
    choices = list(_choices(files.folder))
    named = Path(files.name).expanduser()
    if named.is_file() and is_weights_file(named.name):
        for first in (first for choice in choices for first in choice):
            paths = _paths(files, first)
            if named.name in {first, *(path.name for path in paths)}:
                return paths
        if choices:
            raise ValueError(
                f"model={files.name!r}: the weights of {files.folder} are {choices[0][0]}; pass "
                "the folder, or put the other file into a folder of its own under that name"
            )
    if not choices:
        names = ", ".join(f"{stem}{end}, {stem}{end}.index.json" for stem, end in _KINDS)
        raise ValueError(
            f"model={files.name!r}: no weights in {files.folder}, neither of {names}; "
            "weights in other formats must be converted to safetensors"
        )
    if len(choices[0]) > 1:
        raise ValueError(
            f"model={files.name!r}: the weights of {files.folder} are there as "
            f"{some(choices[0])}; pass the path of the one to load"
        )
    return _paths(files, choices[0][0])


def _choices(folder: Path) -> Iterator[list[str]]:
    """What may be the weights, preferred first: single files, indexes, and variants of both, which
    nothing tells apart."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    for stem, suffix in _KINDS:
        start, end = re.escape(stem), re.escape(suffix)
        for pattern in (f"{start}{end}", f"{start}{end}\\.index\\.json"):
            yield from ([name] for name in names if re.fullmatch(pattern, name))
        pattern = f"{start}\\.\\w+{end}|{start}{end}\\.index\\.\\w+\\.json"
        if variants := [name for name in names if re.fullmatch(pattern, name)]:
            yield variants


def _paths(files: ModelFiles, first: str) -> list[Path]:
    return _shard_paths(files, first) if first.endswith(".json") else [files.folder / first]


def _shard_paths(files: ModelFiles, index: str) -> list[Path]:
    weight_map = files.read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{files.folder / index} has no weight_map; fetch the file again")
    suffix = Path(index.partition(".index.")[0]).suffix
    for name in weight_map.values():
        # Only the file names: an index must not lead outside its folder.
        if not isinstance(name, str) or not name.endswith(suffix) or "\0" in name:
            raise ValueError(
                f"{files.folder / index}: weight_map must name files of the kind {suffix}, got "
                f"{short(name)}; fetch the file again"
            )
    paths = [files.folder / name for name in sorted({Path(n).name for n in weight_map.values()})]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ValueError(
            f"model={files.name!r}: {some(missing)} named by {index} not in {files.folder}; "
            "fetch the missing files"
        )
    return paths
