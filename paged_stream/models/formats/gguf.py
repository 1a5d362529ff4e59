"""Converting a GGUF file once into a folder in Hugging Face layout, with exact float32 weights and
the blocks that the kernels take as they are.

A conversion appears in the cache whole or not at all, whatever is killed and however many
processes start at once.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from paged_stream.attention.native import NativeBackend
from paged_stream.layers.linear import BLOCK_BYTES
from paged_stream.models.decoder import Decoder
from paged_stream.models.family import Family
from paged_stream.models.formats.files import BLOCKS_FILE
from paged_stream.models.formats.gguf_config import ROPE_FACTORS, config_fields
from paged_stream.models.formats.gguf_tokenizer import write_tokenizer
from paged_stream.models.hf_config import read_config
from paged_stream.models.model_config import ModelConfig
from paged_stream.models.registry import family_of_gguf
from paged_stream.system.progress_bar import progress_bar

logger = logging.getLogger(__name__)

# Part of the cache key: raise it whenever the same file would convert to something else.
CONVERTER_VERSION = 5
# What a file begins with: the magic, the version, the numbers of tensors and of metadata.
_MAGIC, _HEADER_BYTES = b"GGUF", 24


_REMEDIES = "pass cache_dir= (--cache-dir), a folder that you may write to, or set XDG_CACHE_HOME"


def default_cache_dir() -> Path:
    """``paged_stream`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``.

    Raises:
        ValueError: this user has no home.
    """
    if root := os.environ.get("XDG_CACHE_HOME"):
        return Path(root) / "paged_stream"
    try:
        return Path.home() / ".cache" / "paged_stream"
    except RuntimeError as error:
        raise ValueError(f"no folder for converted models: {error}; {_REMEDIES}") from error


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
            f"cannot write the converted model into the cache folder {root}: {error}; {_REMEDIES}"
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
            logger.info("converting %s once into %s (this may take a minute)", path, root)
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
    """Write config.json, model.safetensors and, if it is needed, the tokenizer."""
    reader = _read(path)
    try:
        family = family_of_gguf(reader.fields["general.architecture"].contents())
        config = _write_config(reader, family, folder)
        if with_tokenizer:
            _write_tokenizer(reader, folder)
        _write_weights(reader, family, config, folder)
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        # Beyond our own refusals: what metadata of the wrong kind lead to.
        raise ValueError(f"{path}: cannot convert this GGUF file: {error}") from error


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock, which the system releases even if the process is killed."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(path: Path) -> Any:
    from gguf import GGUFReader

    _check_beginning(path)
    try:
        reader = GGUFReader(path)
        reader.fields["general.architecture"].contents()
        return reader
    except (ValueError, IndexError, KeyError, OverflowError, TypeError) as error:
        raise ValueError(
            f"{path} is truncated or damaged: {path.stat().st_size:,} bytes do not hold what its "
            f"header promises ({error}); fetch the file again"
        ) from error


def _check_beginning(path: Path) -> None:
    """Raises ValueError: the file does not begin as GGUF files do."""
    with path.open("rb") as file:
        start = file.read(_HEADER_BYTES)
    if start[:4] != _MAGIC[: len(start)]:
        hint = ", but a pointer to one in Git LFS" if start.startswith(b"version https://") else ""
        raise ValueError(
            f"{path} is not a GGUF file{hint}: it begins with {start[:16]!r}; fetch the file again"
        )
    if len(start) < _HEADER_BYTES:
        raise ValueError(
            f"{path} is truncated: it has {len(start)} bytes, fewer than a GGUF header; fetch the "
            "file again"
        )


def _natural_dtype(reader: Any) -> str:
    """What the model is meant to run in: the file's matrices say, quantised ones as bfloat16."""
    kinds = {tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1}
    return {"F32": "float32", "F16": "float16"}.get("".join(kinds), "bfloat16")


def _write_config(reader: Any, family: Family, folder: Path) -> ModelConfig:
    splits = reader.fields.get("split.count")
    if splits is not None and splits.contents() > 1:
        raise ValueError("it is one of several; join them with llama-gguf-split --merge")
    factors = [_dequantise(tensor) for tensor in reader.tensors if tensor.name == ROPE_FACTORS]
    fields = config_fields(reader, family.model_types[0], factors[0].tolist() if factors else None)
    hf_config = read_config(*family.config_class, fields | {"dtype": _natural_dtype(reader)})
    hf_config.save_pretrained(folder)
    config = family.describe(hf_config, None)
    config.check()
    return config


def _write_tokenizer(reader: Any, folder: Path) -> None:
    keys = [key for key in reader.fields if key.startswith(("tokenizer.", "general.name"))]
    write_tokenizer({key: reader.fields[key].contents() for key in keys}, folder)


def _write_weights(reader: Any, family: Family, config: ModelConfig, folder: Path) -> None:
    """Write all tensors dequantised, and once more those whose blocks the kernels take as they are.

    One tensor at a time is in memory.
    """
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    names = _gguf_names(reader, family, config)
    missing = sorted(set(names.values()) - tensors.keys())
    unexpected = sorted(tensors.keys() - set(names.values()) - {ROPE_FACTORS})
    if missing or unexpected:
        raise ValueError(
            f"tensors do not fit the metadata: missing {missing or 'none'}, "
            f"unexpected {unexpected or 'none'}; pass the model's safetensors folder"
        )
    sources = {source: tensors[name] for source, name in names.items()}

    def dequantised(source: str) -> np.ndarray:
        return family.from_gguf(config, source, _dequantise(sources[source])).astype("<f4")

    def blocks(source: str) -> np.ndarray:
        # Rows of bytes: what `from_gguf` does to a matrix only moves rows.
        return family.from_gguf(config, source, np.asarray(sources[source].data))

    shapes = {source: _shape(tensor) for source, tensor in sources.items()}
    _write_safetensors(folder / "model.safetensors", "F32", shapes, dequantised, {"format": "pt"})
    formats = {
        source: tensor.tensor_type.name
        for source, tensor in sources.items()
        if tensor.tensor_type.name in BLOCK_BYTES and len(tensor.shape) == 2
    }
    if formats:
        shapes = {source: list(sources[source].data.shape) for source in formats}
        metadata = {"format": "pt", "formats": json.dumps(formats)}
        _write_safetensors(folder / BLOCKS_FILE, "U8", shapes, blocks, metadata)


def _write_safetensors(
    path: Path,
    dtype: str,
    shapes: dict[str, list[int]],
    values: Callable[[str], np.ndarray],
    metadata: dict[str, str],
) -> None:
    """Write tensor by tensor into a file whose layout is known beforehand."""
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * {"F32": 4, "U8": 1}[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    with path.open("wb") as file:
        _write_header(file, header)
        is_shown = logger.isEnabledFor(logging.INFO)
        for name in progress_bar(shapes, desc=path.stem, unit=" tensors", disable=not is_shown):
            file.write(np.ascontiguousarray(values(name)).data)


def _gguf_names(reader: Any, family: Family, config: ModelConfig) -> dict[str, str]:
    import gguf

    architecture = reader.fields["general.architecture"].contents()
    enums = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(enums[architecture], config.num_layers)
    # Only the names and shapes of a decoder, without its memory.
    parameters = dict(Decoder(config, NativeBackend(), device="meta").named_parameters())
    sources = [weight.source for weight in family.weights(config, parameters)]
    # A weight that gguf has no name for is looked for under its own, and so reported missing.
    return {name: table.get_name(name, (".weight", ".bias")) or name for name in sources}


def _dequantise(tensor: Any) -> np.ndarray:
    from gguf.quants import dequantize

    values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
    return values.reshape(_shape(tensor))


def _shape(tensor: Any) -> list[int]:
    return [int(size) for size in reversed(tensor.shape)]


def _write_header(file: BinaryIO, header: dict[str, Any]) -> None:
    """Write the prologue of the safetensors format: length, then JSON padded to 8 bytes."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
