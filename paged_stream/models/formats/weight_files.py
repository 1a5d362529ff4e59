"""Which files of a model folder are its weights."""

from __future__ import annotations

from pathlib import Path

from paged_stream.models.formats.files import WEIGHT_SUFFIXES, ModelFiles
from paged_stream.system.short_text import short, some

# Preferred first: (the single file, the index of several).
FORMATS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)


def checkpoint_paths(files: ModelFiles) -> list[Path]:
    """List the weight files of a model folder.

    Raises:
        ValueError: there are none, or the user has named another file of the folder.
    """
    for single, index in FORMATS:
        if (files.folder / single).is_file():
            paths, first = [files.folder / single], single
        elif (files.folder / index).is_file():
            paths, first = _shard_paths(files, index), index
        else:
            continue
        named = Path(files.name).expanduser()
        is_weights = named.is_file() and named.name.endswith(WEIGHT_SUFFIXES)
        if is_weights and named.name not in {first, *(path.name for path in paths)}:
            raise ValueError(
                f"model={files.name!r}: the weights of {files.folder} are {first}; pass the "
                "folder, or put the other file into a folder of its own under that name"
            )
        return paths
    names = ", ".join(name for names in FORMATS for name in names)
    raise ValueError(
        f"model={files.name!r}: no weights in {files.folder}, neither of {names}; "
        "weights in other formats must be converted to safetensors"
    )


def _shard_paths(files: ModelFiles, index: str) -> list[Path]:
    weight_map = files.read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{files.folder / index} has no weight_map; fetch the file again")
    suffix = Path(index.removesuffix(".index.json")).suffix
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
