"""The name that was probably meant by one that does not exist."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like ``name``, whatever its case, or ``None`` if none is much like it."""
    folded = {each.casefold(): each for each in known if each != name}
    found = get_close_matches(name.casefold(), folded, n=1, cutoff=0.75)
    return folded[found[0]] if found else None
