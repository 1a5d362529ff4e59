"""The engine whose callers wait while it computes: requests and streams in, text and tokens out,
one step at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Self, Unpack, overload

from paged_stream.config import EngineConfig, takes_config
from paged_stream.engine.adapters import Chosen, check_adapter
from paged_stream.engine.adapters import per_prompt as adapter_per_prompt
from paged_stream.engine.api import EngineApi, FilePath, OnEvict, Scores
from paged_stream.engine.caller import Caller
from paged_stream.engine.calls import Reader
from paged_stream.engine.core import EngineCore
from paged_stream.engine.lifetime import when_abandoned
from paged_stream.engine.loaded_engine import LoadedEngine
from paged_stream.engine.lora_request import LoRARequest
from paged_stream.engine.outputs import (
    DeltaQueue,
    EmbeddingRequestOutput,
    EngineStats,
    RequestDelta,
    RequestOutput,
)
from paged_stream.engine.parcel import Parcel, send
from paged_stream.engine.requests import (
    conversations_of,
    embedding_of,
    embedding_outputs,
    ids_per_prompt,
    merge_delta,
    new_output,
    params_per_prompt,
    prompt_list_of,
    request_names,
    scores_of,
    split_prompts,
)
from paged_stream.engine.stats import engine_stats
from paged_stream.engine.stream import Stream
from paged_stream.scheduler.sampling_params import SamplingParams, whole_answer
from paged_stream.system.progress_bar import Bar
from paged_stream.text.chat import Messages
from paged_stream.text.chat_options import (
    ChatOptions,
    ChatSettings,
    WritingOptions,
    WritingSettings,
)
from paged_stream.text.inputs import Prompt, Prompts, naming_item

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class LLMEngine(LoadedEngine, EngineApi):
    """Runs requests and streams on one model. It computes while a thread waits for it, in a thread
    of its own; any number of threads may use it.

    Beside what every engine can (`EngineApi`), it lets its user decide about each step:
    `add_request`, then `step` while `has_unfinished_requests`.

    Args:
        config: the engine's settings.

    Raises:
        ValueError: a setting that is out of range, a model that cannot be loaded, or memory that
            does not hold one stream.
    """

    @takes_config
    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        self._names = request_names()
        self._caller = Caller(self._core)  # its parts go with it
        when_abandoned(self, f"{type(self).__name__} of {config.model!r}", self._core.lifetime)

    @property
    def core(self) -> EngineCore:
        """For the engine's thread, and for a look at it while it has nothing to do."""
        self._caller.call(lambda: None)  # let it do what finalizers have left to do
        return self._core

    # Whole answers

    def generate(
        self,
        prompts: Prompts,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        request_ids: str | Sequence[str] | None = None,
        priority: int = 0,
        use_tqdm: bool = True,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
    ) -> list[RequestOutput]:
        """As `EngineApi.generate`."""
        self._core.lifetime.check()
        prompt_list = prompt_list_of(prompts)
        count = len(prompt_list)
        per_prompt = params_per_prompt(sampling_params, count)
        adapters = [
            self.intake.choose_adapter(each) for each in adapter_per_prompt(lora_request, count)
        ]
        ids = ids_per_prompt(request_ids, count, self._free_names())
        outputs = {}
        for index, (request_id, prompt, params) in enumerate(
            zip(ids, prompt_list, per_prompt, strict=True)
        ):
            self.intake.prompts.check_params(params)
            with naming_item("prompts", index, count):
                token_ids = self.intake.prompts.truncate(self.encode(prompt), params)
                self.intake.check_request(request_id, len(token_ids), params, priority)
            outputs[request_id] = new_output(request_id, prompt, token_ids, params)
        requests = dict(zip(outputs, zip(per_prompt, adapters, strict=True), strict=True))
        return self._complete(outputs, requests, priority, use_tqdm)

    def _complete(
        self,
        outputs: Mapping[str, RequestOutput],
        requests: Mapping[str, tuple[SamplingParams, Chosen]],
        priority: int,
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        """Run requests until all are finished."""

        def start(request_id: str, inbox: DeltaQueue) -> None:
            params, adapter = requests[request_id]
            self._intake.add_request(
                request_id,
                outputs[request_id].prompt_token_ids,
                params,
                priority=priority,
                adapter=adapter,
                inbox=inbox,
            )

        count, num_tokens = sum(len(output.outputs) for output in outputs.values()), 0
        with Bar(total=count, unit="completion", disable=not use_tqdm) as bar:
            for delta in self._run(outputs, start, count):
                merge_delta(outputs[delta.request_id], delta)
                num_tokens += len(delta.delta_token_ids)
                if delta.finished:
                    bar.update()
                    elapsed = bar.format_dict["elapsed"] or 1e-9
                    bar.set_postfix_str(f"{num_tokens / elapsed:.0f} tok/s")
        return list(outputs.values())

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        request_ids: str | Sequence[str] | None = None,
        priority: int = 0,
        use_tqdm: bool = True,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        **options: Unpack[ChatSettings],
    ) -> list[RequestOutput]:
        """As `EngineApi.chat`."""
        intake, written = self.intake, ChatOptions(**options)
        intake.prompts.chat_tokenizer(written)
        conversations = conversations_of(messages)
        prompts = []
        for index, turns in enumerate(conversations):
            with naming_item("messages", index, len(conversations)):
                prompts.append(intake.encode_chat(turns, written))
        params = params_per_prompt(sampling_params, len(prompts), default=whole_answer(None))
        if isinstance(request_ids, str):
            request_ids = [request_ids]
        return self.generate(
            prompts,
            params,
            request_ids=request_ids,
            priority=priority,
            use_tqdm=use_tqdm,
            lora_request=lora_request,
        )

    @overload
    def score(  # type: ignore[overload-overlap]
        self, prompts: Prompt, *, use_tqdm: bool = True, lora_request: LoRARequest | None = None
    ) -> Scores: ...

    @overload
    def score(
        self,
        prompts: Sequence[Prompt],
        *,
        use_tqdm: bool = True,
        lora_request: LoRARequest | None = None,
    ) -> list[Scores]: ...

    def score(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        use_tqdm: bool = True,
        lora_request: LoRARequest | None = None,
    ) -> Scores | list[Scores]:
        """As `EngineApi.score`."""
        prompt_list, is_one = split_prompts(prompts)
        token_ids = self.intake.encode_all(prompt_list)
        adapter = self.intake.choose_adapter(lora_request)
        scores: list[Scores] = [[None] for _ in token_ids]
        names = self._free_names()
        requests = {next(names): index for index, ids in enumerate(token_ids) if len(ids) > 1}

        def start(request_id: str, inbox: DeltaQueue) -> None:
            ids = token_ids[requests[request_id]]
            self._intake.add_scoring(request_id, ids, adapter=adapter, inbox=inbox)

        total = sum(map(len, token_ids))
        with Bar(total=total, unit="tok", disable=not use_tqdm, initial=len(token_ids)) as bar:
            for delta in self._run(requests, start, len(requests)):
                new = scores_of(delta)
                scores[requests[delta.request_id]] += new
                bar.update(len(new))
        return scores[0] if is_one else scores

    def embed(
        self, prompts: Prompts, *, use_tqdm: bool = True, lora_request: LoRARequest | None = None
    ) -> list[EmbeddingRequestOutput]:
        """As `EngineApi.embed`."""
        prompt_list = prompt_list_of(prompts)
        token_ids = self.intake.encode_all(prompt_list)
        adapter = self.intake.choose_adapter(lora_request)
        names = ids_per_prompt(None, len(token_ids), self._free_names())
        requests = dict(zip(names, token_ids, strict=True))
        embeddings = dict.fromkeys(requests, list[float]())

        def start(request_id: str, inbox: DeltaQueue) -> None:
            ids = requests[request_id]
            self._intake.add_embedding(request_id, ids, adapter=adapter, inbox=inbox)

        with Bar(total=len(requests), unit="prompt", disable=not use_tqdm) as bar:
            for delta in self._run(requests, start, len(requests)):
                embeddings[delta.request_id] = embedding_of(delta)
                bar.update()
        return embedding_outputs(prompt_list, token_ids, list(embeddings.values()))

    def get_tokenizer(self) -> PreTrainedTokenizerBase:
        """As `EngineApi.get_tokenizer`."""
        return self.intake.prompts.tokenizer_copy()

    def _run(
        self, request_ids: Collection[str], start: Callable[[str, DeltaQueue], None], left: int
    ) -> Iterator[RequestDelta]:
        """Start requests, and step until ``left`` completions are finished: all of theirs."""
        core, inbox, reader = self._core, DeltaQueue(), Reader()

        def leave(core: EngineCore) -> None:
            for request_id in request_ids:
                core.turns.drop(request_id, inbox)

        leaving = core.errands.when_gone(reader, leave)

        def begin() -> None:
            if leaving() is not None:  # otherwise the reader was interrupted before
                for request_id in request_ids:
                    start(request_id, inbox)

        try:
            self._caller.call(begin)
            while left:
                if inbox:
                    delta = inbox.popleft()
                    left -= delta.finished
                    yield delta
                else:
                    self._caller.call(core.advance)
        finally:
            del reader  # an exception may keep this frame

    def _free_names(self) -> Iterator[str]:
        return itertools.filterfalse(self.core.turns.is_in_use, self._names)

    # Step by step

    def add_request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        lora_request: LoRARequest | None = None,
    ) -> None:
        """Queue a request, whose deltas `step` returns.

        Args:
            request_id: any string that no unfinished request has.
            prompt: text or token ids, of any length.
            params: defaults to ``SamplingParams()``.
            priority: smaller runs first.
            lora_request: as in `EngineApi.generate`.

        Raises:
            ValueError: names what is wrong; the engine is as before.
        """
        params = SamplingParams() if params is None else params
        token_ids = self.encode(prompt)
        self.intake.prompts.check_params(params)
        adapter = self.intake.choose_adapter(lora_request)
        self._caller.call(
            lambda: self._intake.add_request(
                request_id, token_ids, params, priority=priority, adapter=adapter
            )
        )

    def step(self, request_ids: Collection[str] | None = None) -> list[RequestDelta]:
        """Compute one step and return what was added to each request.

        Args:
            request_ids: return what belongs to these; the rest waits for another call.

        Raises:
            RuntimeError: the engine has failed before.
        """
        core = self._core

        def advance() -> Parcel:
            core.advance()
            return send(core, core.turns.take_undelivered(request_ids))

        parcel = None
        try:
            parcel = self._caller.call(advance)
            parcel.receipt.is_signed = True  # no exception can come between this and the return
            return parcel.deltas
        finally:
            del parcel  # an exception may keep this frame

    def has_unfinished_requests(self) -> bool:
        """Whether `step` has something to do or to hand out. Streams do not count: whoever reads
        one drives it."""
        return self._caller.call(lambda: self._core.turns.has_unfinished_requests)

    def abort_request(self, request_id: str) -> None:
        """Drop a request, and what `step` has not returned of it; an unknown or finished one is
        ignored. `abort` would let `step` return what there is, and the end."""
        self._caller.call(lambda: self._core.turns.drop(request_id))

    # Streams

    def open_stream(
        self,
        *,
        num_sink_tokens: int | None = None,
        window_size: int | None = None,
        pin: Prompt | Messages | None = None,
        on_evict: OnEvict | None = None,
        lora_request: LoRARequest | None = None,
        **options: Unpack[WritingSettings],
    ) -> Stream:
        """As `EngineApi.open_stream`."""
        intake, writing = self.intake, WritingOptions(**options)
        adapter = intake.choose_adapter(lora_request)
        opening = intake.prepare_stream(num_sink_tokens, window_size, pin, writing)
        inner = self._caller.call(lambda: intake.open_stream(opening, on_evict, adapter))
        return Stream(inner, self._caller)

    def load_stream(
        self,
        source: FilePath | bytes,
        *,
        on_evict: OnEvict | None = None,
        lora_request: LoRARequest | None = None,
    ) -> Stream:
        """As `EngineApi.load_stream`."""
        intake = self.intake
        adapter = intake.choose_adapter(lora_request)
        saved = intake.read_stream(source)
        inner = self._caller.call(lambda: intake.restore_stream(saved, on_evict, adapter))
        return Stream(inner, self._caller)

    def park_idle_streams(self, *, idle_seconds: float = 0.0) -> int:
        """Move streams out of the cache that did nothing for so long; returns how many."""
        return self._caller.call(lambda: self._core.park_idle(idle_seconds))

    # Adapters

    def add_lora(self, lora_request: LoRARequest) -> None:
        """As `EngineApi.add_lora`."""
        check_adapter(lora_request, optional=False)
        adapter = self.intake.choose_adapter(lora_request)
        self._caller.call(lambda: self._core.adapters.key(adapter))

    def remove_lora(self, lora_id: int) -> bool:
        """As `EngineApi.remove_lora`."""
        return self._caller.call(lambda: self._core.adapters.remove(lora_id))

    def list_loras(self) -> set[int]:
        """As `EngineApi.list_loras`."""
        return self._caller.call(lambda: self._core.adapters.numbers())

    # Both

    def abort(self, request_id: str) -> None:
        """As `EngineApi.abort`."""
        self._core.lifetime.check()
        self._core.errands.put(lambda core: core.turns.abort(request_id))

    def stats(self) -> EngineStats:
        """As `EngineApi.stats`."""
        return self._caller.call(lambda: engine_stats(self._core))

    def close(self) -> None:
        """As `EngineApi.close`."""
        self._caller.stop()

    def __enter__(self) -> Self:
        self._core.lifetime.check()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
