"""Projections in blocks of 32 numbers: those that a GGUF file holds, or made while loading.

Embeddings, norms and biases stay in the model's dtype.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from safetensors import safe_open

from paged_stream.layers.linear import BLOCK_SIZE, Linear
from paged_stream.models.decoder import Decoder
from paged_stream.models.family import Family
from paged_stream.models.files import ModelFiles

# Written beside converted weights: the matrices of a GGUF file in the file's own blocks, in the
# safetensors format, but not under its suffix: other engines load every file that has it.
BLOCKS_FILE = "weights.blocks"


def take_stored_blocks(decoder: Decoder, family: Family, files: ModelFiles) -> set[str]:
    """Give projections the blocks that the model's GGUF file holds for them.

    A projection put together from tensors of different formats, or of one that the kernels do not
    multiply by, is left alone.

    Returns:
        The names of the tensors taken.
    """
    path = files.folder / BLOCKS_FILE
    if not path.is_file():
        return set()
    taken: set[str] = set()
    with safe_open(path, framework="pt") as file:
        formats = json.loads(file.metadata()["formats"])
        for linear, sources in _projections(decoder, family):
            kinds = {formats.get(source) for source in sources}
            if len(kinds) != 1 or (block_format := kinds.pop()) is None:
                continue
            blocks = torch.cat([file.get_tensor(source) for source in sources])
            linear.set_blocks(blocks, block_format)
            taken.update(sources)
    return taken


def quantize_weights(decoder: Decoder, quantization: str) -> None:
    """Round every projection to blocks as llama.cpp does: ``"int8"`` to Q8_0, ``"int4"`` to Q4_1,
    with the head, on which all tokens' probabilities depend, in Q8_0.

    Raises:
        ValueError: in_features of a projection is no multiple of 32.
    """
    for name, module in decoder.named_modules():
        if not isinstance(module, Linear):
            continue
        assert module.weight is not None
        in_features = module.weight.shape[1]
        if in_features % BLOCK_SIZE:
            raise ValueError(
                f"quantization={quantization!r} needs projections of a multiple of {BLOCK_SIZE} "
                f"inputs, but {name} has {in_features}; use quantization=None"
            )
        block_format = "Q8_0" if quantization == "int8" or name == "head" else "Q4_1"
        module.set_blocks(_quantize(module.weight, block_format), block_format)


def _projections(decoder: Decoder, family: Family) -> list[tuple[Linear, list[str]]]:
    """Every projection and the checkpoint tensors that make its rows, in order."""
    sources: dict[str, list[str]] = {}
    for weight in family.weights(decoder.config, dict(decoder.named_parameters())):
        sources.setdefault(weight.target, []).append(weight.source)
    # A tied head shares the parameter that is listed as the embedding's.
    tied = {"head.weight": "embedding.weight"} if decoder.config.tie_word_embeddings else {}
    targets = {
        f"{name}.weight": module
        for name, module in decoder.named_modules()
        if isinstance(module, Linear)
    }
    return [(module, sources[tied.get(name, name)]) for name, module in targets.items()]


def _quantize(weight: torch.Tensor, block_format: str) -> torch.Tensor:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    blocks = quantize(weight.float().numpy(), GGMLQuantizationType[block_format])
    return torch.from_numpy(np.ascontiguousarray(blocks))
