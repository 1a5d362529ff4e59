"""Which family serves a checkpoint: whatever stands in the package ``families``."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache

from paged_stream.models import families
from paged_stream.models.family import Family


@cache
def all_families() -> tuple[Family, ...]:
    """One instance of each family, in the order of their modules."""
    found = []
    for module_info in pkgutil.iter_modules(families.__path__):
        module = importlib.import_module(f"{families.__name__}.{module_info.name}")
        found += [
            kind()
            for _, kind in inspect.getmembers(module, inspect.isclass)
            if issubclass(kind, Family)
            and kind.__module__ == module.__name__
            and not inspect.isabstract(kind)
        ]
    for names in ([n for f in found for n in f.model_types], [f.gguf_architecture for f in found]):
        taken = [name for name in names if name]
        assert len(taken) == len(set(taken)), f"two families claim one of {sorted(taken)}"
    return tuple(found)


def family_of(model_type: str) -> Family:
    """Find the family for config.json's ``model_type``.

    Raises:
        ValueError: lists the supported ones.
    """
    for family in all_families():
        if model_type in family.model_types:
            return family
    supported = sorted(name for family in all_families() for name in family.model_types)
    raise ValueError(
        f"model_type={model_type!r} is not supported; supported: {', '.join(supported)}"
    )


def family_of_gguf(architecture: str) -> Family:
    """Find the family for a GGUF file's ``general.architecture``.

    Raises:
        ValueError: lists the supported ones.
    """
    for family in all_families():
        if architecture == family.gguf_architecture:
            return family
    supported = sorted(f.gguf_architecture for f in all_families() if f.gguf_architecture)
    raise ValueError(
        f"general.architecture={architecture!r} is not supported; supported: {', '.join(supported)}"
    )
