"""A pool of engines for plain Python: an `AsyncRayLLM` in a thread of its own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Self, Unpack, overload

from tqdm import tqdm

from paged_stream.config import EngineSettings
from paged_stream.engine.adapters import per_prompt as adapter_per_prompt
from paged_stream.engine.api import EngineApi, FilePath, OnEvict, Scores
from paged_stream.engine.lifetime import refuse_pickling, when_abandoned
from paged_stream.engine.lora_request import LoRARequest
from paged_stream.engine.outputs import EmbeddingRequestOutput, RequestOutput
from paged_stream.engine.requests import (
    conversations_of,
    ids_per_prompt,
    merge_delta,
    new_output,
    params_per_prompt,
    prompt_list_of,
    split_prompts,
)
from paged_stream.pool.async_ray_llm import AsyncRayLLM
from paged_stream.pool.loop_thread import LoopThread, end_loop
from paged_stream.pool.run_soon import run_soon
from paged_stream.pool.stats import PoolStats
from paged_stream.pool.stream import PoolStream
from paged_stream.pool.together import together
from paged_stream.scheduler.sampling_params import SamplingParams, whole_answer
from paged_stream.text.chat import Messages
from paged_stream.text.chat_options import ChatOptions, ChatSettings, WritingSettings
from paged_stream.text.inputs import Prompt, Prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RayLLM(EngineApi):
    """Engines that Ray runs, for any number of threads.

    Besides what the contract says, every method may raise `PoolError`: the pool is closed, or no
    replica can do what was asked for.

    Args:
        model: as in `AsyncRayLLM`.
        num_replicas: as in `PoolOptions`.
        save_dir: as in `PoolOptions`.
        save_every_tokens: as in `PoolOptions`.
        heartbeat_seconds: as in `PoolOptions`.
        settings: any other field of `EngineConfig`.

    Raises:
        ValueError: as `AsyncRayLLM` and its `start`.
    """

    def __init__(
        self,
        model: str,
        *,
        num_replicas: int = 1,
        save_dir: FilePath | None = None,
        save_every_tokens: int = 1024,
        heartbeat_seconds: float = 60.0,
        **settings: Unpack[EngineSettings],
    ) -> None:
        self.inner = AsyncRayLLM(
            model,
            num_replicas=num_replicas,
            save_dir=save_dir,
            save_every_tokens=save_every_tokens,
            heartbeat_seconds=heartbeat_seconds,
            **settings,
        )
        self._names = (f"pool-{number}" for number in itertools.count())
        self._thread = LoopThread(self.inner.lifetime)
        try:
            self._thread.run(self.inner.start())
        except BaseException:
            self._thread.stop()
            raise
        # Streams refer to the thread, too, so the pool lives as long as any of them.
        end = partial(run_soon, self._thread.loop, partial(_end, self.inner))
        when_abandoned(self._thread, f"RayLLM of {model!r}", self.inner.lifetime, end)

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
        prompt_list = prompt_list_of(prompts)
        per_prompt = params_per_prompt(sampling_params, len(prompt_list))
        adapters = adapter_per_prompt(lora_request, len(prompt_list))
        names = ids_per_prompt(request_ids, len(prompt_list), self._names)
        token_ids = self._thread.run(self.inner.encode(prompt_list, per_prompt))
        columns = zip(names, prompt_list, token_ids, per_prompt, strict=True)
        outputs = [new_output(*column) for column in columns]
        with tqdm(total=len(outputs), unit="request", disable=not use_tqdm) as bar:
            requests = list(zip(outputs, per_prompt, adapters, strict=True))
            self._thread.run(self._complete(requests, priority, bar))
        return outputs

    async def _complete(
        self,
        requests: list[tuple[RequestOutput, SamplingParams, LoRARequest | None]],
        priority: int,
        bar: Any,
    ) -> None:
        self.inner.check_request_ids([output.request_id for output, _, _ in requests])

        async def complete(
            request: tuple[RequestOutput, SamplingParams, LoRARequest | None],
        ) -> None:
            output, sampling_params, adapter = request
            async for delta in self.inner.generate(
                output.prompt_token_ids,
                sampling_params,
                request_id=output.request_id,
                priority=priority,
                lora_request=adapter,
            ):
                merge_delta(output, delta)
            bar.update()

        await together(complete, requests, self.inner.max_num_requests)

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
        conversations = conversations_of(messages)
        encoding = self.inner.encode_chats(conversations, ChatOptions(**options))
        prompts = self._thread.run(encoding)
        params = params_per_prompt(sampling_params, len(prompts), default=whole_answer(None))
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
        with tqdm(total=len(prompt_list), unit="prompt", disable=not use_tqdm) as bar:
            scoring = self.inner.score_each(prompt_list, lora_request, bar.update)
            scores = self._thread.run(scoring)
        return scores[0] if is_one else scores

    def embed(
        self, prompts: Prompts, *, use_tqdm: bool = True, lora_request: LoRARequest | None = None
    ) -> list[EmbeddingRequestOutput]:
        """As `EngineApi.embed`."""
        prompt_list = prompt_list_of(prompts)
        with tqdm(total=len(prompt_list), unit="prompt", disable=not use_tqdm) as bar:
            return self._thread.run(self.inner.embed_each(prompt_list, lora_request, bar.update))

    def get_tokenizer(self) -> PreTrainedTokenizerBase:
        """As `EngineApi.get_tokenizer`."""
        return self._thread.run(self.inner.get_tokenizer())

    def open_stream(
        self,
        *,
        num_sink_tokens: int | None = None,
        window_size: int | None = None,
        pin: Prompt | Messages | None = None,
        on_evict: OnEvict | None = None,
        lora_request: LoRARequest | None = None,
        **options: Unpack[WritingSettings],
    ) -> PoolStream:
        """As `EngineApi.open_stream`."""
        opened = self.inner.open_stream(
            num_sink_tokens=num_sink_tokens,
            window_size=window_size,
            pin=pin,
            on_evict=on_evict,
            lora_request=lora_request,
            **options,
        )
        return PoolStream(self._thread, self._thread.run(opened))

    def load_stream(
        self,
        source: FilePath | bytes,
        *,
        on_evict: OnEvict | None = None,
        lora_request: LoRARequest | None = None,
    ) -> PoolStream:
        """As `EngineApi.load_stream`."""
        loading = self.inner.load_stream(source, on_evict=on_evict, lora_request=lora_request)
        return PoolStream(self._thread, self._thread.run(loading))

    def add_lora(self, lora_request: LoRARequest) -> None:
        """As `EngineApi.add_lora`, on every replica that is ready."""
        self._thread.run(self.inner.add_lora(lora_request))

    def remove_lora(self, lora_id: int) -> bool:
        """As `AsyncRayLLM.remove_lora`."""
        return self._thread.run(self.inner.remove_lora(lora_id))

    def list_loras(self) -> set[int]:
        """As `EngineApi.list_loras`: of any replica."""
        return self._thread.run(self.inner.list_loras())

    def abort(self, request_id: str) -> None:
        """As `EngineApi.abort`."""
        self._thread.submit(
            self.inner.abort(request_id)
        )  # not awaited: this may be the pool's thread

    def stats(self) -> PoolStats:
        """As `AsyncRayLLM.stats`."""
        return self._thread.run(self.inner.stats())

    def wait_until_ready(self) -> None:
        """As `AsyncRayLLM.wait_until_ready`."""
        self._thread.run(self.inner.wait_until_ready())

    def scale_to(self, num_replicas: int, *, drain_seconds: float = 30.0) -> None:
        """As `AsyncRayLLM.scale_to`."""
        self._thread.run(self.inner.scale_to(num_replicas, drain_seconds=drain_seconds))

    def rolling_restart(self, *, drain_seconds: float = 30.0) -> None:
        """As `AsyncRayLLM.rolling_restart`."""
        self._thread.run(self.inner.rolling_restart(drain_seconds=drain_seconds))

    def close(self) -> None:
        """As `EngineApi.close`."""
        if not self.inner.lifetime.is_here:
            return
        try:
            if not self.inner.lifetime.is_closed:
                self._thread.run(self.inner.close())
        finally:
            self._thread.stop()

    def __enter__(self) -> Self:
        self._thread.check()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        inner = getattr(self, "inner", None)
        return f"<RayLLM {'that was not made' if inner is None else inner.summary}>"

    def __reduce__(self) -> NoReturn:
        refuse_pickling("a pool", "make one in each process")


async def _end(pool: AsyncRayLLM) -> None:
    """Close a pool that nobody has any more, and then the event loop."""
    try:
        await pool.close()
    finally:
        await end_loop()
