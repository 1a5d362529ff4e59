"""Loading a model: resolve its name, read its configuration, fill its weights."""

from __future__ import annotations

import dataclasses
import logging
from contextlib import ExitStack

import torch

from paged_stream.attention.backend import AttentionBackend
from paged_stream.layers.rank_group import RankGroup
from paged_stream.models.config_limits import check_fields, read_token_ids
from paged_stream.models.decoder import Decoder
from paged_stream.models.formats.checkpoint import Checkpoint
from paged_stream.models.formats.consolidated import read_fields
from paged_stream.models.formats.files import ADAPTER_FILE, ModelFiles
from paged_stream.models.formats.quantization import (
    block_formats,
    quantize_weights,
    take_stored_blocks,
)
from paged_stream.models.formats.quantized_methods import method_of
from paged_stream.models.model_config import ModelConfig
from paged_stream.models.registry import family_of
from paged_stream.models.sharding import WHOLE, Rank
from paged_stream.system.short_text import short_error

logger = logging.getLogger(__name__)


def load_config(files: ModelFiles, length: int | None = None) -> ModelConfig:
    """Read config.json, and the end tokens that generation_config.json names beside its own.

    Args:
        length: tokens that a query sees at most, for rotary frequencies that depend on it;
            defaults to the trained length.

    Raises:
        ValueError: names the file and the field.
    """
    path, fields = read_fields(files)
    try:
        check_fields(fields)
        if quantization := files.quantization_config():
            method_of(quantization, [])
        family = family_of(fields.get("model_type", ""))
        config = family.describe(family.read_config(fields), length)
        config.check()
    except Exception as error:  # families and transformers stumble over anything that is odd
        raise ValueError(f"{path}: {short_error(error)}") from error
    return _with_more_ends(config, files)


def _with_more_ends(config: ModelConfig, files: ModelFiles) -> ModelConfig:
    name = "generation_config.json"
    if not (files.folder / name).is_file():
        return config
    try:
        eos_token_ids = read_token_ids("eos_token_id", files.read_json(name).get("eos_token_id"))
        ends = tuple(dict.fromkeys([*config.eos_token_ids, *eos_token_ids]))
        config = dataclasses.replace(config, eos_token_ids=ends)
        config.check()
    except ValueError as error:
        path = str(files.folder / name)
        raise ValueError(f"{'' if path in str(error) else path + ': '}{error}") from None
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
    if files.adapter is None and (files.folder / ADAPTER_FILE).is_file():
        logger.warning(
            "%s holds a LoRA adapter beside its weights, which is not used; merge_lora=%r merges "
            "it into them",
            files.folder,
            str(files.folder),
        )
    family = family_of(config.model_type)
    whole = Decoder(config, attention, dtype=dtype, device="meta")
    with ExitStack() as stack:
        checkpoint = Checkpoint(files, family, whole, stack)
        # Only now that the files are known to fill it does it get memory.
        decoder = Decoder(config, attention, dtype=dtype, device=device, rank=rank, group=group)
        if quantization == "auto":
            take_stored_blocks(decoder, checkpoint, rank)
        checkpoint.fill(decoder, rank)
    quantize_weights(decoder, block_formats(whole, quantization))
    return decoder.eval()
