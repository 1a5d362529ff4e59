"""Chat templates applied turn by turn, so that a live stream never sees its history again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import TypeIs

from paged_stream.text.chat_options import USUAL, ChatOptions
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


def pinned_text(tokenizer: Tokenizer, messages: Messages) -> str:
    """What a conversation begins with, whatever the user says after these messages. A space at the
    end belongs to what follows: many tokenizers have one token for both.

    Raises:
        ValueError: the template refuses the messages, or writes one of them elsewhere, or not as it
            is.
    """
    turns = [[*messages, {"role": "user", "content": question}] for question in _QUESTIONS]
    texts = [tokenizer.render_chat_template(turn) for turn in turns]
    common = os.path.commonprefix(texts).rstrip(" ")
    for content in (content_text(message).strip() for message in messages):
        if content not in common:
            raise ValueError(
                f"pin: this model's chat template does not begin a conversation with {content!r} "
                f"whatever the user says, but with {common!r}; pin text instead"
            )
    return common


def first_turn(
    tokenizer: Tokenizer,
    pinned: Messages,
    messages: Messages,
    options: ChatOptions = USUAL,
    *,
    continues: bool = False,
) -> list[int]:
    """Ids of a conversation's first messages, up to where an answer begins.

    Args:
        pinned: messages before them, of which `pinned_text` is in the stream already.
        continues: the stream has other tokens already, so no document begins here.

    Raises:
        ValueError: the template writes the pinned ones differently when these follow.
    """
    text = tokenizer.render_chat_template([*pinned, *messages], options)
    before = pinned_text(tokenizer, pinned) if pinned else ""
    if not text.startswith(before):
        raise ValueError(
            "messages: what follows a pin must begin with a message of the user; with others, or "
            f"with tools, the chat template does not begin with the {before!r} that is pinned"
        )
    if not (pinned or continues):
        return tokenizer.encode(text, add_special_tokens=False)
    if not pinned:  # the template may write what begins a document
        before = tokenizer.decode(tokenizer.leading_ids, skip_special_tokens=False)
    return tokenizer.encode(text.removeprefix(before), continues=True)


def next_turn(
    tokenizer: Tokenizer,
    messages: Messages,
    options: ChatOptions = USUAL,
    last_token_id: int = -1,
) -> list[int]:
    """Ids from the end of an answer to the place where the next one begins.

    Args:
        messages: the new ones.
        last_token_id: last token of the answer. If it is the end token that the template puts
            after answers, that token is not given again. -1 if it is not known any more.

    Raises:
        ValueError: the template does not write answers as they are.
    """
    history = [
        {"role": "user", "content": _QUESTION},
        {"role": "assistant", "content": _ANSWER},
    ]
    text = tokenizer.render_chat_template([*history, *messages], options)
    if text.count(_ANSWER) != 1:
        raise ValueError("messages: this model's chat template cannot go on turn by turn")
    ids = tokenizer.encode(text.split(_ANSWER)[1], continues=True)
    return without_repeated_end(ids, last_token_id)


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


def without_repeated_end(token_ids: list[int], last_token_id: int = -1) -> list[int]:
    """Leave out the end of an answer if it is in the stream already; -1 is no token."""
    return token_ids[1:] if token_ids[:1] == [last_token_id] else token_ids
