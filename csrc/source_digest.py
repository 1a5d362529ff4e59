"""What a library is known by: a digest of the sources that it was made of."""

from __future__ import annotations

import hashlib
from pathlib import Path

_ENDINGS = {".cpp", ".cu", ".cuh", ".h", ".inl"}


def source_digest(*folders: str) -> str:
    """The digest of all sources of ``csrc``, and of these folders beside it."""
    root = Path(__file__).parents[1]
    paths = [p for name in ("csrc", *folders) for p in (root / name).rglob("*.*")]
    digest = hashlib.sha256()
    for path in sorted(path for path in paths if path.suffix in _ENDINGS):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]
