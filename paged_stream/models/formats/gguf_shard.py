"""The weights of a GGUF file, under the names of a folder in Hugging Face layout."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import gguf
import numpy as np
import torch

from paged_stream.attention.native import NativeBackend
from paged_stream.layers.blocks import BLOCK_FORMATS
from paged_stream.models.decoder import Decoder
from paged_stream.models.family import Family
from paged_stream.models.formats.gguf_split import read_model
from paged_stream.models.formats.shards import Shard
from paged_stream.models.model_config import ModelConfig


class GGUFShard(Shard):
    """All tensors of a model that a folder of config.json would have.

    Args:
        path: of the file, or of one of several.

    Raises:
        ValueError: a file is damaged or missing.
    """

    def __init__(self, path: Path, family: Family, config: ModelConfig) -> None:
        self._family, self._config = family, config
        file = read_model(path)
        parameters = dict(Decoder(config, NativeBackend(), device="meta").named_parameters())
        sources = [weight.source for weight in family.weights(config, parameters)]
        names = gguf_names(file.metadata["general.architecture"], sources, config)
        self._names = {source: name for source, name in names.items() if name in file.tensors}
        self._tensors = file.tensors
        self.names = list(self._names)

    def describe(self, name: str) -> tuple[list[int], str]:
        return self._tensors[self._names[name]].shape, "float32"

    def read(self, name: str) -> torch.Tensor:
        return self._read(name, self._tensors[self._names[name]].values())

    def name_in_file(self, name: str) -> str:
        return self._names[name]

    def block_format(self, name: str) -> str | None:
        tensor = self._tensors[self._names[name]]
        is_taken = tensor.kind in BLOCK_FORMATS and len(tensor.shape) == 2
        return tensor.kind if is_taken and not self._config.head_padding else None

    def read_blocks(self, name: str) -> torch.Tensor:
        # Rows of bytes: what `from_gguf` does to a matrix only moves rows.
        return self._read(name, self._tensors[self._names[name]].data)

    def _read(self, name: str, array: np.ndarray) -> torch.Tensor:
        moved = self._family.from_gguf(self._config, name, array)
        return torch.from_numpy(np.ascontiguousarray(moved))


def gguf_names(architecture: str, sources: Iterable[str], config: ModelConfig) -> dict[str, str]:
    """The names in a GGUF file of tensors in Hugging Face layout."""
    enums = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(enums[architecture], config.num_layers)
    # A weight that gguf has no name for is looked for under its own, and so reported missing.
    return {name: table.get_name(name, (".weight", ".bias")) or name for name in sources}
