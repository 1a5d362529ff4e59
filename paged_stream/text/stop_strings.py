"""Stop strings, looked for in a text that arrives piece by piece."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Holds back the end of the text while it may be the beginning of a stop string."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._longest = max(map(len, self._stop), default=0)
        self._held = ""

    def append(self, text: str) -> tuple[str, bool]:
        """Add a piece.

        Returns:
            The text that is free now, and whether a stop string is complete. If one is, the text
            ends where the first of them begins.
        """
        if not self._stop:
            return text, False
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        free = len(text) - self._num_held(text)
        self._held = text[free:]
        return text[:free], False

    def take_held(self) -> str:
        """What was held back, if nothing more will come."""
        held, self._held = self._held, ""
        return held

    def _num_held(self, text: str) -> int:
        """Length of the longest end of ``text`` with which some stop string begins."""
        for length in range(min(len(text), self._longest - 1), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
