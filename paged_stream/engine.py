"""The engine: requests and streams in, text and tokens out, one step at a time.

The engine owns what has to do with users (ids, text, stop strings, seeds); the scheduler owns
progress, and an executor computes. Not thread-safe.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from paged_stream.config import EngineConfig
from paged_stream.detokenizer import Detokenizer
from paged_stream.executor.local import LocalExecutor
from paged_stream.inputs import (
    Prompt,
    as_token_ids,
    check_range,
    check_rotary_length,
    check_text,
    resolve_sink_window,
    visible_tokens,
)
from paged_stream.models.loader import load_config, resolve_model
from paged_stream.outputs import EngineStats, RequestDelta, StreamStats
from paged_stream.scheduler.config import SchedulerConfig
from paged_stream.scheduler.output import SequenceUpdate
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.scheduler.scheduler import Scheduler
from paged_stream.stream import Stream
from paged_stream.tokenizer import Tokenizer, load_tokenizer


@dataclass(slots=True, kw_only=True)
class _Turn:
    """What the engine remembers of a running turn of one sequence."""

    request_id: str
    index: int
    params: SamplingParams
    stop_token_ids: tuple[int, ...]
    detokenizer: Detokenizer | None
    inbox: deque[RequestDelta] | None  # where a stream's deltas go


class LLMEngine:
    """Runs requests and streams on one model.

    Raises:
        ValueError: a setting that is out of range, a model that cannot be loaded, or memory that
            does not hold one stream.
    """

    def __init__(self, config: EngineConfig) -> None:
        files = resolve_model(config.model)
        self.config = config
        model_config = load_config(files)
        self.sink_window = resolve_sink_window(
            model_config, config.num_sink_tokens, config.window_size
        )
        if not model_config.is_exact_at(length := visible_tokens(model_config, self.sink_window)):
            model_config = load_config(files, length)
        self.model_config = model_config
        self.tokenizer: Tokenizer | None = load_tokenizer(files) if files.has_tokenizer else None
        self._executor = LocalExecutor(config, files, self.model_config, self.sink_window)
        self.cache_plan = self._executor.cache_plan
        self._scheduler = Scheduler(
            SchedulerConfig(
                num_blocks=self.cache_plan.num_blocks,
                block_size=config.block_size,
                max_num_seqs=config.max_num_seqs,
                max_num_batched_tokens=config.max_num_batched_tokens,
                max_model_len=self.model_config.max_position_embeddings,
            )
        )
        self._seq_ids = itertools.count()
        self._seeds = random.Random(config.seed)
        self._turns: dict[int, _Turn] = {}  # by seq_id
        self._requests: dict[str, list[int]] = {}  # request_id to its unfinished seq_ids
        self._undelivered: list[RequestDelta] = []
        self._num_computed_tokens = 0
        self._num_generated_tokens = 0

    # Requests

    def add_request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
    ) -> None:
        """Queue a request.

        Args:
            request_id: any string that no unfinished request has.
            prompt: text or token ids, of any length.
            params: defaults to ``SamplingParams()``.
            priority: smaller runs first.

        Raises:
            ValueError: names what is wrong; the engine is as before.
        """
        params = params or SamplingParams()
        self._check_request(request_id, params)
        if type(priority) is not int:
            raise ValueError(f"priority must be an int, got {priority!r}")
        token_ids = self.encode(prompt)
        self.check_length(len(token_ids))
        seed = self._seeds.getrandbits(63) if params.seed is None else params.seed
        for index in range(params.n):
            seq_id = next(self._seq_ids)
            limit = None if params.max_tokens is None else len(token_ids) + params.max_tokens
            self._scheduler.open(seq_id, self.sink_window, max_tokens=limit, priority=priority)
            self._start_turn(
                seq_id, token_ids, params, request_id=request_id, index=index, seed=seed + index
            )
            self._requests.setdefault(request_id, []).append(seq_id)

    def add_score_request(self, request_id: str, prompt: Prompt) -> None:
        """Queue a request that generates nothing and reports ``prompt_logprobs``.

        Raises:
            ValueError: as `add_request`, and for a prompt of fewer than two tokens.
        """
        params = SamplingParams(prompt_logprobs=0)
        self._check_request(request_id, params)
        token_ids = self.encode(prompt)
        self.check_length(len(token_ids))
        if len(token_ids) < 2:
            raise ValueError(f"prompt must have at least 2 tokens to score, got {len(token_ids)}")
        seq_id = next(self._seq_ids)
        self._scheduler.open(seq_id, self.sink_window, max_tokens=len(token_ids))
        self._start_turn(seq_id, token_ids, params, request_id=request_id, generates=False)
        self._requests[request_id] = [seq_id]

    def abort_request(self, request_id: str) -> None:
        """Drop a request and free its blocks; one that is unknown or finished is ignored."""
        for seq_id in self._requests.pop(request_id, ()):
            self._turns.pop(seq_id, None)
            self._scheduler.close(seq_id)
        self._undelivered = [d for d in self._undelivered if d.request_id != request_id]

    def has_unfinished_requests(self) -> bool:
        """Whether `step` has something to do or to hand out. Streams do not count: whoever reads
        one drives it."""
        return bool(self._requests or self._undelivered)

    def step(self, request_ids: Collection[str] | None = None) -> list[RequestDelta]:
        """Compute one step and return what was added to each request.

        Args:
            request_ids: return what belongs to these; the rest waits for another call.

        Raises:
            RuntimeError: nothing can run, because idle streams hold every block. Nothing is lost:
                once a stream is closed, the next step goes on.
        """
        self._step()
        deltas, self._undelivered = self._undelivered, []
        if request_ids is not None:
            self._undelivered = [d for d in deltas if d.request_id not in request_ids]
            deltas = [d for d in deltas if d.request_id in request_ids]
        return deltas

    # Streams

    def open_stream(
        self, *, num_sink_tokens: int | None = None, window_size: int | None = None
    ) -> Stream:
        """Open a live stream: its K and V stay in the cache between turns.

        Args:
            num_sink_tokens: of this stream; defaults to the engine's.
            window_size: of this stream; defaults to the engine's.

        Raises:
            ValueError: sinks or window that are out of range or do not fit the cache.
        """
        sink_window = self.sink_window
        if num_sink_tokens is not None or window_size is not None:
            sinks = self.config.num_sink_tokens if num_sink_tokens is None else num_sink_tokens
            window = self.config.window_size if window_size is None else window_size
            sink_window = resolve_sink_window(self.model_config, sinks, window)
            check_rotary_length(self.model_config, sink_window)
        seq_id = next(self._seq_ids)
        self._scheduler.open(seq_id, sink_window, is_stream=True)
        return Stream(self, seq_id)

    def stream_check_length(self, seq_id: int, num_appended: int) -> None:
        """Refuse what goes beyond the trained length of a model that cannot stream.

        Raises:
            ValueError: as `check_length`.
        """
        self.check_length(self._scheduler.sequences[seq_id].num_tokens + num_appended)

    def stream_start_turn(
        self, seq_id: int, token_ids: list[int], params: SamplingParams
    ) -> deque[RequestDelta]:
        """Start a stream's turn; its deltas will appear in the returned queue."""
        inbox: deque[RequestDelta] = deque()
        self._start_turn(
            seq_id,
            token_ids,
            params,
            request_id=f"stream-{seq_id}",
            seed=self._seeds.getrandbits(63) if params.seed is None else params.seed,
            inbox=inbox,
        )
        return inbox

    def stream_step(self) -> None:
        """Advance everything by one step; deltas of requests wait for the next `step`."""
        self._step()

    def stream_end_turn(self, seq_id: int) -> None:
        self._turns.pop(seq_id, None)
        self._scheduler.end_turn(seq_id)

    def stream_close(self, seq_id: int) -> None:
        self._turns.pop(seq_id, None)
        self._scheduler.close(seq_id)

    def stream_stats(self, seq_id: int) -> StreamStats:
        sequence = self._scheduler.sequences[seq_id]
        computed = sequence.num_computed_tokens
        visible = sequence.sink_window.num_visible(computed - 1) if computed else 0
        num_blocks = 0
        if seq_id in self._scheduler.kv:
            num_blocks = len(self._scheduler.kv[seq_id].held)
        return StreamStats(
            num_tokens=sequence.num_tokens,
            num_visible_tokens=visible,
            num_evicted_tokens=computed - visible,
            num_blocks=num_blocks,
            kv_bytes=num_blocks * self.cache_plan.block_bytes,
        )

    # Both

    def stats(self) -> EngineStats:
        """Describe the engine as it is now."""
        scheduler = self._scheduler
        used = scheduler.kv.pool.num_blocks - scheduler.kv.pool.num_free
        sequences = scheduler.sequences
        return EngineStats(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            num_streams=sum(sequence.is_stream for sequence in sequences.values()),
            num_blocks=scheduler.kv.pool.num_blocks,
            num_used_blocks=used,
            kv_bytes=used * self.cache_plan.block_bytes,
            num_evicted_tokens=sum(
                self.stream_stats(seq_id).num_evicted_tokens for seq_id in sequences
            ),
            num_computed_tokens=self._num_computed_tokens,
            num_generated_tokens=self._num_generated_tokens,
        )

    def encode(self, prompt: Prompt, *, continues: bool = False) -> list[int]:
        """Turn a prompt into token ids and check them.

        Args:
            continues: the text goes on from another, so it gets no special tokens of its own.

        Raises:
            ValueError: an empty prompt, text without a tokenizer, ids out of range or no ids.
        """
        if not isinstance(prompt, str):
            token_ids = as_token_ids(prompt)
        elif self.tokenizer is None:
            raise ValueError(
                f"prompt is text, but {self.config.model} has no tokenizer; pass token ids or "
                "add tokenizer.json to the model folder"
            )
        else:
            check_text(prompt)
            token_ids = self.tokenizer.encode(prompt, add_special_tokens=not continues)
        check_range(token_ids, self.model_config.vocab_size)
        return token_ids

    def check_length(self, num_tokens: int) -> None:
        """Refuse more tokens than full attention can have; a window has no limit.

        Raises:
            ValueError: names the limit.
        """
        trained = self.model_config.max_position_embeddings
        if self.sink_window.window_size is None and num_tokens > trained:
            raise ValueError(
                f"{self.model_config.model_type} cannot go beyond its trained length of {trained} "
                f"tokens, got {num_tokens}"
            )

    def _check_request(self, request_id: str, params: SamplingParams) -> None:
        if not isinstance(request_id, str):
            raise ValueError(f"request_id must be a string, got {request_id!r}")
        undelivered = (delta.request_id for delta in self._undelivered)
        if request_id in self._requests or request_id in undelivered:
            raise ValueError(f"request_id {request_id!r} is in use by an unfinished request")
        self.check_params(params)

    def check_params(self, params: SamplingParams) -> None:
        """Check what only the engine knows: the vocabulary and whether there is text.

        Raises:
            ValueError: names the field.
        """
        if not isinstance(params, SamplingParams):
            raise ValueError(f"params must be SamplingParams, got {params!r}")
        if params.stop and self.tokenizer is None:
            raise ValueError(f"stop needs a tokenizer, and {self.config.model} has none")
        vocab_size = self.model_config.vocab_size
        for token_id in params.stop_token_ids or ():
            if token_id >= vocab_size:
                raise ValueError(f"stop_token_ids must be below {vocab_size}, got {token_id}")

    def _start_turn(
        self,
        seq_id: int,
        token_ids: list[int],
        params: SamplingParams,
        *,
        request_id: str,
        index: int = 0,
        generates: bool = True,
        seed: int = 0,
        inbox: deque[RequestDelta] | None = None,
    ) -> None:
        stop_token_ids = tuple(params.stop_token_ids or ())
        if not params.ignore_eos:
            stop_token_ids += self.model_config.eos_token_ids
        detokenizer = None
        if self.tokenizer is not None and generates:
            detokenizer = Detokenizer(self.tokenizer, params.stop or (), token_ids)
        self._scheduler.start_turn(
            seq_id,
            token_ids,
            params,
            generates=generates,
            stop_token_ids=stop_token_ids,
            seed=seed,
        )
        self._turns[seq_id] = _Turn(
            request_id=request_id,
            index=index,
            params=params,
            stop_token_ids=stop_token_ids,
            detokenizer=detokenizer,
            inbox=inbox,
        )

    def _step(self) -> None:
        # Whoever reads a stream slowly holds up that stream only, and its deltas do not pile up.
        unread = {seq_id for seq_id, turn in self._turns.items() if turn.inbox}
        output = self._scheduler.schedule(unread)
        if not output.sequences:
            if self._scheduler.has_unfinished() and not unread:
                raise RuntimeError(
                    "every block is held by idle streams, so nothing that waits can start; close "
                    "a stream or raise kv_cache_memory_bytes"
                )
            return
        result = self._executor.execute(output)
        self._num_computed_tokens += sum(len(s.token_ids) for s in output.sequences)
        for update in self._scheduler.update(output, result):
            self._deliver(update)

    def _deliver(self, update: SequenceUpdate) -> None:
        turn = self._turns[update.seq_id]
        text, finish_reason = "", update.finish_reason
        if update.token_id >= 0:
            self._num_generated_tokens += 1
        if turn.detokenizer is not None:
            text, stopped = self._detokenize(turn, update)
            if stopped:
                finish_reason = "stop"
                self._scheduler.end_turn(update.seq_id)
        delta = RequestDelta(
            request_id=turn.request_id,
            index=turn.index,
            delta_text=text,
            delta_token_ids=[update.token_id] if update.token_id >= 0 else [],
            finished=finish_reason is not None,
            finish_reason=finish_reason,
            logprobs=[update.logprob] if update.logprob is not None else None,
            prompt_logprobs=update.prompt_logprobs or None,
        )
        if delta.finished:
            self._forget(update.seq_id, turn)
        if turn.inbox is not None:
            turn.inbox.append(delta)
        elif delta.finished or delta.delta_token_ids or delta.prompt_logprobs:
            self._undelivered.append(delta)

    def _detokenize(self, turn: _Turn, update: SequenceUpdate) -> tuple[str, bool]:
        """Text of an update, and whether it completed a stop string. A stop token has no text."""
        assert turn.detokenizer is not None
        text, stopped = "", False
        stop_token = update.finish_reason == "stop"
        if update.token_id >= 0 and not stop_token:
            text, stopped = turn.detokenizer.append(update.token_id)
        if update.finish_reason is not None and not stopped:
            rest, stopped = turn.detokenizer.finish()
            text += rest
        return text, stopped

    def _forget(self, seq_id: int, turn: _Turn) -> None:
        del self._turns[seq_id]
        if turn.inbox is not None:
            return
        unfinished = self._requests[turn.request_id]
        unfinished.remove(seq_id)
        if not unfinished:
            del self._requests[turn.request_id]
