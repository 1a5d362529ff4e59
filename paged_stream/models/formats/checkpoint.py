"""Filling a decoder's parameters from a model folder, one memory-mapped tensor at a time."""

from __future__ import annotations

import logging
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from paged_stream.models.decoder import Decoder
from paged_stream.models.family import Family, Weight
from paged_stream.models.formats.files import WEIGHT_SUFFIXES, ModelFiles
from paged_stream.models.formats.finite import Largest, remember_largest, remembered_largest
from paged_stream.models.model_config import ModelConfig
from paged_stream.models.sharding import WHOLE, Rank, part_of
from paged_stream.system.progress_bar import DELAY_SECONDS, progress_bar
from paged_stream.system.short_text import first_few, short, short_error, some

logger = logging.getLogger(__name__)

# Preferred first: (the single file, the index of several).
FORMATS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
# Below, looking at all numbers takes less time than anybody notices.
SMALL_BYTES = 64 << 20
_FLOAT_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_HEAD = "lm_head.weight"


class Shard(ABC):
    """One file of tensors, none of them in memory until it is read."""

    names: list[str]

    @abstractmethod
    def describe(self, name: str) -> tuple[list[int], str]:
        """Shape and dtype of a tensor; the dtype is a torch one's name if it is floating-point."""

    @abstractmethod
    def read(self, name: str) -> torch.Tensor: ...


