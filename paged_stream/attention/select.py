"""Choosing an attention backend by its name in `EngineConfig`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from paged_stream.attention.backend import AttentionBackend
from paged_stream.attention.native import NativeBackend


def make_backend(
    name: str,
    head_dim: int,
    block_size: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    features: Sequence[str],
) -> AttentionBackend:
    """Build the backend ``"native"``, ``"xformers"`` or ``"auto"``, which is native.

    Args:
        features: what attention does in this model beside scaled products, in words.

    Raises:
        ValueError: the backend does not compute what the model or the settings ask for.
        ImportError: xformers is asked for, but does not import.
    """
    if name != "xformers":
        return NativeBackend()
    from paged_stream.attention.xformers import XformersBackend

    XformersBackend.check(
        head_dim=head_dim,
        block_size=block_size,
        dtype=dtype,
        kv_dtype=kv_dtype,
        features=features,
    )
    return XformersBackend()
