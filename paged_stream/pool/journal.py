"""What a pool remembers of a stream so that nothing that was acknowledged can be lost: where it was
saved last, and the tokens since.

A stream is its tokens. So it is restored by loading the save and appending the rest: what was
given, and what was generated and handed out, is all the same then.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Journal:
    """Tokens from position ``start`` on, where ``path`` leads (``None``: the stream as opened).

    A save may be ahead of what was acknowledged: tokens that were generated when it was made, but
    not handed out yet. It counts once they are. If its worker dies before, it is of no use.
    ``num_unsaved`` tokens came since the last try at a save.
    """

    start: int
    path: Path | None = None
    tokens: array[int] = field(default_factory=lambda: array("i"))
    num_unsaved: int = 0
    _ahead: list[tuple[int, Path]] = field(default_factory=list)

    @property
    def end(self) -> int:
        """Position behind the last acknowledged token."""
        return self.start + len(self.tokens)

    def extend(self, token_ids: Iterable[int]) -> list[Path]:
        """Acknowledge tokens; returns files that are of no use any more."""
        before = self.end
        self.tokens.extend(token_ids)
        self.num_unsaved += self.end - before
        ahead, self._ahead = self._ahead, []
        return [path for save in ahead for path in self.saved(*save)]

    def saved(self, position: int, path: Path) -> list[Path]:
        """Note a save at a position; returns files that are of no use any more."""
        if position > self.end:
            self._ahead.append((position, path))
            return []
        if position < self.start:
            return [path]
        old, self.path = self.path, path
        del self.tokens[: position - self.start]
        self.start = position
        return [] if old is None else [old]

    def forget_ahead(self) -> list[Path]:
        """Give up saves that are ahead; returns their files."""
        ahead, self._ahead = self._ahead, []
        return [path for _, path in ahead]
