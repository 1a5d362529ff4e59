"""What every engine of this process is made of: a model and its workers, a tokenizer, and the core
that puts them to work."""

from __future__ import annotations

from typing import NoReturn

from paged_stream.config import EngineConfig
from paged_stream.engine.core import EngineCore
from paged_stream.engine.draft_model import DraftModel, make_guesser
from paged_stream.engine.intake import Intake
from paged_stream.engine.lifetime import finish_before_exit, refuse_pickling
from paged_stream.engine.lora_request import named_adapters
from paged_stream.engine.windows import resolve_sink_window, visible_tokens
from paged_stream.executor.base import Executor
from paged_stream.executor.select import make_executor
from paged_stream.models.formats.resolve import resolve_model, resolve_tokenizer
from paged_stream.models.loader import load_config
from paged_stream.scheduler.scheduler import Scheduler
from paged_stream.scheduler.scheduler_config import SchedulerConfig
from paged_stream.scheduler.sequence import MAX_TOKENS
from paged_stream.system.processor_quota import default_num_threads
from paged_stream.system.processor_threads import processor_threads
from paged_stream.text.chat import end_of_turn
from paged_stream.text.inputs import Prompt
from paged_stream.text.prompts import PromptEncoder
from paged_stream.text.tokenizer import Tokenizer, has_tokenizer, load_tokenizer


class LoadedEngine:
    """An engine that nobody drives yet. It belongs to the process that made it.

    Attributes:
        config: what it was made with.
        model_config: what the model is.
        tokenizer: ``None`` if the model has none and the config names none.
        sink_window: how many tokens its requests see, and its streams by default.
        cache_plan: blocks of the KV cache, and their bytes.

    Raises:
        ValueError: a setting that is out of range, a model that cannot be loaded, or memory that
            does not hold one stream.
    """

    @finish_before_exit
    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        with processor_threads(config.num_threads or default_num_threads()):
            self._load(config)

    def _load(self, config: EngineConfig) -> None:
        files = resolve_model(
            config.model,
            cache_dir=config.cache_dir,
            with_tokenizer=config.tokenizer is None,
            merge_lora=config.merge_lora,
        )
        model_config = load_config(files)
        self.sink_window = resolve_sink_window(
            model_config, config.num_sink_tokens, config.window_size
        )
        if not model_config.is_exact_at(length := visible_tokens(model_config, self.sink_window)):
            model_config = load_config(files, length)
        self.model_config = model_config
        self.tokenizer: Tokenizer | None = None
        source = resolve_tokenizer(files, config.tokenizer, cache_dir=config.cache_dir)
        if config.tokenizer is not None or has_tokenizer(source.folder):
            self.tokenizer = load_tokenizer(*source, config.chat_template)
            # Takes back what the tokenizer's file may limit: not to be done in two threads.
            self.tokenizer.encode("")
        executor = make_executor(config, files, self.model_config, self.sink_window)
        try:
            self._start(config, executor)
        except BaseException:
            executor.close()
            raise

    def _start(self, config: EngineConfig, executor: Executor) -> None:
        """Put everything else around the workers."""
        model_config = self.model_config
        self.cache_plan = executor.cache_plan
        has_window = self.sink_window.window_size is not None
        prompts = PromptEncoder(
            self.tokenizer,
            model=str(config.model),
            vocab_size=model_config.vocab_size,
            length_limit=MAX_TOKENS if has_window else model_config.max_position_embeddings,
            has_window=has_window,
            num_visible=visible_tokens(model_config, self.sink_window),
        )
        guesser = make_guesser(config, model_config.vocab_size)
        scheduler = Scheduler(
            SchedulerConfig(
                num_blocks=self.cache_plan.num_blocks,
                block_size=config.block_size,
                max_num_seqs=config.actual_max_num_seqs,
                max_num_batched_tokens=config.max_num_batched_tokens,
                max_model_len=model_config.max_position_embeddings,
                num_decode_steps=1
                if config.check_layers
                else config.num_decode_steps or executor.default_decode_steps,
                chunk_size=config.chunk_size,
                enable_prefix_caching=config.enable_prefix_caching,
            ),
            guesser,
        )
        self._core = EngineCore(
            scheduler,
            executor,
            self.tokenizer,
            prompts.structures,
            self._end_token_ids(),
            draft_model=guesser if isinstance(guesser, DraftModel) else None,
            model=str(config.model),
            seed=config.seed,
            park_after_seconds=config.park_after_seconds,
            otlp_traces_endpoint=config.otlp_traces_endpoint,
        )
        self._intake = Intake(self._core, prompts, config, model_config, self.sink_window)
        for lora_request in named_adapters(config.lora_modules or ()).values():
            self._core.adapters.key(self._core.adapters.choose(lora_request))

    def _end_token_ids(self) -> tuple[int, ...]:
        """What ends an answer: what the checkpoint says, its tokenizer, and its chat template."""
        ends = self.model_config.eos_token_ids
        if self.tokenizer is None:
            return ends
        more = (self.tokenizer.eos_token_id, end_of_turn(self.tokenizer))
        size = self.model_config.vocab_size
        return tuple(
            dict.fromkeys([*ends, *(end for end in more if end is not None and end < size)])
        )

    # Its parts, which exist until it is closed, and only in the process that made it

    @property
    def core(self) -> EngineCore:
        """For the engine's thread."""
        self._core.lifetime.check()
        return self._core

    @property
    def intake(self) -> Intake:
        """For any thread, as far as its methods are."""
        self._core.lifetime.check()
        return self._intake

    def encode(self, prompt: Prompt, *, continues: bool = False) -> list[int]:
        """Tokenize and check a prompt. Any thread may.

        Args:
            prompt: text, or token ids in a list, an array or a tensor of one dimension.
            continues: the text goes on from another; by default it begins a document.

        Returns:
            Its token ids.

        Raises:
            ValueError: the prompt is empty or none, or an id is out of range.
        """
        return self.intake.encode(prompt, continues=continues)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._summary()}>"

    def _summary(self) -> str:
        if (core := getattr(self, "_core", None)) is None:
            return "that was not made"
        name = f"of {self.config.model!r}"
        if core.lifetime.is_over:
            return f"{name}: {core.lifetime.state}"
        sinks, window = self.sink_window.num_sink_tokens, self.sink_window.window_size
        visible = "full attention" if window is None else f"{sinks} sink tokens, window of {window}"
        return f"{name}: {visible}, open streams: {len(core.streams)}"

    def __reduce__(self) -> NoReturn:
        refuse_pickling("an engine", "make one in each process")
