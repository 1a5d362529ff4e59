"""Projections in blocks of 32 numbers: those that a GGUF file holds, or made while loading.

Embeddings, norms and biases stay in the model's dtype.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from safetensors import safe_open

from paged_stream.attention.native import NativeBackend
from paged_stream.layers.linear import BLOCK_BYTES, BLOCK_SIZE, Linear
from paged_stream.models.decoder import Decoder
from paged_stream.models.family import Family
from paged_stream.models.formats.files import BLOCKS_FILE, ModelFiles
from paged_stream.models.model_config import ModelConfig
from paged_stream.models.sharding import WHOLE, Rank, part_of


def block_formats(
    decoder: Decoder, family: Family, files: ModelFiles, quantization: str | None
) -> dict[str, str]:
    """Format of every projection that is to be quantised, by its name.

    Args:
        quantization: ``"auto"``: what the model's GGUF file holds, unless a projection is put
            together from tensors of different formats or of one that the kernels do not multiply
            by. ``"int8"``: Q8_0. ``"int4"``: Q4_1, and Q8_0 for the head, on which all tokens'
            probabilities depend.
    """
    names = [name for name, module in decoder.named_modules() if isinstance(module, Linear)]
    if quantization == "auto":
        return _stored_formats(decoder, family, files)
    if quantization == "int8":
        return dict.fromkeys(names, "Q8_0")
    if quantization == "int4":
        return {name: "Q8_0" if name == "head" else "Q4_1" for name in names}
    return {}


def take_stored_blocks(
    decoder: Decoder, whole: Decoder, family: Family, files: ModelFiles, rank: Rank = WHOLE
) -> None:
    """Give projections the blocks that the model's GGUF file holds for them.

    Args:
        decoder: of one rank.
        whole: the whole model, whose parameters need no memory.

    Raises:
        ValueError: a rank's part of a projection ends within a block.
    """
    formats = block_formats(whole, family, files, "auto")
    if not formats:
        return
    with safe_open(files.folder / BLOCKS_FILE, framework="pt") as file:
        for name, (_, sources) in _projections(whole, family).items():
            if name in formats:
                blocks = torch.cat([file.get_tensor(source) for source in sources])
                linear = decoder.get_submodule(name)
                assert isinstance(linear, Linear) and linear.weight is not None
                _check_inputs(name, linear.weight.shape[1])
                part = part_of(whole.config, f"{name}.weight", len(blocks), rank)
                num_bytes = BLOCK_BYTES[formats[name]]
                linear.set_blocks(part.of(blocks, BLOCK_SIZE, num_bytes), formats[name])


def quantize_weights(decoder: Decoder, formats: dict[str, str]) -> None:
    """Round projections to blocks as llama.cpp does.

    Raises:
        ValueError: in_features of a projection is no multiple of 32.
    """
    for name, block_format in formats.items():
        linear = decoder.get_submodule(name)
        assert isinstance(linear, Linear) and linear.weight is not None
        _check_inputs(name, linear.weight.shape[1])
        linear.set_blocks(_quantize(linear.weight, block_format), block_format)


def _check_inputs(name: str, in_features: int) -> None:
    if in_features % BLOCK_SIZE:
        raise ValueError(
            f"quantization needs projections of a multiple of {BLOCK_SIZE} inputs on each rank, "
            f"but {name} has {in_features}; use quantization=None"
        )


def weight_bytes(
    files: ModelFiles,
    config: ModelConfig,
    family: Family,
    dtype: torch.dtype,
    quantization: str | None,
) -> int:
    """Memory that all weights take, without reading them."""
    decoder = Decoder(config, NativeBackend(), dtype=dtype, device="meta")
    formats = block_formats(decoder, family, files, quantization)
    total = config.num_parameters * dtype.itemsize
    for name, block_format in formats.items():
        linear = decoder.get_submodule(name)
        assert isinstance(linear, Linear) and linear.weight is not None
        total += linear.weight.numel() // BLOCK_SIZE * BLOCK_BYTES[block_format]
        if not (name == "head" and config.tie_word_embeddings):  # the table stays, to look up in
            total -= linear.weight.numel() * dtype.itemsize
    return total


def _stored_formats(decoder: Decoder, family: Family, files: ModelFiles) -> dict[str, str]:
    path = files.folder / BLOCKS_FILE
    if not path.is_file():
        return {}
    with safe_open(path, framework="pt") as file:
        stored = json.loads(file.metadata()["formats"])
    formats = {}
    for name, (_, sources) in _projections(decoder, family).items():
        kinds = {stored.get(source) for source in sources}
        if len(kinds) == 1 and (kind := kinds.pop()) is not None:
            formats[name] = kind
    return formats


def _projections(decoder: Decoder, family: Family) -> dict[str, tuple[Linear, list[str]]]:
    """Every projection by its name, and the checkpoint tensors that make its rows, in order."""
    sources: dict[str, list[str]] = {}
    for weight in family.weights(decoder.config, dict(decoder.named_parameters())):
        sources.setdefault(weight.target, []).append(weight.source)
    # A tied head shares the parameter that is listed as the embedding's.
    tied = {"head": "embedding"} if decoder.config.tie_word_embeddings else {}
    return {
        name: (module, sources[f"{tied.get(name, name)}.weight"])
        for name, module in decoder.named_modules()
        if isinstance(module, Linear)
    }


def _quantize(weight: torch.Tensor, block_format: str) -> torch.Tensor:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    blocks = quantize(weight.float().numpy(), GGMLQuantizationType[block_format])
    return torch.from_numpy(np.ascontiguousarray(blocks))
