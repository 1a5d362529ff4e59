"""A quantised checkpoint as a file of plain matrices, which may be read in blocks as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from paged_stream.models.formats.integer_matrix import IntegerMatrix
from paged_stream.models.formats.quantized_methods import Matrix, Tensors, method_of
from paged_stream.models.formats.shards import Shard
from paged_stream.system.short_text import short, short_error

T = TypeVar("T")
# What activations would be rounded with: they are not rounded here.
_UNUSED = (".input_scale", ".input_zero_point", ".input_global_scale", ".output_scale") + (
    ".k_scale",
    ".v_scale",
    ".activation_scale",
)


class QuantizedShard(Shard):
    """All tensors of a checkpoint, with each quantised matrix as a ``weight``.

    Raises:
        ValueError: the configuration or the tensors are none that can be read.
    """

    def __init__(self, shards: list[Shard], config: Mapping[str, Any]) -> None:
        self._tensors = tensors = Tensors(shards)
        method = method_of(config, tensors.names())
        self._matrices: dict[str, Matrix] = {}
        hidden = set()
        for name in tensors.names():
            module = name.removesuffix(method.mark)
            if module == name or not method.is_quantized(tensors.describe(name)[1]):
                continue
            self._matrices[f"{module}.weight"] = method.matrix(tensors, module, config)
            hidden |= {name, *(module + end for end in method.others)}
        plain = [n for n in tensors.names() if n not in hidden and not n.endswith(_UNUSED)]
        self.names = [*self._matrices, *plain]

    def describe(self, name: str) -> tuple[list[int], str]:
        if name in self._matrices:
            return _told(name, lambda: self._matrices[name].shape), "float32"
        return self._tensors.describe(name)

    def read(self, name: str) -> torch.Tensor:
        if name in self._matrices:
            return _told(name, self._matrices[name].values)
        return self._tensors.read(name)

    def block_format(self, name: str) -> str | None:
        matrix = self._matrices.get(name)
        return None if matrix is None else _told(name, lambda: matrix.block_format)

    def read_blocks(self, name: str) -> torch.Tensor:
        matrix = self._matrices[name]
        assert isinstance(matrix, IntegerMatrix)
        return _told(name, matrix.blocks)


def _told(name: str, read: Callable[[], T]) -> T:
    """Raises ValueError: the tensors of a matrix do not fit each other; names it."""
    try:
        return read()
    except (ValueError, RuntimeError, IndexError, TypeError) as error:
        raise ValueError(
            f"the quantised tensors of {short(name)} do not fit each other: {short_error(error)}"
        ) from None
