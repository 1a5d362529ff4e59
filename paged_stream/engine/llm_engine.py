"""The engine: requests and streams in, text and tokens out, one step at a time.

The engine owns what has to do with users (ids, text, stop strings, seeds); the scheduler owns
progress, and an executor computes. Not thread-safe: `AsyncLLMEngine` is.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NoReturn

from paged_stream.config import EngineConfig, takes_config
from paged_stream.engine.core import EngineCore, StreamRecord, Turn
from paged_stream.engine.lifetime import (
    Lifetime,
    finish_before_exit,
    refuse_pickling,
    when_abandoned,
)
from paged_stream.engine.outputs import EngineStats, Inbox, RequestDelta, StreamStats
from paged_stream.engine.stats import engine_stats, stream_stats
from paged_stream.engine.stream import Stream
from paged_stream.engine.stream_file import SavedStream, read_stream_file
from paged_stream.engine.windows import (
    check_rotary_length,
    resolve_sink_window,
    visible_tokens,
)
from paged_stream.executor.base import Executor
from paged_stream.executor.select import make_executor
from paged_stream.models.formats.resolve import resolve_model
from paged_stream.models.loader import load_config
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.scheduler.scheduler import Scheduler
from paged_stream.scheduler.scheduler_config import SchedulerConfig
from paged_stream.scheduler.sequence import Sequence as TokenSequence
from paged_stream.system.processor_quota import default_num_threads
from paged_stream.system.processor_threads import processor_threads
from paged_stream.text.chat import Messages, end_of_turn
from paged_stream.text.inputs import Prompt
from paged_stream.text.prompts import Pin, PromptEncoder
from paged_stream.text.tokenizer import Tokenizer, has_tokenizer, load_tokenizer


class LLMEngine:
    """Runs requests and streams on one model.

    Use it as a context manager, or call `close`. Afterwards every use raises `EngineStoppedError`.
    It belongs to the process that made it: in a forked child every use raises RuntimeError.

    Raises:
        ValueError: a setting that is out of range, a model that cannot be loaded, or memory that
            does not hold one stream.
    """

    @takes_config
    @finish_before_exit
    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.lifetime = Lifetime()
        with processor_threads(config.num_threads or default_num_threads()):
            self._load(config)
        name = f"LLMEngine of {config.model!r}"
        when_abandoned(self, name, self.lifetime, lambda: None)  # its parts go with it

    def _load(self, config: EngineConfig) -> None:
        files = resolve_model(config.model, cache_dir=config.cache_dir)
        model_config = load_config(files)
        self.sink_window = resolve_sink_window(
            model_config, config.num_sink_tokens, config.window_size
        )
        if not model_config.is_exact_at(length := visible_tokens(model_config, self.sink_window)):
            model_config = load_config(files, length)
        self.model_config = model_config
        self.tokenizer: Tokenizer | None = None
        if has_tokenizer(files.folder):
            self.tokenizer = load_tokenizer(files.folder, files.name)
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
        scheduler = Scheduler(
            SchedulerConfig(
                num_blocks=self.cache_plan.num_blocks,
                block_size=config.block_size,
                max_num_seqs=config.actual_max_num_seqs,
                max_num_batched_tokens=config.max_num_batched_tokens,
                max_model_len=model_config.max_position_embeddings,
                num_decode_steps=config.num_decode_steps or executor.default_decode_steps,
                chunk_size=config.chunk_size,
                enable_prefix_caching=config.enable_prefix_caching,
            )
        )
        has_window = self.sink_window.window_size is not None
        self._prompts = PromptEncoder(
            self.tokenizer,
            model=str(config.model),
            vocab_size=model_config.vocab_size,
            length_limit=None if has_window else model_config.max_position_embeddings,
        )
        self._no_tokens = executor.read(array("q"))  # shape and dtype of K and V
        self._core = EngineCore(scheduler, executor, self.tokenizer, self._end_token_ids())
        self._seeds = random.Random(config.seed)

    def _end_token_ids(self) -> tuple[int, ...]:
        """What ends an answer: what the checkpoint says, and what its chat template does."""
        ends = self.model_config.eos_token_ids
        end = None if self.tokenizer is None else end_of_turn(self.tokenizer)
        if end is None or end in ends or end >= self.model_config.vocab_size:
            return ends
        return (*ends, end)

    # Its parts, which exist until it is closed, and only in the process that made it

    @property
    def core(self) -> EngineCore:
        """For the thread that uses the engine: first it does what finalizers have asked for."""
        self.lifetime.check()
        self._core.run_errands()
        return self._core

    @property
    def scheduler(self) -> Scheduler:
        self.lifetime.check()
        return self._core.scheduler

    @property
    def executor(self) -> Executor:
        self.lifetime.check()
        return self._core.executor

    @property
    def prompts(self) -> PromptEncoder:
        self.lifetime.check()
        return self._prompts

    # Requests

    def add_request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        inbox: Inbox | None = None,
    ) -> None:
        """Queue a request.

        Args:
            request_id: any string that no unfinished request has.
            prompt: text or token ids, of any length.
            params: defaults to ``SamplingParams()``.
            priority: smaller runs first.
            inbox: where its deltas go; without one, `step` returns them.

        Raises:
            ValueError: names what is wrong; the engine is as before.
        """
        self.add_encoded_request(
            request_id, self.encode(prompt), params, priority=priority, inbox=inbox
        )

    def add_encoded_request(
        self,
        request_id: str,
        token_ids: Sequence[int],
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        inbox: Inbox | None = None,
    ) -> None:
        """As `add_request`, with a prompt that `encode` has given."""
        params = SamplingParams() if params is None else params
        self._check_request(request_id, params)
        if type(priority) is not int:
            raise ValueError(f"priority must be an int, got {priority!r}")
        self.prompts.check_length(len(token_ids))
        limit = None if params.max_tokens is None else len(token_ids) + params.max_tokens
        seq_id = next(self.core.seq_ids)
        # Several completions share their prompt; only a stream outlives the turn that computes it.
        fans_out = params.n > 1 and len(token_ids) > 1
        self.scheduler.open(
            seq_id, self.sink_window, is_stream=fans_out, max_tokens=limit, priority=priority
        )
        self.core.requests[request_id] = [seq_id]
        turn = Turn(
            request_id=request_id,
            index=0,
            params=params,
            seed=self._seeds.getrandbits(63) if params.seed is None else params.seed,
            inbox=inbox,
            num_copies=params.n - 1,
        )
        self.core.turns[seq_id] = turn
        self.scheduler.append(seq_id, token_ids)
        if fans_out:
            self.scheduler.start_turn(seq_id, params, generates=False)
        else:
            self.core.fan_out(seq_id, turn)

    def add_score_request(
        self, request_id: str, prompt: Prompt, *, inbox: Inbox | None = None
    ) -> None:
        """Queue a request that generates nothing and reports ``prompt_logprobs``.

        Args:
            inbox: as in `add_encoded_request`.

        Raises:
            ValueError: as `add_request`, and for a prompt of fewer than two tokens.
        """
        params = SamplingParams(prompt_logprobs=0)
        self._check_request(request_id, params)
        token_ids = self.encode(prompt)
        self.prompts.check_length(len(token_ids))
        if len(token_ids) < 2:
            raise ValueError(f"prompt must have at least 2 tokens to score, got {len(token_ids)}")
        seq_id = next(self.core.seq_ids)
        self.scheduler.open(seq_id, self.sink_window, max_tokens=len(token_ids))
        self.core.turns[seq_id] = Turn(request_id=request_id, index=0, params=params, inbox=inbox)
        self.core.requests[request_id] = [seq_id]
        self.scheduler.append(seq_id, token_ids)
        self.scheduler.start_turn(seq_id, params, generates=False)

    def abort_request(self, request_id: str) -> None:
        """Drop a request and free its blocks; one that is unknown or finished is ignored."""
        for seq_id in self.core.requests.pop(request_id, ()):
            self.core.drop_turn(seq_id)
            self.scheduler.close(seq_id)
        self.core.undelivered = [d for d in self.core.undelivered if d.request_id != request_id]

    def has_unfinished_requests(self) -> bool:
        """Whether `step` has something to do or to hand out. Streams do not count: whoever reads
        one drives it."""
        return bool(self.core.requests or self.core.undelivered)

    def step(self, request_ids: Collection[str] | None = None) -> list[RequestDelta]:
        """Compute one step and return what was added to each request.

        Args:
            request_ids: return what belongs to these; the rest waits for another call.

        Raises:
            RuntimeError: the engine has failed before, or another thread is within a step.
        """
        self.advance()
        deltas, self.core.undelivered = self.core.undelivered, []
        if request_ids is not None:
            self.core.undelivered = [d for d in deltas if d.request_id not in request_ids]
            deltas = [d for d in deltas if d.request_id in request_ids]
        return deltas

    # Streams

    def open_stream(
        self,
        *,
        num_sink_tokens: int | None = None,
        window_size: int | None = None,
        pin: Prompt | Messages | Pin | None = None,
        on_evict: Callable[[int, int], None] | None = None,
    ) -> Stream:
        """Open a live stream: its K and V stay between turns.

        Args:
            num_sink_tokens: of this stream; defaults to the engine's.
            window_size: of this stream; defaults to the engine's.
            pin: text, token ids or messages in the chat template that the stream begins with and
                sees for ever, such as a system prompt: they are its sink tokens. Streams with the
                same ones share their blocks.
            on_evict: called with the first position and the one behind the last whenever tokens
                leave the window.

        Raises:
            ValueError: sinks or window that are out of range or do not fit the cache.
        """
        if not isinstance(pin, Pin):
            pin = self.prompts.encode_pin(pin)
        if pin.token_ids:
            if num_sink_tokens is not None:
                raise ValueError("num_sink_tokens follows from pin; pass one of them")
            num_sink_tokens = len(pin.token_ids)
        sink_window = self.sink_window
        if num_sink_tokens is not None or window_size is not None:
            sinks = self.config.num_sink_tokens if num_sink_tokens is None else num_sink_tokens
            window = self.config.window_size if window_size is None else window_size
            sink_window = resolve_sink_window(self.model_config, sinks, window)
            check_rotary_length(self.model_config, sink_window)
        self.prompts.check_length(len(pin.token_ids))
        seq_id = next(self.core.seq_ids)
        self.scheduler.open(seq_id, sink_window, is_stream=True)
        self.core.streams[seq_id] = StreamRecord(self.core.clock(), on_evict)
        self.scheduler.append(seq_id, pin.token_ids)
        return Stream(self, seq_id, seed=self._seeds.getrandbits(63), pinned_messages=pin.messages)

    def load_stream(
        self, path: str | Path, *, on_evict: Callable[[int, int], None] | None = None
    ) -> Stream:
        """Open a stream that `Stream.save` wrote, here or in another process.

        Raises:
            ValueError: the file is truncated, no stream, of a newer version, or of other weights
                or another dtype or kv_cache_dtype; or its sinks and window do not fit this engine.
        """
        return self.restore_stream(self.read_stream(path), on_evict=on_evict)

    @finish_before_exit
    def read_stream(self, path: str | Path) -> SavedStream:
        """Read what `load_stream` would open. Changes nothing, so any thread may do it.

        Raises:
            ValueError: as `load_stream`, but for sinks and window that do not fit the cache.
        """
        self.lifetime.check()
        saved = read_stream_file(Path(path).expanduser())
        vocab_size = self.model_config.vocab_size
        try:
            saved.check(self.executor.fingerprint, vocab_size, self._no_tokens)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        check_rotary_length(self.model_config, saved.state.sink_window)
        if (saved.state.sink_window.window_size is None) != (self.sink_window.window_size is None):
            raise ValueError(f"{path}: the stream has a window where the model has none, or none")
        return saved

    def restore_stream(
        self, saved: SavedStream, *, on_evict: Callable[[int, int], None] | None = None
    ) -> Stream:
        """Open a stream that `read_stream` has read.

        Raises:
            ValueError: its sinks and window do not fit the cache.
        """
        seq_id = next(self.core.seq_ids)
        self.scheduler.restore(seq_id, saved.state)
        if saved.state.num_computed_tokens:
            self.executor.put_parked(seq_id, saved.tokens)
        self.core.streams[seq_id] = StreamRecord(
            self.core.clock(), on_evict, saved.state.num_computed_tokens
        )
        return Stream(
            self,
            seq_id,
            seed=saved.seed,
            num_turns=saved.num_turns,
            pinned_messages=saved.pinned_messages,
            has_chatted=saved.has_chatted,
        )

    def park_idle_streams(self, *, idle_seconds: float = 0.0) -> int:
        """Move streams out of the cache that did nothing for so long; returns how many."""
        core = self.core
        limit = core.clock() - idle_seconds
        idle = []
        for seq_id in core.scheduler.idle_streams():
            if core.streams[seq_id].last_used > limit:
                break  # the others were used later
            idle.append(seq_id)
        for seq_id in idle:
            core.scheduler.park(seq_id)
        core.flush()
        return len(idle)

    # What `Stream` is made of

    def peek(self, seq_id: int) -> TokenSequence | None:
        """A stream's sequence, for a look in any thread; ``None`` once it is closed."""
        core = getattr(self, "_core", None)
        return None if core is None else core.scheduler.sequences.get(seq_id)

    def fork_stream(self, seq_id: int) -> tuple[int, int]:
        """Copy an idle stream; returns the copy's seq_id and seed."""
        child_id = next(self.core.seq_ids)
        child = self.scheduler.fork(seq_id, child_id, self.core.at_rest())
        self.core.streams[child_id] = StreamRecord(
            self.core.clock(), None, child.num_computed_tokens
        )
        return child_id, self._seeds.getrandbits(63)

    def cut_stream(self, seq_id: int, start: int, end: int) -> None:
        """Take tokens out of an idle stream."""
        self.scheduler.cut(seq_id, start, end, self.core.at_rest())

    def rewind_stream(self, seq_id: int, position: int) -> None:
        """Forget an idle stream's tokens from ``position`` on."""
        self.scheduler.rewind(seq_id, position, self.core.at_rest())
        record = self.core.streams[seq_id]
        record.num_computed_tokens = min(record.num_computed_tokens, position)

    def start_stream_turn(
        self,
        seq_id: int,
        params: SamplingParams,
        seed: int,
        inbox: Inbox,
        num_generated: int = 0,
    ) -> None:
        """Let a stream generate; its deltas will appear in ``inbox``. The turn has
        ``num_generated`` tokens already."""
        turn = Turn(request_id=f"stream-{seq_id}", index=0, params=params, seed=seed, inbox=inbox)
        self.core.turns[seq_id] = turn
        self.core.generate(seq_id, turn, num_generated)

    def start_stream_scoring(self, seq_id: int, inbox: Inbox) -> None:
        """Compute what was appended to a stream; log-probabilities will appear in ``inbox``."""
        params = SamplingParams(prompt_logprobs=0)
        turn = Turn(request_id=f"stream-{seq_id}", index=0, params=params, inbox=inbox)
        self.core.turns[seq_id] = turn
        self.scheduler.start_turn(seq_id, params, generates=False)

    def has_turn(self, seq_id: int, inbox: Inbox) -> bool:
        """Whether the stream's turn is the one that fills ``inbox``."""
        turn = self.core.turns.get(seq_id)
        return turn is not None and turn.inbox is inbox

    def end_stream_turn(self, seq_id: int, inbox: Inbox | None) -> None:
        """Stop a stream's turn, if it is the one that fills ``inbox`` or that is not given."""
        self.core.end_turn(seq_id, inbox)

    def close_stream(self, seq_id: int) -> None:
        self.core.close_stream(seq_id)

    def advance(self) -> bool:
        """Compute one step; deltas of requests without an inbox wait for the next `step`.

        Returns:
            Whether there was anything to compute.
        """
        if (seconds := self.config.park_after_seconds) is not None:
            self.park_idle_streams(idle_seconds=seconds)
        return self.core.step()

    def stream_stats(self, seq_id: int) -> StreamStats:
        return stream_stats(self.core, seq_id)

    # Both

    def close(self) -> None:
        """Free the memory of weights, K and V, remove what was parked, and end the processes that
        share the model, if there are several. Streams are closed with it. Harmless twice, and in a
        forked child, where there is nothing to end.

        Raises:
            RuntimeError: the engine is within a step.
        """
        if not self.lifetime.is_over:
            self._core.close()
            self.lifetime.is_closed = True
            del self._core

    def __enter__(self) -> LLMEngine:
        self.lifetime.check()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<LLMEngine {self.summary}>"

    @property
    def summary(self) -> str:
        """The model and the state it is in, in words, at any time and in any thread."""
        if not hasattr(self, "config"):
            return "that was not made"
        return f"of {self.config.model!r}: {self._state()}"

    def _state(self) -> str:
        if self.lifetime.is_over:
            return self.lifetime.state
        if (core := getattr(self, "_core", None)) is None:
            return "being made"
        sinks, window = self.sink_window.num_sink_tokens, self.sink_window.window_size
        visible = "full attention" if window is None else f"{sinks} sink tokens, window of {window}"
        return f"{visible}, open streams: {len(core.streams)}"

    def __reduce__(self) -> NoReturn:
        refuse_pickling("an engine", "make one in each process")

    def stats(self) -> EngineStats:
        """Describe the engine as it is now."""
        return engine_stats(self.core)

    @finish_before_exit
    def encode(self, prompt: Prompt, *, continues: bool = False) -> list[int]:
        """As `PromptEncoder.encode`."""
        return self.prompts.encode(prompt, continues=continues)

    def check_params(self, params: SamplingParams) -> None:
        """As `PromptEncoder.check_params`."""
        self.prompts.check_params(params)

    def chat_tokenizer(self) -> Tokenizer:
        """As `PromptEncoder.chat_tokenizer`."""
        return self.prompts.chat_tokenizer()

    def _check_request(self, request_id: str, params: SamplingParams) -> None:
        if not isinstance(request_id, str):
            raise ValueError(f"request_id must be a string, got {request_id!r}")
        undelivered = (delta.request_id for delta in self.core.undelivered)
        if request_id in self.core.requests or request_id in undelivered:
            raise ValueError(f"request_id {request_id!r} is in use by an unfinished request")
        self.check_params(params)
