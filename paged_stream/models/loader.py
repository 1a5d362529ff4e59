"""Loading a model: resolve its name, read its configuration, fill its weights."""

from __future__ import annotations

import dataclasses
import logging

import torch

from paged_stream.attention.backend import AttentionBackend
from paged_stream.layers.rank_group import RankGroup
from paged_stream.models.decoder import Decoder
from paged_stream.models.formats.checkpoint import fill
from paged_stream.models.formats.files import ModelFiles
from paged_stream.models.formats.quantization import (
    block_formats,
    quantize_weights,
    take_stored_blocks,
)
from paged_stream.models.hf_config import token_ids
from paged_stream.models.model_config import ModelConfig
from paged_stream.models.registry import family_of
from paged_stream.models.sharding import WHOLE, Rank

logger = logging.getLogger(__name__)


def load_config(files: ModelFiles, length: int | None = None) -> ModelConfig:
    """Read config.json, and the end tokens that generation_config.json names beside its own.

    Args:
        length: tokens that a query sees at most, for rotary frequencies that depend on it;
            defaults to the trained length.

    Raises:
        ValueError: names the file and the field.
    """
    fields = files.read_json("config.json")
    try:
        if fields.get("quantization_config"):
            raise ValueError(
                "quantization_config is not supported; pass full-precision safetensors or a .gguf"
            )
        family = family_of(fields.get("model_type", ""))
        config = family.describe(family.read_config(fields), length)
        config.check()
    except (ValueError, AttributeError, KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{files.folder / 'config.json'}: {error}") from error
    if (files.folder / "generation_config.json").is_file():
        eos_token_ids = token_ids(files.read_json("generation_config.json").get("eos_token_id"))
        if eos_token_ids:
            ends = tuple(dict.fromkeys([*config.eos_token_ids, *eos_token_ids]))
            config = dataclasses.replace(config, eos_token_ids=ends)
            config.check()
    return config


def load_model(
    files: ModelFiles,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device | str,
    attention: AttentionBackend,
    quantization: str | None = None,
    rank: Rank = WHOLE,
    group: RankGroup | None = None,
) -> Decoder:
    """Build the decoder and fill it; never holds more than one tensor above the model's size.

    Args:
        config: of the whole model.
        quantization: as in `EngineConfig`.
        rank: load the part of it that this rank has; ``group`` are all of them.
    """
    logger.info("loading %s", files.name)
    decoder = Decoder(config, attention, dtype=dtype, device=device, rank=rank, group=group)
    whole = decoder
    if rank.size > 1:
        whole = Decoder(config, attention, dtype=dtype, device="meta")
    family = family_of(config.model_type)
    taken = set()
    if quantization == "auto":
        taken = take_stored_blocks(decoder, whole, family, files, rank)
    fill(decoder, whole, family, files, rank=rank, skip=taken)
    if quantization != "auto":
        quantize_weights(decoder, block_formats(whole, family, files, quantization))
    return decoder.eval()
