"""Which family serves a checkpoint."""

from __future__ import annotations

from paged_stream.models.family import Family
from paged_stream.models.llama import Llama

FAMILIES: tuple[Family, ...] = (Llama(),)


def family_of(model_type: str) -> Family:
    """Find the family for config.json's ``model_type``."""
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    supported = sorted(name for family in FAMILIES for name in family.model_types)
    raise ValueError(
        f"model_type={model_type!r} is not supported; supported: {', '.join(supported)}"
    )


def family_of_gguf(architecture: str) -> Family:
    """Find the family for a GGUF file's ``general.architecture``."""
    for family in FAMILIES:
        if architecture == family.gguf_architecture:
            return family
    supported = sorted(f.gguf_architecture for f in FAMILIES if f.gguf_architecture)
    raise ValueError(
        f"general.architecture={architecture!r} is not supported; supported: {', '.join(supported)}"
    )
