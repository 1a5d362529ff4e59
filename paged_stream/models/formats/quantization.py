"""Projections in quantised blocks: those that a checkpoint holds, or made while loading.

Norms and biases stay in the model's dtype, and so does the table of embeddings unless a checkpoint
holds it in blocks.
"""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import torch

from paged_stream.attention.native import NativeBackend
from paged_stream.layers.blocks import BLOCK_FORMATS, PART_ROWS, Blocks, packed_bytes
from paged_stream.layers.embedding import Embedding
from paged_stream.layers.linear import Linear
from paged_stream.models.decoder import Decoder
from paged_stream.models.family import Family
from paged_stream.models.formats.checkpoint import Checkpoint
from paged_stream.models.formats.files import ModelFiles
from paged_stream.models.model_config import ModelConfig
from paged_stream.models.sharding import WHOLE, Part, Rank, part_of

# A module of the decoder, and the parts of its weight: their formats and numbers of rows.
BlockParts = dict[str, list[tuple[str, int]]]
_BLOCK_SIZE = 32


def block_formats(decoder: Decoder, quantization: str | None) -> dict[str, str]:
    """Format of every projection that is to be rounded while loading, by its name.

    Args:
        quantization: ``"int8"``: Q8_0. ``"int4"``: Q4_1, and Q8_0 for the head, on which all
            tokens' probabilities depend.
    """
    names = [name for name, module in decoder.named_modules() if isinstance(module, Linear)]
    if quantization == "int8":
        return dict.fromkeys(names, "Q8_0")
    if quantization == "int4":
        return {name: "Q8_0" if name == "head" else "Q4_1" for name in names}
    return {}


def stored_parts(checkpoint: Checkpoint, rank: Rank = WHOLE) -> BlockParts:
    """What of a model runs in the blocks that its checkpoint holds: projections and the table of
    embeddings. Not what is put together from something else as well, or what a rank's part of
    would end within a block."""
    whole = checkpoint.whole
    found: BlockParts = {}
    for name, module in whole.named_modules():
        if not isinstance(module, Linear | Embedding):
            continue
        if isinstance(module, Embedding) and rank.size > 1:
            continue
        parts = checkpoint.block_parts(_stored_name(whole, name))
        if parts and _fits(whole, name, parts, rank):
            found[name] = parts
    return found


def _stored_name(whole: Decoder, module: str) -> str:
    """A tied head shares the parameter that is listed as the embedding's."""
    is_tied = module == "head" and whole.config.tie_word_embeddings
    return "embedding.weight" if is_tied else f"{module}.weight"


def _fits(whole: Decoder, module: str, parts: list[tuple[str, int]], rank: Rank) -> bool:
    """Whether the kernels take a weight in these parts, on a rank too."""
    if any(rows % PART_ROWS for _, rows in parts[:-1]):
        return False
    if rank.size == 1:
        return True
    part = _part(whole, module, rank)
    if part.columns is None:
        return len(parts) == 1
    size = BLOCK_FORMATS[parts[0][0]].size
    ends = part.columns.start % size == 0 == part.columns.stop % size
    return len(parts) == 1 and ends


def _part(whole: Decoder, module: str, rank: Rank) -> Part:
    name = f"{module}.weight"
    return part_of(whole.config, name, len(whole.get_parameter(name)), rank)


def take_stored_blocks(decoder: Decoder, checkpoint: Checkpoint, rank: Rank = WHOLE) -> None:
    """Give modules of a decoder the blocks that the checkpoint holds for them.

    Args:
        decoder: of one rank.

    Raises:
        ValueError: a scale is no finite number; names the tensor.
    """
    tables: list[Blocks] = []
    for name in stored_parts(checkpoint, rank):
        module = decoder.get_submodule(name)
        if name == "head" and tables and checkpoint.whole.config.tie_word_embeddings:
            parts = tables
        else:
            parts = checkpoint.read_blocks(_stored_name(checkpoint.whole, name))
        if rank.size > 1:
            part = _part(checkpoint.whole, name, rank)
            size, num_bytes, _ = BLOCK_FORMATS[parts[0].format]
            parts = [parts[0]._replace(data=part.of(parts[0].data, size, num_bytes))]
        if isinstance(module, Embedding):
            tables = parts
            module.set_blocks(parts[0])
        else:
            assert isinstance(module, Linear)
            module.set_blocks(parts)


def quantize_weights(decoder: Decoder, formats: dict[str, str]) -> None:
    """Round projections to blocks as llama.cpp does.

    Raises:
        ValueError: in_features of a projection is no multiple of 32.
    """
    for name, block_format in formats.items():
        linear = decoder.get_submodule(name)
        assert isinstance(linear, Linear) and linear.weight is not None
        if (in_features := linear.weight.shape[1]) % _BLOCK_SIZE:
            raise ValueError(
                f"quantization needs projections of a multiple of {_BLOCK_SIZE} inputs on each "
                f"rank, but {name} has {in_features}; use quantization=None"
            )
        linear.set_blocks([Blocks(block_format, _quantize(linear.weight, block_format))])


def planned_parts(
    files: ModelFiles, config: ModelConfig, family: Family, quantization: str | None
) -> BlockParts:
    """What of a model will be in blocks, without reading its weights.

    Args:
        quantization: as in `EngineConfig`.
    """
    decoder = Decoder(config, NativeBackend(), device="meta")
    if quantization != "auto":
        formats = block_formats(decoder, quantization)
        return {
            name: [(kind, len(decoder.get_parameter(f"{name}.weight")))]
            for name, kind in formats.items()
        }
    if not files.holds_blocks:
        return {}
    with ExitStack() as stack:
        return stored_parts(Checkpoint(files, family, decoder, stack))


def weight_bytes(config: ModelConfig, dtype: torch.dtype, parts: BlockParts) -> int:
    """Memory that all weights take.

    Args:
        parts: what is in blocks; the rest is in ``dtype``.
    """
    decoder = Decoder(config, NativeBackend(), dtype=dtype, device="meta")
    total = config.num_parameters * dtype.itemsize
    is_tied = config.tie_word_embeddings
    for name, formats in parts.items():
        weight = decoder.get_parameter(f"{name}.weight")
        if name == "head" and is_tied and "embedding" in parts:
            continue  # the same blocks
        total += packed_bytes(formats, weight.shape[1])
        if not (name == "head" and is_tied):  # the table stays, to look up in
            total -= weight.numel() * dtype.itemsize
    return total


def _quantize(weight: torch.Tensor, block_format: str) -> torch.Tensor:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    blocks = quantize(weight.float().numpy(), GGMLQuantizationType[block_format])
    return torch.from_numpy(np.ascontiguousarray(blocks))
