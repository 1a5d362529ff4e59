"""Filling a decoder's parameters from safetensors, one memory-mapped tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from paged_stream.models.decoder import Decoder
from paged_stream.models.family import Family
from paged_stream.models.files import ModelFiles

INDEX = "model.safetensors.index.json"
FLOAT_TYPES = ("F64", "F32", "F16", "BF16")


def checkpoint_paths(files: ModelFiles) -> list[Path]:
    """List the safetensors files of a model folder."""
    single = files.folder / "model.safetensors"
    if single.is_file():
        return [single]
    if not (files.folder / INDEX).is_file():
        raise ValueError(
            f"model={files.name!r}: neither model.safetensors nor {INDEX} in {files.folder}; "
            "weights in other formats must be converted to safetensors"
        )
    weight_map = files.read_json(INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{files.folder / INDEX} has no weight_map; fetch the file again")
    # Only the file names: an index must not lead outside its folder.
    paths = [files.folder / Path(str(name)).name for name in sorted(set(weight_map.values()))]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ValueError(
            f"model={files.name!r}: {', '.join(missing)} named by {INDEX} not in {files.folder}; "
            "fetch the missing files"
        )
    return paths


@torch.inference_mode()
def fill(decoder: Decoder, family: Family, files: ModelFiles) -> None:
    """Copy every checkpoint tensor into its slice, converting dtype and device on the way."""
    parameters = dict(decoder.named_parameters())
    targets = {
        weight.source: parameters[weight.target][weight.start : weight.stop]
        for weight in family.weights(decoder.config)
    }
    with ExitStack() as stack:
        shards = [_open(path, stack) for path in checkpoint_paths(files)]
        sources = {name: shard for shard in shards for name in shard.keys()}  # noqa: SIM118
        problems = list(_problems(decoder, family, targets, sources))
        if problems:
            raise ValueError(
                f"model={files.name!r}: weights in {files.folder} do not fit config.json: "
                f"{'; '.join(problems)}"
            )
        for name, target in targets.items():
            target.copy_(sources[name].get_tensor(name))


def _open(path: Path, stack: ExitStack) -> Any:
    try:
        return stack.enter_context(safe_open(path, framework="pt"))
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is truncated or not a safetensors file ({error}); fetch the file again"
        ) from None


def _problems(
    decoder: Decoder, family: Family, targets: dict[str, torch.Tensor], sources: dict[str, Any]
) -> Iterator[str]:
    missing = sorted(targets.keys() - sources.keys())
    unexpected = sorted(
        name for name in sources.keys() - targets.keys() if not family.ignored(decoder.config, name)
    )
    if missing:
        yield f"missing {', '.join(missing)}"
    if unexpected:
        yield f"unexpected {', '.join(unexpected)}"
    for name, target in targets.items():
        if name not in sources:
            continue
        tensor = sources[name].get_slice(name)
        if tuple(tensor.get_shape()) != tuple(target.shape):
            yield f"{name} has shape {tensor.get_shape()}, expected {list(target.shape)}"
        elif tensor.get_dtype() not in FLOAT_TYPES:
            yield f"{name} has dtype {tensor.get_dtype()}, expected {', '.join(FLOAT_TYPES)}"
