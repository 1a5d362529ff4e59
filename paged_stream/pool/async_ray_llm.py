"""A pool of engines behind the API of one. Requests go to the replica with the least to do, streams
stay where they are, and nothing that was acknowledged is lost when a replica dies."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self, Unpack, overload
from weakref import finalize

from paged_stream.config import EngineConfig, EngineSettings
from paged_stream.engine.adapters import check_adapter
from paged_stream.engine.api import AsyncDeltas, AsyncEngineApi, FilePath, OnEvict, Scores
from paged_stream.engine.lifetime import refuse_pickling, when_abandoned
from paged_stream.engine.lora_request import LoRARequest
from paged_stream.engine.outputs import EmbeddingRequestOutput
from paged_stream.engine.requests import (
    check_request_id,
    embedding_outputs,
    prompt_list_of,
    split_prompts,
)
from paged_stream.pool.async_stream import AsyncPoolStream
from paged_stream.pool.placement import Placement
from paged_stream.pool.pool_options import PoolOptions
from paged_stream.pool.request import PoolRequest
from paged_stream.pool.run_soon import run_soon
from paged_stream.pool.stats import PoolStats
from paged_stream.pool.together import together
from paged_stream.scheduler.fields import as_int
from paged_stream.scheduler.sampling_params import SamplingParams, check_params_type, whole_answer
from paged_stream.text.chat import Messages
from paged_stream.text.chat_options import (
    USUAL,
    ChatOptions,
    ChatSettings,
    WritingOptions,
    WritingSettings,
)
from paged_stream.text.inputs import Prompt, Prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REQUESTS_AT_ONCE = 1024  # per replica: its engine queues what it has no room for


class AsyncRayLLM(AsyncEngineApi):
    """Engines that Ray runs, for the coroutines of one event loop.

    Use it in ``async with``, or call `start` and `close`. Besides what the contract says, every
    method may raise `PoolError`: the pool is closed, or no replica can do what was asked for.

    Args:
        model: as in `LLM`. It must lead to the same files on every machine of the cluster.
        num_replicas: as in `PoolOptions`.
        save_dir: as in `PoolOptions`.
        save_every_tokens: as in `PoolOptions`.
        heartbeat_seconds: as in `PoolOptions`.
        settings: any other field of `EngineConfig`.

    Raises:
        ValueError: names the field, its value and what is allowed.
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
        options = PoolOptions(
            num_replicas=num_replicas,
            save_dir=save_dir,
            save_every_tokens=save_every_tokens,
            heartbeat_seconds=heartbeat_seconds,
        )
        self.config = EngineConfig(model=model, **settings)
        self._placement = Placement(self.config, options)
        self.lifetime = self._placement.lifetime
        self._seeds = random.Random(self.config.seed)
        self._requests: dict[str, PoolRequest] = {}
        self._finalizer: finalize[..., object] | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None  # once somebody has asked for it

    async def start(self) -> None:
        """Start the replicas and wait until all are ready. Harmless once that is done.

        Raises:
            ValueError: as `LLMEngine`, or the cluster has no room.
        """
        await self._placement.start()
        if self._finalizer is None:
            release = partial(run_soon, asyncio.get_running_loop(), self._placement.close)
            name = f"AsyncRayLLM of {self.config.model!r}"
            self._finalizer = when_abandoned(self, name, self.lifetime, release)

    async def close(self) -> None:
        """As `EngineApi.close`."""
        await self._placement.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncRayLLM {self.summary}>"

    @property
    def summary(self) -> str:
        """The model, the replicas and the state in words, at any time and in any thread."""
        placement = getattr(self, "_placement", None)
        return "that was not made" if placement is None else placement.summary

    def __reduce__(self) -> NoReturn:
        refuse_pickling("a pool", "make one in each process")

    # Requests

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        lora_request: LoRARequest | None = None,
    ) -> AsyncDeltas:
        """As `AsyncEngineApi.generate`. If its replica dies, another one computes the request
        again, and only what was not yielded before is yielded.

        Raises:
            PoolError: the other replica comes to other tokens, which rounding can cause.
        """
        self._placement.check()
        params = SamplingParams() if sampling_params is None else sampling_params
        check_params_type(params)
        if request_id is None:
            request_id = self._placement.new_name("request")
        self.check_request_ids([request_id])
        if params.seed is None:
            params = replace(params, seed=self._seeds.getrandbits(63))
        check_adapter(lora_request)
        request = PoolRequest(self._placement, request_id, prompt, params, priority, lora_request)
        self._requests[request_id] = request
        try:
            async with aclosing(request.deltas()) as deltas:
                async for delta in deltas:
                    yield delta
        finally:
            del self._requests[request_id]

    def check_request_ids(self, request_ids: Sequence[str]) -> None:
        """Refuse what cannot be the names of new requests.

        Raises:
            ValueError: one is not a string, or an unfinished request has it.
        """
        for request_id in request_ids:
            check_request_id(request_id)
            if request_id in self._requests:
                raise ValueError(f"request_id {request_id!r} is in use by an unfinished request")

    async def chat(
        self,
        messages: Messages,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        lora_request: LoRARequest | None = None,
        **options: Unpack[ChatSettings],
    ) -> AsyncDeltas:
        """As `AsyncEngineApi.chat`."""
        [prompt] = await self.encode_chats([messages], ChatOptions(**options))
        answer = self.generate(
            prompt,
            whole_answer(sampling_params),
            request_id=request_id,
            priority=priority,
            lora_request=lora_request,
        )
        async with aclosing(answer) as deltas:
            async for delta in deltas:
                yield delta

    @overload
    async def score(  # type: ignore[overload-overlap]
        self, prompts: Prompt, *, lora_request: LoRARequest | None = None
    ) -> Scores: ...

    @overload
    async def score(
        self, prompts: Sequence[Prompt], *, lora_request: LoRARequest | None = None
    ) -> list[Scores]: ...

    async def score(
        self, prompts: Prompt | Sequence[Prompt], *, lora_request: LoRARequest | None = None
    ) -> Scores | list[Scores]:
        """As `EngineApi.score`."""
        prompt_list, is_one = split_prompts(prompts)
        scores = await self.score_each(prompt_list, lora_request)
        return scores[0] if is_one else scores

    async def score_each(
        self,
        prompts: Sequence[Prompt],
        lora_request: LoRARequest | None,
        on_done: Callable[[], object] = lambda: None,
    ) -> list[Scores]:
        """Score a list of prompts, as `score`.

        Args:
            on_done: called whenever one is done.
        """
        return await self._ask_each("score", await self.encode(prompts), lora_request, on_done)

    async def embed(
        self, prompts: Prompts, *, lora_request: LoRARequest | None = None
    ) -> list[EmbeddingRequestOutput]:
        """As `EngineApi.embed`."""
        return await self.embed_each(prompt_list_of(prompts), lora_request)

    async def embed_each(
        self,
        prompts: Sequence[Prompt],
        lora_request: LoRARequest | None,
        on_done: Callable[[], object] = lambda: None,
    ) -> list[EmbeddingRequestOutput]:
        """Embed a list of prompts, as `embed`.

        Args:
            on_done: called whenever one is done.
        """
        token_ids = await self.encode(prompts)
        embeddings = await self._ask_each("embed", token_ids, lora_request, on_done)
        return embedding_outputs(prompts, token_ids, embeddings)

    async def _ask_each(
        self,
        method: str,
        prompts: Sequence[list[int]],
        lora_request: LoRARequest | None,
        on_done: Callable[[], object],
    ) -> list[Any]:
        check_adapter(lora_request)

        async def ask(token_ids: list[int]) -> Any:
            answer = await self._placement.ask(method, token_ids, lora_request)
            on_done()
            return answer

        return await together(ask, prompts, self.max_num_requests)

    async def get_tokenizer(self) -> PreTrainedTokenizerBase:
        """As `EngineApi.get_tokenizer`."""
        self._placement.check()
        if self._tokenizer is None:
            self._tokenizer = await self._placement.ask("get_tokenizer")
        return self._tokenizer

    async def encode(
        self, prompts: Sequence[Prompt], sampling_params: Sequence[SamplingParams] = ()
    ) -> list[list[int]]:
        """Tokenize prompts, and check them together with parameters.

        Raises:
            ValueError: as `EngineApi.generate`.
        """
        token_ids: list[list[int]] = await self._placement.ask(
            "encode", list(prompts), list(sampling_params)
        )
        return token_ids

    async def encode_chats(
        self, conversations: Sequence[Messages], options: ChatOptions = USUAL
    ) -> list[list[int]]:
        """Tokenize conversations in the model's chat template.

        Raises:
            ValueError: as `EngineApi.chat`.
        """
        token_ids: list[list[int]] = await self._placement.ask(
            "encode_chats", list(conversations), options
        )
        return token_ids

    async def abort(self, request_id: str) -> None:
        """As `EngineApi.abort`."""
        self._placement.check()
        if (request := self._requests.get(request_id)) is not None:
            await request.abort()

    # Streams

    async def open_stream(
        self,
        *,
        num_sink_tokens: int | None = None,
        window_size: int | None = None,
        pin: Prompt | Messages | None = None,
        on_evict: OnEvict | None = None,
        lora_request: LoRARequest | None = None,
        **options: Unpack[WritingSettings],
    ) -> AsyncPoolStream:
        """As `EngineApi.open_stream`, on the replica where the fewest live."""
        opening = {
            "num_sink_tokens": num_sink_tokens,
            "window_size": window_size,
            "pin": pin,
            "lora_request": lora_request,
        }
        return await self._open(opening | WritingOptions(**options).given, None, on_evict)

    async def load_stream(
        self,
        source: FilePath | bytes,
        *,
        on_evict: OnEvict | None = None,
        lora_request: LoRARequest | None = None,
    ) -> AsyncPoolStream:
        """As `EngineApi.load_stream`."""
        if not isinstance(source, bytes):
            source = str(Path(os.fspath(source)).expanduser().resolve())
        return await self._open({"lora_request": lora_request}, source, on_evict)

    async def _open(
        self, options: dict[str, Any], source: str | bytes | None, on_evict: OnEvict | None
    ) -> AsyncPoolStream:
        self._placement.check()
        check_adapter(options["lora_request"])
        stream = AsyncPoolStream(self._placement, options, self._seeds, self, on_evict)
        await stream.open(source)
        return stream

    # Adapters

    async def add_lora(self, lora_request: LoRARequest) -> None:
        """As `EngineApi.add_lora`, on every replica that is ready. Others load it when they first
        need it."""
        check_adapter(lora_request, optional=False)
        await self._placement.ask_all("add_lora", lora_request)

    async def remove_lora(self, lora_id: int) -> bool:
        """As `EngineApi.remove_lora`, on one replica after the other."""
        return any(await self._placement.ask_all("remove_lora", lora_id))

    async def list_loras(self) -> set[int]:
        """As `EngineApi.list_loras`: of any replica."""
        return set().union(*await self._placement.ask_all("list_loras"))

    # Replicas

    @property
    def num_replicas(self) -> int:
        """How many replicas there are to be."""
        return self._placement.replicas.size

    @property
    def max_num_requests(self) -> int:
        """How many requests of one call the pool hands to its replicas at a time."""
        return _REQUESTS_AT_ONCE * self.num_replicas

    async def stats(self) -> PoolStats:
        """As `EngineApi.stats`, with the load of each replica."""
        return await self._placement.stats()

    async def wait_until_ready(self) -> None:
        """Wait until all replicas are ready, for example after one has died."""
        self._placement.check()
        await self._placement.replicas.wait_for_size()

    async def scale_to(self, num_replicas: int, *, drain_seconds: float = 30.0) -> None:
        """Change the number of replicas, and wait until new ones are ready and others gone.

        Args:
            num_replicas: how many there are to be, at least 1.
            drain_seconds: as in `rolling_restart`.

        Raises:
            ValueError: the cluster has no room for so many, or there would be none.
        """
        self._placement.check()
        num_replicas = as_int("num_replicas", num_replicas, 1)
        await self._placement.replicas.resize(num_replicas, drain_seconds)

    async def rolling_restart(self, *, drain_seconds: float = 30.0) -> None:
        """Replace one replica after the other.

        Args:
            drain_seconds: how long requests and turns may take to end, in seconds. Those that take
                longer go on with another replica, as if theirs had died.
        """
        self._placement.check()
        await self._placement.replicas.restart(drain_seconds)
