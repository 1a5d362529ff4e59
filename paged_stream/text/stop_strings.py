"""Stop strings, looked for in a text that arrives piece by piece."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Holds back the end of the text while it may be the beginning of a stop string."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._longest = max(map(len, self._stop), default=0)
        self._held = ""

    def append(self, text: str, *, may_stop: bool = True) -> tuple[str, str | None]:
        """Add a piece.

        Args:
            may_stop: whether a stop string that ends in this piece counts.

        Returns:
            The text that is free now, and the stop string that is complete, if one is. Then the
            text ends where it begins. Of several, it is the first to begin.
        """
        if not self._stop:
            return text, None
        # What is held may have a stop string in it that did not count.
        starts = [max(0, len(self._held) - len(stop) + 1) for stop in self._stop]
        text = self._held + text
        if may_stop:
            places = map(text.find, self._stop, starts)
            found = [place for place in zip(places, self._stop, strict=True) if place[0] >= 0]
            if found:
                self._held = ""
                at, stop = min(found, key=lambda place: place[0])
                return text[:at], stop
        free = len(text) - self._num_held(text)
        self._held = text[free:]
        return text[:free], None

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
