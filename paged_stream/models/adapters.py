"""A LoRA adapter at the places of a decoder's projections, to be added while it computes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch

from paged_stream.layers.low_rank import LoadedAdapter
from paged_stream.models.decoder import Decoder
from paged_stream.models.decoder_layer import DecoderLayer
from paged_stream.models.family import padded_heads, padded_inputs, split_rows
from paged_stream.models.formats.lora import LowRank, read_adapter
from paged_stream.models.registry import family_of
from paged_stream.ops import LowRank as Part
from paged_stream.ops import Projection
from paged_stream.system.short_text import some

_MODULES = {
    Projection.QKV: "attention.qkv",
    Projection.OUTPUT: "attention.output",
    Projection.UP: "mlp.up",
    Projection.DOWN: "mlp.down",
}


@torch.inference_mode()
def load_adapter(folder: Path, decoder: Decoder) -> tuple[str, LoadedAdapter]:
    """Read an adapter as PEFT writes it.

    Args:
        decoder: of one rank, which has the whole model.

    Returns:
        A digest of what it adds, and the adapter in the decoder's dtype, on its device.

    Raises:
        ValueError: it cannot be read, is none for this model, or changes more than the projections
            of layers.
    """
    family = family_of(decoder.config.model_type)
    adapter = {family.rename(name): each for name, each in read_adapter(folder).items()}
    parts = list(_parts(adapter, decoder))
    if adapter:
        raise ValueError(
            f"{folder} changes what the model lacks, or what no adapter of a request can: "
            f"{some(sorted(adapter))}"
        )
    return _digest(parts), LoadedAdapter(parts, len(decoder.layers), decoder.dtype)


def _parts(adapter: dict[str, LowRank], decoder: Decoder) -> Iterator[Part]:
    """What the adapter adds, taken out of it module by module."""
    config = decoder.config
    sources = family_of(config.model_type).sources(config)
    for index, layer in enumerate(decoder.layers):
        assert isinstance(layer, DecoderLayer)
        for projection, linear in layer.projections.items():
            module = _MODULES[projection]
            source = sources[f"layers.{{}}.{module}"]
            rows = split_rows(config, module, linear.out_features, len(source.names))
            for name, (start, stop) in zip(source.names, rows, strict=True):
                name = name.format(index)
                if (low_rank := adapter.pop(name, None)) is None:
                    continue
                up, down = low_rank.up, low_rank.down
                try:
                    if source.transform is not None:
                        # It moves rows of the matrix as the checkpoint holds it.
                        stored = up.T if low_rank.is_transposed else up
                        up = source.transform(stored, config)
                    if config.head_padding and projection is Projection.QKV:
                        up = padded_heads(up, config)
                    if config.head_padding and projection is Projection.OUTPUT:
                        down = padded_inputs(down, config)
                    fits = [len(up), down.shape[1]] == [stop - start, linear.in_features]
                except RuntimeError:
                    fits = False
                if not fits:
                    raise ValueError(
                        f"an adapter adds {low_rank.shape} to {name}, which has another shape"
                    )
                if linear.row_factors is not None:
                    up = up.float() * linear.row_factors[start:stop, None].cpu()
                down, up = (_of_model(tensor, name, decoder) for tensor in (down, up.T))
                yield Part(index, projection, start, down, up, low_rank.scaling)


def _of_model(tensor: torch.Tensor, name: str, decoder: Decoder) -> torch.Tensor:
    moved = tensor.to(decoder.dtype).contiguous()
    if not moved.isfinite().all():
        raise ValueError(f"an adapter adds to {name} what is not finite in {decoder.dtype}")
    return moved.to(decoder.embedding.device)


def _digest(parts: list[Part]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        down, up = (tensor.cpu() for tensor in (part.down, part.up))
        place = part.layer, int(part.projection), part.first_column
        digest.update(repr((place, part.scaling, down.shape, up.shape, down.dtype)).encode())
        digest.update(down.view(torch.uint8).numpy().tobytes())
        digest.update(up.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
