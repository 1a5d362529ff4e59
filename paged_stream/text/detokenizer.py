"""From tokens to text as they come, in constant memory; finds stop strings on the way."""

from __future__ import annotations

from collections.abc import Sequence

from paged_stream.text.increments import increments
from paged_stream.text.stop_strings import StopStrings
from paged_stream.text.tokenizer import Tokenizer

# How far back a turn looks for what its first tokens depend on: whether text precedes, and of which
# character they may be the rest. Special tokens, which are skipped, count too.
CONTEXT_TOKENS = 16


class Detokenizer:
    """Text of one turn, which follows ``context``: the last `CONTEXT_TOKENS` tokens before it.

    The texts of turns that follow each other join to the text of all tokens. So a character that
    a turn leaves unfinished is no text yet; it comes out in the turn that finishes it.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str], context: Sequence[int] = ()
    ) -> None:
        self._increments = increments(tokenizer, context)
        self._stop = StopStrings(stop)

    def append(self, token_id: int) -> tuple[str, bool]:
        """Add a token.

        Returns:
            The new text, and whether a stop string was completed; the text ends before it.
        """
        return self._stop.append(self._increments.append(token_id))

    def finish(self) -> str:
        """Give out what was held back for a stop string: no more tokens will come."""
        return self._stop.take_held()
