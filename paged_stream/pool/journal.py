"""What a pool remembers of a stream so that nothing acknowledged is ever lost: the last save, and
the tokens since.

A stream is its tokens. So it is restored by loading the save and appending the rest, whether these
tokens were appended or generated at first. But a turn that begins when all is computed, as after a
rewind, computes the last token again, perhaps where it sees less than before; so what comes right
after a save is remembered.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Journal:
    """Tokens that come after a save.

    A save may be ahead of what was acknowledged: it then holds tokens that were generated but not
    handed out yet. It counts once they are. If its replica dies before that, it is useless.

    Args:
        start: position of the first of these tokens.
        path: the save, with the ``start`` tokens before them; ``None`` is the stream as it was
            opened.
        tokens: the tokens since.
        num_unsaved: how many of them came since the last attempt to save.
        is_continued: whether the first of them was generated, behind the last token of the save.
    """

    start: int
    path: Path | None = None
    tokens: array[int] = field(default_factory=lambda: array("i"))
    num_unsaved: int = 0
    is_continued: bool = False
    _ahead: list[tuple[int, Path]] = field(default_factory=list)

    @property
    def end(self) -> int:
        """Position after the last acknowledged token."""
        return self.start + len(self.tokens)

    def extend(self, token_ids: Iterable[int], *, generated: bool = False) -> list[Path]:
        """Acknowledge tokens; returns the files that are not needed any more."""
        before = self.end
        if not self.tokens:
            self.is_continued = generated
        self.tokens.extend(token_ids)
        self.num_unsaved += self.end - before
        ahead, self._ahead = self._ahead, []
        return [path for save in ahead for path in self.saved(*save)]

    def saved(self, position: int, path: Path) -> list[Path]:
        """Note a save at a position; returns the files that are not needed any more."""
        if position > self.end:
            self._ahead.append((position, path))
            return []
        if position < self.start:
            return [path]
        old, self.path = self.path, path
        if position > self.start:  # a save in the middle has its last token still to be computed
            self.is_continued = False
        del self.tokens[: position - self.start]
        self.start = position
        return [] if old is None else [old]

    def forget_ahead(self) -> list[Path]:
        """Give up saves that are ahead; returns their files."""
        ahead, self._ahead = self._ahead, []
        return [path for _, path in ahead]
