"""Files of tensors, of which nothing is in memory until it is read."""

from __future__ import annotations

import zipfile
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from paged_stream.system.short_text import short, short_error

FLOAT_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Shard(ABC):
    """One file of tensors, none of them in memory until it is read.

    Some may be quantised: `describe` and `read` give the numbers that they stand for.
    """

    names: list[str]

    @abstractmethod
    def describe(self, name: str) -> tuple[list[int], str]:
        """Shape and dtype of a tensor; the dtype is a torch one's name if it is floating-point."""

    @abstractmethod
    def read(self, name: str) -> torch.Tensor: ...

    def name_in_file(self, name: str) -> str:
        """What messages call a tensor."""
        return name

    def block_format(self, name: str) -> str | None:
        """The one of `BLOCK_FORMATS` that a matrix can be read in without loss, if there is one."""
        return None

    def read_blocks(self, name: str) -> torch.Tensor:
        """The blocks of a matrix that has a `block_format`: uint8 [rows, bytes]."""
        raise AssertionError(f"{self.name_in_file(name)} has no blocks: {self.block_format(name)}")


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
        return tensor.get_shape(), FLOAT_TYPES.get(dtype, dtype)

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
