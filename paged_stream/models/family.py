"""What one model family states: how its config.json and its tensor names map to the decoder's."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

import numpy as np
import torch

from paged_stream.models.hf_config import read_config
from paged_stream.models.model_config import ModelConfig

# From a tensor as the checkpoint holds it (weight or bias) to the decoder's rows. Called with meta
# tensors too, to check shapes; raises RuntimeError for a shape that it cannot take.
Transform = Callable[[torch.Tensor, ModelConfig], torch.Tensor]


class Source:
    """Where the tensors of one module of the decoder come from.

    Args:
        names: modules of the checkpoint; several fill consecutive rows, in this order. Three of
            ``attention.qkv`` are Q, K and V; others share the rows evenly, as the gate and up
            projections of ``mlp.up`` do.
        transform: applied to each of their tensors.
    """

    def __init__(self, *names: str, transform: Transform | None = None) -> None:
        self.names = names
        self.transform = transform


@dataclass(frozen=True, slots=True)
class Weight:
    """Checkpoint tensor ``source`` fills rows ``start`` to ``stop`` of parameter ``target``."""

    source: str
    target: str
    start: int
    stop: int
    transform: Transform | None


class Family(ABC):
    """One family; stateless.

    ``model_types`` are the values of config.json's ``model_type`` it serves, ``config_class`` is
    transformers' package and configuration class for them. ``gguf_architecture`` is the value of
    ``general.architecture``, or ``None`` if GGUF files cannot be read. ``prefix`` stands before
    every name but the head's; checkpoints of the bare model leave it out.
    """

    model_types: tuple[str, ...]
    config_class: tuple[str, str]
    gguf_architecture: str | None = None
    prefix: str = "model."

    def read_config(self, fields: dict[str, Any]) -> Any:
        """Turn the fields of config.json into a transformers configuration.

        Raises:
            ValueError: transformers refuses them.
        """
        return read_config(*self.config_class, fields)

    @abstractmethod
    def describe(self, config: Any, length: int | None) -> ModelConfig:
        """Map a transformers configuration.

        Args:
            length: tokens that a query sees at most, for frequencies that depend on it; ``None``
                is the trained length.
        """

    @abstractmethod
    def sources(self, config: ModelConfig) -> dict[str, Source]:
        """The decoder's modules, ``layers.{}.`` for those of every layer, and their sources."""

    def embedding_name(self, config: ModelConfig) -> str:
        """The checkpoint's name of the table of token embeddings."""
        (name,) = self.sources(config)["embedding"].names
        return f"{name}.weight"

    def rename(self, name: str) -> str:
        """Turn a name that some checkpoints use into the one that `sources` uses."""
        if name.startswith((self.prefix, "lm_head.")):
            return name
        return self.prefix + name

    def ignored(self, config: ModelConfig, name: str) -> bool:
        """Whether a checkpoint tensor that nothing asks for is known to be harmless."""
        tied_head = config.tie_word_embeddings and name == "lm_head.weight"
        return tied_head or name.endswith("rotary_emb.inv_freq")

    def from_gguf(self, config: ModelConfig, source: str, tensor: np.ndarray) -> np.ndarray:
        """Undo the change that llama.cpp's converter made to tensor ``source``.

        For a matrix it may only move rows: it is called with rows of quantised bytes, too.
        """
        return tensor

    def weights(
        self, config: ModelConfig, parameters: Mapping[str, torch.Tensor]
    ) -> Iterator[Weight]:
        """Every tensor that the checkpoint must hold to fill the decoder's ``parameters``."""
        sources = self.sources(config)
        for target, parameter in parameters.items():
            module, kind = target.rsplit(".", 1)
            layer = re.match(r"layers\.(\d+)\.", module)
            index = layer[1] if layer else ""
            pattern = re.sub(r"^layers\.\d+\.", "layers.{}.", module)
            assert pattern in sources, f"{type(self).__name__}.sources has no entry for {pattern!r}"
            source = sources[pattern]
            rows = split_rows(config, module, parameter.shape[0], len(source.names))
            transform = source.transform
            if config.head_padding and pattern in _PADDED_HEADS:
                transform = _in_turn(transform, _PADDED_HEADS[pattern])
            for name, (start, stop) in zip(source.names, rows, strict=True):
                yield Weight(f"{name.format(index)}.{kind}", target, start, stop, transform)


def split_rows(
    config: ModelConfig, module: str, num_rows: int, num_parts: int
) -> list[tuple[int, int]]:
    """Row ranges of a fused parameter: Q, K and V by their sizes, anything else evenly."""
    if module.endswith("attention.qkv") and num_parts == 3:
        bounds = [0, config.query_size, config.query_size + config.kv_size, num_rows]
    else:
        bounds = [num_rows * part // num_parts for part in range(num_parts + 1)]
    return list(zip(bounds, bounds[1:], strict=False))


# Transforms


def plus_one(tensor: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """A norm that multiplies by 1 + weight."""
    return tensor.float() + 1.0


def transposed(tensor: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Matrices stored as [in_features, out_features]; biases stay."""
    return tensor.T if tensor.dim() == 2 else tensor


def grouped_qkv(tensor: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Rows stored by KV head (its queries, its key, its value) become all Q, all K, all V."""
    group = config.num_heads // config.num_kv_heads
    head_dim = config.head_dim - config.head_padding
    heads = tensor.unflatten(0, (config.num_kv_heads, group + 2, head_dim))
    return torch.cat([part.flatten(0, 2) for part in heads.split((group, 1, 1), dim=1)])


def padded_heads(tensor: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Rows of zeros behind those of every head."""
    heads = tensor.unflatten(0, (-1, config.head_dim - config.head_padding))
    zeros = heads.new_zeros(len(heads), config.head_padding, *heads.shape[2:])
    return torch.cat([heads, zeros], dim=1).flatten(0, 1)


def padded_inputs(tensor: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Columns of zeros for what `padded_heads` adds; biases stay."""
    return padded_heads(tensor.T, config).T if tensor.dim() == 2 else tensor


_PADDED_HEADS: dict[str, Transform] = {
    "layers.{}.attention.qkv": padded_heads,
    "layers.{}.attention.output": padded_inputs,
}


def _in_turn(first: Transform | None, second: Transform) -> Transform:
    if first is None:
        return second

    @wraps(first)
    def both(tensor: torch.Tensor, config: ModelConfig) -> torch.Tensor:
        return second(first(tensor, config), config)

    return both
