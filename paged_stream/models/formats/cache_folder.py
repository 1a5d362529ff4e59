"""Where what was worked out once about models is kept: conversions, and what was checked."""

from __future__ import annotations

import os
from pathlib import Path

REMEDIES = "pass cache_dir= (--cache-dir), a folder that you may write to, or set XDG_CACHE_HOME"


def default_cache_dir() -> Path:
    """``paged_stream`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``.

    Raises:
        ValueError: this user has no home.
    """
    if root := os.environ.get("XDG_CACHE_HOME"):
        return Path(root) / "paged_stream"
    try:
        return Path.home() / ".cache" / "paged_stream"
    except RuntimeError as error:
        raise ValueError(f"no folder for converted models: {error}; {REMEDIES}") from error
