"""Chat templates applied turn by turn, so that a live stream never sees its history again."""

from __future__ import annotations

from paged_stream.tokenizer import Tokenizer

# Stands for the answer that is already in the stream; letters only, so that no template edits it.
_ANSWER = "PagedStreamAnswer"


class ChatTurns:
    """Token ids to append to a stream for each turn of a conversation.

    Args:
        tokenizer: one with a chat template.
        system: system message, or ``None`` for the template's own.
    """

    def __init__(self, tokenizer: Tokenizer, system: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._system = [] if system is None else [{"role": "system", "content": system}]

    def first(self, content: str) -> list[int]:
        """Ids of the conversation up to the place where the first answer begins."""
        messages = [*self._system, {"role": "user", "content": content}]
        return self._tokenizer.apply_chat_template(messages)

    def following(self, content: str, last_token_id: int) -> list[int]:
        """Ids from the end of an answer to the place where the next one begins.

        Args:
            content: the user's next message.
            last_token_id: last token of the answer. If it is the end token that the template
                puts after answers, that token is not given again.
        """
        messages = [
            *self._system,
            {"role": "user", "content": _ANSWER[::-1]},
            {"role": "assistant", "content": _ANSWER},
            {"role": "user", "content": content},
        ]
        text = self._tokenizer.render_chat_template(messages)
        ids = self._tokenizer.encode(text.split(_ANSWER, 1)[1], add_special_tokens=False)
        return ids[1:] if ids[:1] == [last_token_id] else ids
