"""Text, token ids and messages in, checked token ids out. Any thread may use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paged_stream.scheduler.sampling_params import SamplingParams, check_params_type
from paged_stream.text.chat import Messages, first_turn, is_messages, next_turn, pinned_text
from paged_stream.text.chat_options import USUAL, ChatOptions
from paged_stream.text.inputs import Prompt, as_token_ids, check_range, plain_prompt
from paged_stream.text.structures import Structures
from paged_stream.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Pin:
    """What a stream begins with and sees for ever, as token ids, and as messages if it is that."""

    token_ids: list[int]
    messages: list[dict[str, Any]]


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

    def encode_pin(self, pin: Prompt | Messages | None) -> Pin:
        """Turn what a stream is to begin with into token ids.

        Raises:
            ValueError: as `encode`, or as `pinned_text`.
        """
        if pin is None:
            return Pin([], [])
        if not is_messages(pin):
            return Pin(self.encode(pin), [])
        messages = [dict(message) for message in pin]
        tokenizer = self.chat_tokenizer()
        token_ids = tokenizer.encode(pinned_text(tokenizer, messages), add_special_tokens=False)
        check_range(token_ids, self._vocab_size)
        return Pin(token_ids, messages)

    def encode_chat(
        self,
        messages: str | Messages,
        pinned: Messages,
        options: ChatOptions = USUAL,
        *,
        continues: bool,
        answered: bool,
    ) -> list[int]:
        """Turn the next messages of a conversation into token ids.

        Args:
            messages: text is one message of the user.
            pinned: those before the first.
            options: how they are written.
            continues: the stream has tokens already, the pinned messages or others.
            answered: an answer came before them, whose end may have to be left out.

        Raises:
            ValueError: they are no messages, or the model has no chat template that can go on.
        """
        tokenizer = self.chat_tokenizer(options)
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        if not is_messages(messages):
            raise ValueError(f"messages must be text or a list of messages, got {messages!r}")
        if answered:
            token_ids = next_turn(tokenizer, messages, options)
        else:
            token_ids = first_turn(tokenizer, pinned, messages, options, continues=continues)
        check_range(token_ids, self._vocab_size)
        return token_ids

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
