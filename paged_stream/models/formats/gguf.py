"""Converting what a GGUF file says, once, into a folder in Hugging Face layout: config.json and the
tokenizer. Weights stay in the file.

A conversion appears in the cache whole or not at all, whatever is killed and however many
processes start at once.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from paged_stream.attention.native import NativeBackend
from paged_stream.models.config_limits import check_fields
from paged_stream.models.decoder import Decoder
from paged_stream.models.family import Family, Weight
from paged_stream.models.formats.cache_folder import REMEDIES, default_cache_dir
from paged_stream.models.formats.checkpoint import shape_after
from paged_stream.models.formats.gguf_config import ROPE_FACTORS, config_fields
from paged_stream.models.formats.gguf_file import GGUFFile, GGUFTensor
from paged_stream.models.formats.gguf_shard import gguf_names
from paged_stream.models.formats.gguf_split import part_paths, read_model
from paged_stream.models.formats.gguf_tokenizer import write_tokenizer
from paged_stream.models.hf_config import read_config
from paged_stream.models.model_config import ModelConfig
from paged_stream.models.registry import family_of_gguf
from paged_stream.system.short_text import first_few, short_error, some

logger = logging.getLogger(__name__)

# Part of the cache key: raise it whenever the same file would convert to something else.
CONVERTER_VERSION = 7


def cached_conversion(
    path: Path, cache_dir: Path | None = None, *, with_tokenizer: bool = True
) -> Path:
    """Return the folder with the converted file, converting it if this content is new.

    Args:
        with_tokenizer: whether the tokenizer is needed. Without, what is there may have one.

    Raises:
        ValueError: the file cannot be converted, or the cache folder not be written to.
    """
    path = path.absolute()
    root = (cache_dir or default_cache_dir()) / "gguf"
    folder = root / f"{path.stem}-{_digest(path)[:32]}-v{CONVERTER_VERSION}"
    if not (with_tokenizer or folder.is_dir()):
        folder = folder.with_name(f"{folder.name}-weights")
    if folder.is_dir():
        return folder
    try:
        _convert_once(path, folder, with_tokenizer)
    except OSError as error:
        raise ValueError(
            f"cannot write the converted model into the cache folder {root}: {error}; {REMEDIES}"
        ) from error
    return folder


def _convert_once(path: Path, folder: Path, with_tokenizer: bool) -> None:
    """Convert a file, unless another process does so at the same time."""
    root = folder.parent
    root.mkdir(parents=True, exist_ok=True)
    with _lock(root / f"{folder.name}.lock"):
        if folder.is_dir():  # another process converted it meanwhile
            return
        for stale in root.glob(f"{glob.escape(folder.name)}.tmp*"):  # left by a killed process
            shutil.rmtree(stale, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f"{folder.name}.tmp", dir=root))
        try:
            logger.info("converting what %s says once into %s", path, root)
            convert(path, work, with_tokenizer)
            _publish(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _publish(work: Path, folder: Path) -> None:
    """Give a finished folder its name. It is trusted from then on, so it is on the disk before, and
    whoever may read the cache may read it."""
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(work, 0o777 & ~umask)
    for path in (*work.iterdir(), work):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    os.replace(work, folder)


def convert(path: Path, folder: Path, with_tokenizer: bool = True) -> None:
    """Write config.json and, if it is needed, the tokenizer.

    Raises:
        ValueError: the file is damaged, or cannot be converted.
    """
    file = read_model(path)
    try:
        family = family_of_gguf(file.metadata.get("general.architecture", ""))
        config = _write_config(file, family, folder)
        if with_tokenizer:
            _write_tokenizer(file.metadata, folder)
        _check_tensors(file, family, config)
    except OSError:  # of the cache folder
        raise
    except Exception as error:  # beyond our own refusals: what metadata of the wrong kind lead to
        raise ValueError(f"{path}: cannot convert this GGUF file: {short_error(error)}") from error


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    for part in part_paths(path):
        with part.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock, which the system releases even if the process is killed."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _natural_dtype(file: GGUFFile) -> str:
    """What the model is meant to run in: the file's matrices say, quantised ones as bfloat16."""
    kinds = {tensor.kind for tensor in file.tensors.values() if len(tensor.shape) > 1}
    return {"F32": "float32", "F16": "float16"}.get("".join(kinds), "bfloat16")


def _write_config(file: GGUFFile, family: Family, folder: Path) -> ModelConfig:
    factors = file.tensors.get(ROPE_FACTORS)
    fields = config_fields(
        file, family.model_types[0], None if factors is None else factors.values().tolist()
    )
    check_fields(fields)
    hf_config = read_config(*family.config_class, fields | {"dtype": _natural_dtype(file)})
    hf_config.save_pretrained(folder)
    config = family.describe(hf_config, None)
    config.check()
    return config


def _write_tokenizer(metadata: dict[str, Any], folder: Path) -> None:
    wanted = ("tokenizer.", "general.name")
    write_tokenizer({k: value for k, value in metadata.items() if k.startswith(wanted)}, folder)


def _check_tensors(file: GGUFFile, family: Family, config: ModelConfig) -> None:
    # Only the names and shapes of a decoder, without its memory.
    parameters = dict(Decoder(config, NativeBackend(), device="meta").named_parameters())
    weights = {weight.source: weight for weight in family.weights(config, parameters)}
    names = gguf_names(file.metadata["general.architecture"], weights, config)
    if problems := list(_problems(file.tensors, names, weights, parameters, config)):
        raise ValueError(
            f"tensors do not fit the metadata: {first_few(problems, '; ')}; pass the model's "
            "safetensors folder"
        )


def _problems(
    tensors: dict[str, GGUFTensor],
    names: dict[str, str],
    weights: dict[str, Weight],
    parameters: dict[str, torch.nn.Parameter],
    config: ModelConfig,
) -> Iterator[str]:
    if missing := sorted(set(names.values()) - tensors.keys()):
        yield f"missing {some(missing)}"
    if unexpected := sorted(tensors.keys() - set(names.values()) - {ROPE_FACTORS}):
        yield f"unexpected {some(unexpected)}"
    for source, name in names.items():
        weight = weights[source]
        expected = [weight.stop - weight.start, *parameters[weight.target].shape[1:]]
        if name in tensors and shape_after(weight, tensors[name].shape, config) != expected:
            yield f"{name} has shape {tensors[name].shape}, expected {expected}"
