"""A model over large corpora, on Ray.

Ray is an extra. Nothing here imports it before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paged_stream.batch.batch_config import BatchConfig as BatchConfig
    from paged_stream.batch.dataset import generate_dataset as generate_dataset
    from paged_stream.batch.run import run_batch as run_batch

_HOME = {"BatchConfig": "batch_config", "generate_dataset": "dataset", "run_batch": "run"}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