class SafetensorsShard(Shard):
    def __init__(self, path: Path, stack: ExitStack) -> None:
        try:
            self._file: Any = stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path} is truncated or not a safetensors file ({short_error(error)}); fetch the "
                "file again"
            ) from None
        self.names = list(self._file.keys())

    def describe(self, name: str) -> tuple[list[int], str]:
        tensor = self._file.get_slice(name)
        dtype = tensor.get_dtype()
        return tensor.get_shape(), _FLOAT_TYPES.get(dtype, dtype)

    def read(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._file.get_tensor(name)
        return tensor


class PickledShard(Shard):
    """A file of ``torch.save``, read as data alone: nothing in it is executed."""

    def __init__(self, path: Path) -> None:
        try:
            # Files of before torch 1.6 are no archives and cannot be mapped.
            tensors = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
        except Exception as error:  # what damaged bytes mean to it may be anything
            reason = short_error(ValueError(str(error).split("\n", 1)[0]))
            raise ValueError(
                f"{path} is truncated or holds more than tensors ({reason}); fetch the file again"
            ) from None
        if not isinstance(tensors, dict) or not all(map(torch.is_tensor, tensors.values())):
            raise ValueError(f"{path} holds no dictionary of tensors; fetch the file again")
        for name, tensor in tensors.items():
            self._check(path, name, tensor)
        self._tensors: dict[str, torch.Tensor] = tensors
        self.names = list(tensors)

    @staticmethod
    def _check(path: Path, name: object, tensor: torch.Tensor) -> None:
        """Raises ValueError: it is no plain tensor whose numbers are in the file."""
        if not isinstance(name, str):
            raise ValueError(f"{path} has the name {short(name)}, which is no text")
        is_plain = tensor.layout == torch.strided and not tensor.is_quantized
        if not is_plain or tensor.device.type != "cpu" or type(tensor) is not torch.Tensor:
            kind = "has no numbers" if tensor.device.type == "meta" else "is sparse or quantized"
            raise ValueError(
                f"{path}: tensor {short(name)} {kind}; only plain tensors can be loaded"
            )

    def describe(self, name: str) -> tuple[list[int], str]:
        tensor = self._tensors[name]
        return list(tensor.shape), str(tensor.dtype).removeprefix("torch.")

    def read(self, name: str) -> torch.Tensor:
        return self._tensors[name]


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


class Checkpoint:
    """The weights of a model folder, which are known to fit a model.

    Args:
        whole: the whole model, whose parameters need no memory.
        stack: closes the files.

    Raises:
        ValueError: one error that names every tensor that is missing, unexpected or unfit; or a
            file that cannot be read.
    """

    def __init__(self, files: ModelFiles, family: Family, whole: Decoder, stack: ExitStack) -> None:
        self._files = files
        self._whole = whole
        self._family = family
        self._paths = checkpoint_paths(files)
        shards: list[Shard] = [
            SafetensorsShard(path, stack) if path.suffix == ".safetensors" else PickledShard(path)
            for path in self._paths
        ]
        # By the names that the family uses: where to read, and under which name.
        self._sources = {
            family.rename(name): (shard, name) for shard in shards for name in shard.names
        }
        layout = dict(whole.named_parameters())
        problems = list(_problems(whole.config, family, layout, self._sources))
        if problems:
            raise ValueError(
                f"model={files.name!r}: weights in {files.folder} do not fit config.json: "
                f"{first_few(problems, '; ')}"
            )

    @torch.inference_mode()
    def fill(self, decoder: Decoder, rank: Rank = WHOLE) -> None:
        """Copy every tensor into its slice, converting layout, dtype and device on the way.

        Args:
            decoder: of one rank. Parameters that it does not have were filled otherwise.

        Raises:
            ValueError: names a tensor with a number that is not finite, or that the decoder's dtype
                cannot hold.
        """
        config = self._whole.config
        parameters = dict(decoder.named_parameters())
        layout = dict(self._whole.named_parameters())
        parts = {name: part_of(config, name, len(like), rank) for name, like in layout.items()}
        for name, part in parts.items():
            if not part.rows and name in parameters:
                parameters[name].zero_()
        largest = self._unknown_largest(decoder.embedding.weight.dtype)
        for weight in progress_bar(
            list(self._family.weights(config, layout)),
            desc="loading",
            unit=" tensors",
            delay=DELAY_SECONDS,
            disable=not logger.isEnabledFor(logging.INFO),
        ):
            if weight.target not in parameters:
                continue
            shard, name = self._sources[weight.source]
            tensor = shard.read(name)
            if largest is not None:
                self._note(largest, name, tensor)
            if weight.transform is not None:
                tensor = weight.transform(tensor, config)
            part, parameter = parts[weight.target], parameters[weight.target]
            for mine, theirs in part.pieces(weight.start, weight.stop):
                piece = tensor[theirs]
                if part.columns is not None:
                    piece = piece[:, part.columns.start : part.columns.stop]
                parameter[mine].copy_(piece)
        if largest is not None and parameters.keys() == layout.keys():
            self._remember(largest.value)

    def _remember(self, largest: float) -> None:
        num_bytes = sum(path.stat().st_size for path in self._paths)
        if self._files.checks is not None and num_bytes >= SMALL_BYTES:
            remember_largest(self._files.checks, self._paths, largest)

    def _unknown_largest(self, dtype: torch.dtype) -> Largest | None:
        """What looks at the tensors, if they have to be looked at."""
        limit = torch.finfo(dtype).max
        if self._files.checks is not None:
            known = remembered_largest(self._files.checks, self._paths)
            if known is not None and known <= limit:
                return None
        return Largest(limit)

    def _note(self, largest: Largest, name: str, tensor: torch.Tensor) -> None:
        try:
            low, high = tensor.aminmax()  # both are NaN if a number is
            largest.note(name, low.item(), high.item())
        except ValueError as error:
            raise ValueError(
                f"model={self._files.name!r}: weights in {self._files.folder}: {error}"
            ) from None


def _problems(
    config: ModelConfig,
    family: Family,
    layout: dict[str, torch.nn.Parameter],
    sources: dict[str, tuple[Shard, str]],
) -> Iterator[str]:
    weights = {weight.source: weight for weight in family.weights(config, layout)}
    missing = sorted(weights.keys() - sources.keys())
    unexpected = sorted(
        name for name in sources.keys() - weights.keys() if not family.ignored(config, name)
    )
    if missing:
        yield f"missing {some(missing)}"
    if unexpected:
        yield f"unexpected {some(unexpected)}"
    if config.tie_word_embeddings and not _is_tied(weights, sources):
        yield (
            "lm_head.weight is not the embedding, though config.json says so; set "
            "tie_word_embeddings to false there"
        )
    for name, weight in weights.items():
        if name not in sources:
            continue
        shard, stored = sources[name]
        shape, dtype = shard.describe(stored)
        target = layout[weight.target]
        expected = [weight.stop - weight.start, *target.shape[1:]]
        if dtype not in _FLOAT_TYPES.values():
            yield f"{name} has dtype {dtype}, expected {', '.join(_FLOAT_TYPES.values())}"
        elif _shape_after(weight, shape, config) != expected:
            after = f" after {weight.transform.__name__}" if weight.transform else ""
            yield f"{name} has shape {shape}, expected {expected}{after}"


def _is_tied(weights: dict[str, Weight], sources: dict[str, tuple[Shard, str]]) -> bool:
    """Whether a head that the checkpoint holds although it is tied, is the embedding."""
    embedding = next((w.source for w in weights.values() if w.target == "embedding.weight"), None)
    if _HEAD not in sources or _HEAD in weights or embedding not in sources:
        return True
    head, other = (shard.read(name) for shard, name in (sources[_HEAD], sources[embedding]))
    return torch.equal(head, other.to(head.dtype))


def _shape_after(weight: Weight, shape: list[int], config: ModelConfig) -> list[int] | None:
    """Shape of a tensor once it is transformed, ``None`` if that is impossible."""
    if weight.transform is None:
        return shape
    try:
        tensor = weight.transform(torch.empty(shape, device="meta"), config)
    except (RuntimeError, IndexError):
        return None
    return list(tensor.shape)
