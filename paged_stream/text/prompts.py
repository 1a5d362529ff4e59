"""Text, token ids and messages in, checked token ids out. Any thread may use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from paged_stream.scheduler.sampling_params import SamplingParams, check_params_type
from paged_stream.text.chat import Messages, is_messages, pinned_text
from paged_stream.text.chat_options import (
    USUAL,
    ChatOptions,
    StreamChatOptions,
    WritingOptions,
    as_json,
)
from paged_stream.text.conversation import Conversation
from paged_stream.text.held_text import Heard
from paged_stream.text.inputs import Prompt, as_token_ids, check_range, plain_prompt
from paged_stream.text.next_messages import NextMessages, next_messages
from paged_stream.text.structures import Structures
from paged_stream.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Pin:
    """What a stream begins with and sees for ever, as token ids, and the conversation that begins
    with it."""

    token_ids: list[int]
    conversation: Conversation


class PromptEncoder:
    """Knows the vocabulary and the tokenizer of one model.

    Attributes:
        structures: what was compiled of `structured_outputs`; ``None`` without a tokenizer.

    Args:
        model: its name, for messages.
        vocab_size: token ids are below it.
        length_limit: tokens that a sequence may have.
        has_window: whether it may have them all, or only those of the model's trained length.
        num_visible: tokens that one token sees at most.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        *,
        model: str,
        vocab_size: int,
        length_limit: int,
        has_window: bool,
        num_visible: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self._vocab_size = vocab_size
        self._length_limit = length_limit
        self._has_window = has_window
        self._num_visible = num_visible
        self.structures = None if tokenizer is None else Structures(tokenizer, vocab_size)

    def encode(self, prompt: Prompt, *, continues: bool = False) -> list[int]:
        """Turn a prompt into token ids and check them.

        Args:
            continues: the text goes on from another, as `seams` describes it.

        Raises:
            ValueError: an empty prompt, text without a tokenizer, ids out of range or no ids.
        """
        prompt = plain_prompt(prompt)
        if not isinstance(prompt, str):
            token_ids = as_token_ids(prompt)
        elif self._tokenizer is None:
            raise ValueError(
                f"prompt is text, but {self._model} has no tokenizer; pass token ids, or name one "
                "with tokenizer="
            )
        else:
            token_ids = self._tokenizer.encode(prompt, continues=continues)
        check_range(token_ids, self._vocab_size)
        return token_ids

    def decode(self, token_ids: Sequence[int], *, continues: bool) -> str | None:
        """The text of tokens, special ones included; ``None`` without a tokenizer.

        Args:
            continues: other tokens came before.
        """
        if self._tokenizer is None:
            return None
        return self._tokenizer.decode(token_ids, skip_special_tokens=False, continues=continues)

    def encode_pin(self, pin: Prompt | Messages | None, writing: WritingOptions = USUAL) -> Pin:
        """Turn what a stream is to begin with into token ids.

        Args:
            writing: how messages are written, now and later.

        Raises:
            ValueError: as `encode`, or as `pinned_text`.
        """
        conversation = Conversation(writing=WritingOptions(**writing.given))
        if pin is None:
            return Pin([], conversation)
        if not is_messages(pin):
            return Pin(self.encode(pin), conversation)
        messages = [dict(message) for message in pin]
        tokenizer = self.chat_tokenizer(ChatOptions(**writing.given))
        text = pinned_text(tokenizer, messages, writing)
        token_ids = tokenizer.encode(text, add_special_tokens=False)
        check_range(token_ids, self._vocab_size)
        messages = as_json("pin", messages)
        return Pin(token_ids, replace(conversation, pinned=messages, before=text))

    def encode_chat(
        self, messages: str | Messages, heard: Heard, options: StreamChatOptions
    ) -> NextMessages:
        """Tokenize the next messages of a stream's conversation, up to where the answer begins.

        Args:
            messages: only the new ones; text is one message of the user.

        Raises:
            ValueError: they are no messages, or the model has no chat template that can go on, or
                it rewrites what must stay.
        """
        options = options.over(heard.conversation.writing)
        tokenizer = self.chat_tokenizer(options)
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        if not is_messages(messages):
            raise ValueError(f"messages must be text or a list of messages, got {messages!r}")
        plan = next_messages(tokenizer, heard, messages, options)
        check_range([*plan.rewritten_ids, *plan.new_ids], self._vocab_size)
        return plan

    def chat_tokenizer(self, options: ChatOptions = USUAL) -> Tokenizer:
        """The tokenizer, for its chat template.

        Raises:
            ValueError: there is none.
        """
        if self._tokenizer is None:
            raise ValueError(f"messages need a tokenizer, and {self._model} has none")
        self._tokenizer.chat_template(options)
        return self._tokenizer

    def tokenizer_copy(self) -> PreTrainedTokenizerBase:
        """As `Tokenizer.copy_for_users`.

        Raises:
            ValueError: there is no tokenizer.
        """
        if self._tokenizer is None:
            raise ValueError(f"{self._model} has no tokenizer; name one with tokenizer=")
        return self._tokenizer.copy_for_users

    def truncate(self, token_ids: list[int], params: SamplingParams) -> list[int]:
        """The end of a prompt that ``truncate_prompt_tokens`` keeps."""
        most = params.truncate_prompt_tokens
        if most is None:
            return token_ids
        return token_ids[-(self._num_visible if most < 0 else most) :]

    def check_length(self, num_tokens: int) -> None:
        """Refuse more tokens than full attention can have, or than a stream can.

        Raises:
            ValueError: names the limit.
        """
        if num_tokens > self._length_limit:
            reason = "the length of any stream" if self._has_window else "its trained length"
            raise ValueError(
                f"{self._model} cannot go beyond {reason} of {self._length_limit} tokens, "
                f"got {num_tokens}"
            )

    def check_params(self, params: SamplingParams) -> None:
        """Check what only the model's vocabulary and tokenizer can tell. That may take long if
        `is_known` denies it.

        Raises:
            ValueError: names the field.
        """
        check_params_type(params)
        for name in ("stop", "bad_words", "structured_outputs"):
            if getattr(params, name) and self._tokenizer is None:
                raise ValueError(f"{name} needs a tokenizer, and {self._model} has none")
        for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
            highest = max(getattr(params, name) or (), default=0)
            if highest >= self._vocab_size:
                raise ValueError(f"{name} must be below {self._vocab_size}, got {highest}")
        if params.structured_outputs is not None and self.structures is not None:
            self.structures.begin(params.structured_outputs)

    def is_known(self, params: SamplingParams) -> bool:
        """Whether nothing has to be compiled for such a request."""
        wanted = getattr(params, "structured_outputs", None)
        return wanted is None or self.structures is None or self.structures.knows(wanted)
