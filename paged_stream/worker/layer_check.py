"""Where in the model numbers stop being finite, for each token of one step."""

from __future__ import annotations

import torch


class LayerCheck:
    """Looks at what the parts of a model give, in order.

    It waits for the device only when it is asked for the first part.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[str, torch.Tensor]] = []  # bool [T]: whether a token's are not

    def begin(self) -> None:
        """Forget the last step."""
        self._parts.clear()

    def note(self, part: str, *outputs: torch.Tensor) -> None:
        """Look at float [T, ...] outputs of a part."""
        bad = [~output.flatten(1).isfinite().all(dim=1) for output in outputs]
        self._parts.append((part, torch.stack(bad).any(dim=0)))

    def note_rows(self, part: str, rows: torch.Tensor, output: torch.Tensor) -> None:
        """Look at float [N, ...] output of a part for N of the T tokens, in these rows."""
        bad = torch.zeros_like(self._parts[0][1])
        bad[rows] = ~output.isfinite().all(dim=1)
        self._parts.append((part, bad))

    def first_part(self, start: int, stop: int) -> str | None:
        """The first part that gave something for tokens ``[start, stop)`` of the step that is not
        finite; ``None`` if none did."""
        return next((part for part, bad in self._parts if bad[start:stop].any()), None)
