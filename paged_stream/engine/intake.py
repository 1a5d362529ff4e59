"""What users hand in, on its way to the core: requests, and streams that are opened or loaded.

Whatever takes long (tokenizing, reading files) is apart from what only the thread that uses the
engine may do.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from paged_stream.config import EngineConfig
from paged_stream.engine.adapters import NO_ADAPTER, Chosen
from paged_stream.engine.api import FilePath, OnEvict
from paged_stream.engine.core import EngineCore
from paged_stream.engine.lifetime import finish_before_exit
from paged_stream.engine.live_stream import LiveStream
from paged_stream.engine.lora_request import LoRARequest
from paged_stream.engine.outputs import Inbox
from paged_stream.engine.requests import check_request_id
from paged_stream.engine.stream_file import SavedStream, read_stream
from paged_stream.engine.windows import check_rotary_length, resolve_sink_window
from paged_stream.models.model_config import ModelConfig
from paged_stream.scheduler.sampling_params import SamplingParams, check_params_type
from paged_stream.scheduler.sink_window import SinkWindow
from paged_stream.text.chat import Messages
from paged_stream.text.chat_options import USUAL, ChatOptions, WritingOptions
from paged_stream.text.inputs import Prompt, naming_item
from paged_stream.text.prompts import Pin, PromptEncoder


@dataclass(frozen=True, slots=True)
class Opening:
    """A stream to be opened: what it sees, and what it begins with."""

    sink_window: SinkWindow
    pin: Pin


class Intake:
    """The way into one engine.

    Attributes:
        prompts: what turns text into token ids, and checks these and parameters.
        fingerprint: of the model's weights.
    """

    def __init__(
        self,
        core: EngineCore,
        prompts: PromptEncoder,
        config: EngineConfig,
        model_config: ModelConfig,
        sink_window: SinkWindow,
    ) -> None:
        self.prompts = prompts
        self._core = core
        self._config = config
        self._model_config = model_config
        self._sink_window = sink_window
        self.fingerprint = core.executor.fingerprint
        self._no_tokens = core.executor.read(array("q"))  # shape and dtype of K and V

    # For any thread

    @finish_before_exit
    def choose_adapter(self, lora_request: LoRARequest | None) -> Chosen:
        """As `Adapters.choose`."""
        return self._core.adapters.choose(lora_request)

    @finish_before_exit
    def encode(self, prompt: Prompt, *, continues: bool = False) -> list[int]:
        """As `PromptEncoder.encode`."""
        return self.prompts.encode(prompt, continues=continues)

    @finish_before_exit
    def encode_all(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Tokenize prompts that are to be computed as whole sequences.

        Raises:
            ValueError: as `PromptEncoder.encode`, or one is too long; says which.
        """
        token_ids = []
        for index, prompt in enumerate(prompts):
            with naming_item("prompts", index, len(prompts)):
                token_ids.append(self.prompts.encode(prompt))
                self.prompts.check_length(len(token_ids[-1]))
        return token_ids

    @finish_before_exit
    def encode_chat(self, messages: Messages, options: ChatOptions = USUAL) -> list[int]:
        """Token ids of a whole conversation, up to where the answer begins.

        Raises:
            ValueError: the model has no chat template, or they are no messages.
        """
        return self.prompts.chat_tokenizer(options).apply_chat_template(messages, options)

    @finish_before_exit
    def prepare_stream(
        self,
        num_sink_tokens: int | None,
        window_size: int | None,
        pin: Prompt | Messages | None,
        writing: WritingOptions,
    ) -> Opening:
        """Check what a stream is to be opened with.

        Raises:
            ValueError: as `EngineApi.open_stream`, but for what does not fit the cache.
        """
        encoded = self.prompts.encode_pin(pin, writing)
        if encoded.token_ids:
            if num_sink_tokens is not None:
                raise ValueError("num_sink_tokens follows from pin; pass one of them")
            num_sink_tokens = len(encoded.token_ids)
        sink_window = self._sink_window
        if num_sink_tokens is not None or window_size is not None:
            sinks = self._config.num_sink_tokens if num_sink_tokens is None else num_sink_tokens
            window = self._config.window_size if window_size is None else window_size
            sink_window = resolve_sink_window(self._model_config, sinks, window)
            check_rotary_length(self._model_config, sink_window)
        self.prompts.check_length(len(encoded.token_ids))
        return Opening(sink_window, encoded)

    @finish_before_exit
    def read_stream(self, source: FilePath | bytes) -> SavedStream:
        """Read a saved stream and check that it is of this model.

        Raises:
            ValueError: as `EngineApi.load_stream`, but for what does not fit the cache.
        """
        name, saved = read_stream(source)
        try:
            saved.check(self.fingerprint, self._model_config.vocab_size, self._no_tokens)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        check_rotary_length(self._model_config, saved.state.sink_window)
        if (saved.state.sink_window.window_size is None) != (self._sink_window.window_size is None):
            raise ValueError(f"{name}: the stream has a window where the model has none, or none")
        return saved

    # For the engine's thread

    def adapter_keys(self) -> list[str]:
        """Digests of the adapters that are loaded."""
        return self._core.adapters.keys()

    def check_request(
        self, request_id: str, num_tokens: int, params: SamplingParams, priority: int
    ) -> None:
        """Raise what `add_request` would for a prompt of so many tokens, unless the cache is too
        small for it.

        Raises:
            ValueError: names what is wrong.
        """
        check_request_id(request_id)
        if self._core.turns.is_in_use(request_id):
            raise ValueError(f"request_id {request_id!r} is in use by an unfinished request")
        self.prompts.check_params(params)
        if type(priority) is not int:
            raise ValueError(f"priority must be an int, got {priority!r}")
        self.prompts.check_length(num_tokens)

    def add_request(
        self,
        request_id: str,
        token_ids: list[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        adapter: Chosen = NO_ADAPTER,
        inbox: Inbox | None = None,
    ) -> None:
        """Queue a request, whose prompt `encode` has given.

        Args:
            adapter: what it is computed with, loaded if it is not yet.
            inbox: where its deltas go; without one, they wait in the core's turns.

        Raises:
            ValueError: names what is wrong; the engine is as before.
        """
        core = self._core
        check_params_type(params)
        token_ids = self.prompts.truncate(token_ids, params)
        self.check_request(request_id, len(token_ids), params, priority)
        core.turns.add_request(
            request_id,
            token_ids,
            params,
            self._sink_window,
            seed=core.new_seed() if params.seed is None else params.seed,
            priority=priority,
            adapter=core.adapters.key(adapter),
            inbox=inbox,
        )

    def add_scoring(
        self,
        request_id: str,
        token_ids: Sequence[int],
        *,
        adapter: Chosen = NO_ADAPTER,
        inbox: Inbox | None = None,
    ) -> None:
        """Queue a request that generates nothing and reports ``prompt_logprobs``.

        Args:
            adapter: as in `add_request`.
            inbox: as there.

        Raises:
            ValueError: as `add_request`, and for a prompt of fewer than two tokens.
        """
        core = self._core
        self.check_request(request_id, len(token_ids), SamplingParams(), 0)
        if len(token_ids) < 2:
            raise ValueError(f"prompt must have at least 2 tokens to score, got {len(token_ids)}")
        key, window = core.adapters.key(adapter), self._sink_window
        core.turns.add_scoring(request_id, token_ids, window, adapter=key, inbox=inbox)

    def add_embedding(
        self,
        request_id: str,
        token_ids: Sequence[int],
        *,
        adapter: Chosen = NO_ADAPTER,
        inbox: Inbox | None = None,
    ) -> None:
        """Queue a request that generates nothing and reports its ``embedding``.

        Args:
            adapter: as in `add_request`.
            inbox: as there.

        Raises:
            ValueError: as `add_request`.
        """
        core = self._core
        self.check_request(request_id, len(token_ids), SamplingParams(), 0)
        key, window = core.adapters.key(adapter), self._sink_window
        core.turns.add_embedding(request_id, token_ids, window, adapter=key, inbox=inbox)

    def open_stream(
        self, opening: Opening, on_evict: OnEvict | None, adapter: Chosen = NO_ADAPTER
    ) -> LiveStream:
        """Open a stream that `prepare_stream` has checked.

        Raises:
            ValueError: its sinks and window do not fit the cache, or as `Adapters.key`.
        """
        core = self._core
        key = core.adapters.key(adapter)
        seq_id = core.open_stream(opening.sink_window, on_evict, adapter=key)
        core.scheduler.append(seq_id, opening.pin.token_ids)
        return LiveStream(
            core,
            self.prompts,
            seq_id,
            seed=core.new_seed(),
            conversation=opening.pin.conversation,
        )

    def restore_stream(
        self,
        saved: SavedStream,
        on_evict: OnEvict | None = None,
        adapter: Chosen = NO_ADAPTER,
    ) -> LiveStream:
        """Open a stream that `read_stream` has read.

        Raises:
            ValueError: its sinks and window do not fit the cache, or as `Adapters.key_of_saved`.
        """
        core = self._core
        key = core.adapters.key_of_saved(adapter, saved.adapter)
        seq_id = core.restore_stream(saved.state, saved.tokens, on_evict, adapter=key)
        return LiveStream(
            core,
            self.prompts,
            seq_id,
            seed=saved.seed,
            num_turns=saved.num_turns,
            conversation=saved.conversation,
        )
