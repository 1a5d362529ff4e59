"""Which sources the op library was made of."""

from __future__ import annotations

from paged_stream.ops.library import ops


def build_version() -> str:
    """The digest that ``csrc/source_digest.py`` gave the sources when the library was built."""
    return ops.build_version.default()
