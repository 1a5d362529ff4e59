"""Chat templates applied turn by turn, so that a live stream never sees its history again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import TypeIs

from paged_stream.text.chat_options import USUAL, ChatOptions, WritingOptions
from paged_stream.text.rendering import content_text
from paged_stream.text.tokenizer import Tokenizer

# Stands for the answer that is already in the stream; letters only, so that no template edits it.
_ANSWER = "PagedStreamAnswer"
_QUESTION = "PagedStreamQuestion"
_QUESTIONS = (_QUESTION, "AnotherQuestion")  # unlike from their first letters on


Messages = Sequence[Mapping[str, Any]]


def is_messages(value: object) -> TypeIs[Messages]:
    """Whether a prompt is a conversation rather than text or token ids."""
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Mapping)


def pinned_text(tokenizer: Tokenizer, messages: Messages, writing: WritingOptions = USUAL) -> str:
    """What a conversation begins with, whatever the user says after these messages. A space at the
    end belongs to what follows: many tokenizers have one token for both.

    Raises:
        ValueError: the template refuses the messages, or writes one of them elsewhere, or not as it
            is.
    """
    turns = [[*messages, {"role": "user", "content": question}] for question in _QUESTIONS]
    options = ChatOptions(**writing.given)
    texts = [tokenizer.render_chat_template(turn, options) for turn in turns]
    common = os.path.commonprefix(texts).rstrip(" ")
    for content in (content_text(message).strip() for message in messages):
        if content not in common:
            raise ValueError(
                f"pin: this model's chat template does not begin a conversation with {content!r} "
                f"whatever the user says, but with {common!r}; pin text instead"
            )
    return common


def end_of_turn(tokenizer: Tokenizer) -> int | None:
    """The special token that the chat template puts after answers; ``None`` if it puts none there,
    or there is no template. A checkpoint's own list of end tokens may lack it."""
    messages = [
        {"role": "user", "content": _QUESTION},
        {"role": "assistant", "content": _ANSWER},
    ]
    try:
        text = tokenizer.render_chat_template(messages, ChatOptions(add_generation_prompt=False))
    except ValueError:
        return None
    after = text.rpartition(_ANSWER)[2].lstrip()
    ids = tokenizer.encode(after, continues=True)
    return ids[0] if ids and tokenizer.is_special(ids[0]) else None
