"""A LoRA adapter in a folder as PEFT writes it, which may be merged into a model's matrices."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch

from paged_stream.models.formats.files import ADAPTER_FILE, read_json_object
from paged_stream.models.formats.shards import PickledShard, SafetensorsShard, Shard
from paged_stream.system.short_text import short, some

_WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
# With these, more than two thin matrices is added to each module.
_REFUSED = ("use_dora", "modules_to_save", "lora_bias", "use_qalora", "layer_replication") + (
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
)
# Ways to begin a training that leave the model's own weights as they are.
_BEGINNINGS = (None, True, False, "gaussian", "orthogonal", "eva")

Sources = Mapping[str, tuple[Shard, str]]


class LowRank(NamedTuple):
    """What an adapter adds to a matrix: ``scaling * up @ down``, transposed if the model holds the
    matrix as [in_features, out_features].

    Args:
        down: PEFT's A, [rank, in_features].
        up: PEFT's B, [out_features, rank].
    """

    down: torch.Tensor
    up: torch.Tensor
    scaling: float
    is_transposed: bool

    @property
    def shape(self) -> list[int]:
        """Of the matrix, as the model holds it."""
        shape = [self.up.shape[0], self.down.shape[1]]
        return shape[::-1] if self.is_transposed else shape

    def added_to(self, matrix: torch.Tensor) -> torch.Tensor:
        """float32."""
        up, down = self.up.float(), self.down.float()
        factors = (down.T, up.T) if self.is_transposed else (up, down)
        return torch.addmm(matrix.float(), *factors, alpha=self.scaling)


class MergedMatrix(Shard):
    """A matrix of another file, with what an adapter adds to it."""

    def __init__(self, shard: Shard, name: str, low_rank: LowRank) -> None:
        self._shard, self._low_rank = shard, low_rank
        self.names = [name]

    def describe(self, name: str) -> tuple[list[int], str]:
        return self._shard.describe(name)

    def read(self, name: str) -> torch.Tensor:
        return self._low_rank.added_to(self._shard.read(name))

    def name_in_file(self, name: str) -> str:
        return self._shard.name_in_file(name)


def merged(sources: Sources, folder: Path, rename: Callable[[str], str]) -> dict[str, Any]:
    """The sources of a model with an adapter merged into them.

    Args:
        sources: by the family's names: where to read, and under which name.
        rename: makes a family's name of a checkpoint's.

    Raises:
        ValueError: the adapter cannot be read, or is none for this model.
    """
    try:
        read = read_adapter(folder)
    except ValueError as error:
        raise ValueError(f"merge_lora: {error}") from None
    adapter = {rename(f"{module}.weight"): each for module, each in read.items()}
    if unknown := [name for name in adapter if name not in sources]:
        raise ValueError(f"merge_lora: {folder} changes what the model lacks: {some(unknown)}")
    result = dict(sources)
    for name, low_rank in adapter.items():
        shard, stored = sources[name]
        if (shape := shard.describe(stored)[0]) != low_rank.shape:
            raise ValueError(
                f"merge_lora: {folder} adds {low_rank.shape} to {name}, which has shape {shape}"
            )
        result[name] = MergedMatrix(shard, stored, low_rank), stored
    return result


def read_adapter(folder: Path) -> dict[str, LowRank]:
    """Read an adapter, by the names of the modules that it changes.

    Raises:
        ValueError: it is none, or not one that only adds matrices of low rank.
    """
    config = _read_config(folder)
    tensors = _read_tensors(folder)
    strange = [name for name in tensors if not _NAME.fullmatch(name)]
    modules = {match[1] for name in tensors if (match := _NAME.fullmatch(name))}
    pairs = {
        module: [tensors.get(f"base_model.model.{module}.lora_{part}.weight") for part in "AB"]
        for module in sorted(modules)
    }
    if strange or not pairs:
        raise ValueError(
            f"{folder} must hold lora_A.weight and lora_B.weight of modules, got "
            f"{some(sorted(strange)) or 'nothing'}"
        )
    found = {}
    for module, (down, up) in pairs.items():
        if down is None or up is None or down.dim() != 2 or up.shape[1:] != down.shape[:1]:
            raise ValueError(f"{folder}: A and B of {module} do not fit each other")
        scaling = _scaling(config, module, len(down), folder)
        found[module] = LowRank(down, up, scaling, bool(config.get("fan_in_fan_out")))
    return found


def _read_config(folder: Path) -> dict[str, Any]:
    config = read_json_object(path := folder / ADAPTER_FILE)
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type must be LORA, got {short(config.get('peft_type'))}")
    refused = [name for name in _REFUSED if config.get(name)]
    if config.get("bias", "none") != "none":
        refused.append("bias")
    if config.get("init_lora_weights") not in _BEGINNINGS:
        refused.append(f"init_lora_weights={short(config['init_lora_weights'])}")
    if refused:
        raise ValueError(f"{path}: adapters with {', '.join(refused)} are not supported")
    return config


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    for name in _WEIGHT_FILES:
        if not (path := folder / name).is_file():
            continue
        with ExitStack() as stack:
            is_pickle = path.suffix == ".bin"
            shard = PickledShard(path) if is_pickle else SafetensorsShard(path, stack)
            return {tensor: shard.read(tensor) for tensor in shard.names}
    raise ValueError(f"{folder} has none of {', '.join(_WEIGHT_FILES)}")


def _scaling(config: Mapping[str, Any], module: str, rank: int, folder: Path) -> float:
    """What the product of a module's matrices is multiplied by."""
    patterns = config.get("alpha_pattern") or {}
    try:
        alphas = [a for key, a in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", module)]
        alpha = float([*alphas, config["lora_alpha"]][0])
    except (AttributeError, KeyError, TypeError, ValueError, re.error) as error:
        reason = f"lora_alpha and alpha_pattern must be numbers: {short(error)}"
        raise ValueError(f"{folder / ADAPTER_FILE}: {reason}") from None
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
