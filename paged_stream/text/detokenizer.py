"""From tokens to text as they come, in constant memory; finds stop strings on the way."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from paged_stream.text.increments import increments
from paged_stream.text.stop_strings import StopStrings
from paged_stream.text.tokenizer import Tokenizer

# How far back a turn looks for what its first tokens depend on: whether text precedes, and of which
# character they may be the rest. Special tokens, which are skipped, count too.
CONTEXT_TOKENS = 16
# Half a surrogate pair, which no text has, stands for each special token that a stop string names
# and the text does not show.
_FIRST_MARK, _NUM_MARKS = 0xD800, 0x800


class Detokenizer:
    """Text of one turn, which follows ``context``: the last `CONTEXT_TOKENS` tokens before it.

    The texts of turns that follow each other join to the text of all tokens. So a character that
    a turn leaves unfinished is no text yet; it comes out in the turn that finishes it. Where no
    turn can follow, `finish` shows it as U+FFFD, as transformers does.

    Args:
        stop: looked for in the text, with the special tokens shown that they name.
        includes_stop: whether the text ends behind the stop string.
        min_tokens: a stop string that is complete after so many tokens does not count.
        skip_special_tokens: as in `SamplingParams`.
        spaces_between_special_tokens: as there.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str],
        context: Sequence[int] = (),
        *,
        includes_stop: bool = False,
        min_tokens: int = 0,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> None:
        self._increments = increments(
            tokenizer,
            context,
            skip_special_tokens=skip_special_tokens,
            spaces_between_special_tokens=spaces_between_special_tokens,
        )
        self._marks = _marks(tokenizer, stop) if stop and skip_special_tokens else {}
        # A name may also be written letter by letter.
        ways = [
            (way, text) for text in stop for way in (text, _marked(text, self._marks, tokenizer))
        ]
        self._names = dict(ways)
        self._stop = StopStrings(list(self._names))
        self._includes_stop = includes_stop
        self._num_barred = min_tokens

    def append(self, token_id: int) -> tuple[str, str | None]:
        """Add a token.

        Returns:
            The new text, and the stop string that was completed, if one was.
        """
        may_stop, self._num_barred = self._num_barred <= 0, self._num_barred - 1
        text = self._increments.append(token_id) + self._marks.get(token_id, "")
        text, found = self._stop.append(text, may_stop=may_stop)
        text = self._shown(text)
        if found is None:
            return text, None
        stop = self._names[found]
        return text + stop * self._includes_stop, stop

    def finish(self, *, is_last: bool = False) -> str:
        """Give out what was held back: no more tokens will come.

        Args:
            is_last: no other turn will finish a character either.
        """
        text = self._shown(self._stop.take_held())
        return text + self._increments.finish() if is_last else text

    def _shown(self, text: str) -> str:
        for mark in self._marks.values():
            text = text.replace(mark, "")
        return text


def _marks(tokenizer: Tokenizer, stop: Sequence[str]) -> dict[int, str]:
    """Marks by special token, of those that stop strings name."""
    named = (
        token_id
        for token_id, name in tokenizer.special_tokens.items()
        if name and any(name in text for text in stop)
    )
    marked = enumerate(islice(named, _NUM_MARKS))
    return {token_id: chr(_FIRST_MARK + index) for index, token_id in marked}


def _marked(text: str, marks: dict[int, str], tokenizer: Tokenizer) -> str:
    """A stop string with marks for the special tokens in it; a longer name comes first."""
    names = {tokenizer.special_tokens[token_id]: mark for token_id, mark in marks.items()}
    for name in sorted(names, key=len, reverse=True):
        text = text.replace(name, names[name])
    return text
