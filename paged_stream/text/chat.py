"""Chat templates applied turn by turn, so that a live stream never sees its history again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import TypeIs

from paged_stream.text.tokenizer import Tokenizer

# Stands for the answer that is already in the stream; letters only, so that no template edits it.
_ANSWER = "PagedStreamAnswer"
_QUESTION = "PagedStreamQuestion"


Messages = Sequence[Mapping[str, Any]]


def is_messages(value: object) -> TypeIs[Messages]:
    """Whether a prompt is a conversation rather than text or token ids."""
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Mapping)


def first_turn(
    tokenizer: Tokenizer,
    pinned: Messages,
    messages: Messages,
    *,
    is_open: bool = True,
    continues: bool = False,
) -> list[int]:
    """Ids of a conversation's first messages.

    Args:
        pinned: messages before them, which are in the stream already.
        is_open: end where an answer begins.
        continues: the stream has other tokens already, so no document begins here.

    Raises:
        ValueError: the template writes the pinned ones differently when others follow.
    """
    text = tokenizer.render_chat_template([*pinned, *messages], is_open)
    before = tokenizer.render_chat_template(pinned, False) if pinned else ""
    if not text.startswith(before):
        raise ValueError("messages: this model's chat template cannot go on from pinned messages")
    if not (pinned or continues):
        return tokenizer.encode(text, add_special_tokens=False)
    if not pinned:  # the template may write what begins a document
        before = tokenizer.decode(tokenizer.leading_ids, skip_special_tokens=False)
    return tokenizer.encode(text.removeprefix(before), continues=True)


def next_turn(tokenizer: Tokenizer, messages: Messages, last_token_id: int = -1) -> list[int]:
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
    text = tokenizer.render_chat_template([*history, *messages])
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
        text = tokenizer.render_chat_template(messages, False)
    except ValueError:
        return None
    after = text.rpartition(_ANSWER)[2].lstrip()
    ids = tokenizer.encode(after, continues=True)
    return ids[0] if ids and tokenizer.is_special(ids[0]) else None


def without_repeated_end(token_ids: list[int], last_token_id: int = -1) -> list[int]:
    """Leave out the end of an answer if it is in the stream already; -1 is no token."""
    return token_ids[1:] if token_ids[:1] == [last_token_id] else token_ids
