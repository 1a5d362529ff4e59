"""What a model computes: a digest of its description and of samples of its weights, the same
however many ranks share the model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from paged_stream.models.decoder import Decoder
from paged_stream.models.model_config import ModelConfig
from paged_stream.models.sharding import Rank, part_of, whole_rows

_SAMPLES = 64  # of each parameter

# Of one parameter: name, shape and dtype; and values, NaN where another rank has them.
Sample = tuple[str, torch.Tensor]


def sample_weights(decoder: Decoder, config: ModelConfig, rank: Rank) -> list[Sample]:
    """Sample what a rank has of every weight, before it is packed.

    Args:
        config: of the whole model.
    """
    samples = [(_description(config), torch.empty(0))]
    for name, tensor in (*decoder.named_parameters(), *decoder.named_buffers()):
        if name == "head.weight" and config.tie_word_embeddings:
            continue  # the embedding's, of which a rank's head has a part
        samples.append(_sample(name, tensor, config, rank))
    return samples


def fingerprint(ranks: Sequence[list[Sample]]) -> str:
    """Digest of the samples that the ranks of a model took."""
    digest = hashlib.blake2b(digest_size=16)
    for of_ranks in zip(*ranks, strict=True):
        header, values = of_ranks[0]
        for _, others in of_ranks[1:]:
            values = torch.where(values.isnan(), others, values)
        digest.update(header.encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _description(config: ModelConfig) -> str:
    """A digest of all that K and V depend on beside the weights; not of what only says when a text
    ends, or for which lengths the model was made."""
    layers = tuple(
        replace(layer, rotary=layer.rotary and replace(layer.rotary, min_length=1, max_length=None))
        for layer in config.layers
    )
    computed = replace(
        config,
        model_type="",
        layers=layers,
        max_position_embeddings=0,
        eos_token_ids=(),
        dtype=torch.float32,
        tie_word_embeddings=False,
    )
    return hashlib.blake2b(repr(computed).encode(), digest_size=16).hexdigest()


def _sample(name: str, tensor: torch.Tensor, config: ModelConfig, rank: Rank) -> Sample:
    shape = list(tensor.shape)
    if rank.size > 1:  # one rank's weight may be in several parts
        shape[0] = whole_rows(config, name, shape[0], rank)
    part = part_of(config, name, shape[0], rank)
    width, first_column = tensor[0].numel(), 0
    if part.columns is not None:
        shape[1] *= rank.size
        first_column = rank.index * width
    total = math.prod(shape)
    stride = max(1, total // _SAMPLES)
    places = torch.arange(min(total, _SAMPLES))
    places = places * stride + places * 37 % stride  # not all in one column
    rows, columns = places // (total // shape[0]), places % (total // shape[0]) - first_column
    values, first = torch.full([len(places)], torch.nan), 0
    for span in part.rows:
        here = (rows >= span.start) & (rows < span.stop) & (columns >= 0) & (columns < width)
        mine = tensor.reshape(-1, width)[first + rows[here] - span.start, columns[here]]
        values[here] = mine.float().cpu()
        first += len(span)
    return f"{name} {shape} {tensor.dtype}", values
