"""A client of everything that is public, as a user would write it with types. It is not run: type
checkers read it, whole and with mistakes planted in it (`tests/test_typing.py`)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from paged_stream import (
    LLM,
    AsyncEngineApi,
    AsyncLLMEngine,
    AsyncRayLLM,
    AsyncStreamApi,
    CompletionOutput,
    EmbeddingRequestOutput,
    EngineApi,
    EngineConfig,
    EngineStats,
    EngineStoppedError,
    LLMEngine,
    Prompt,
    RayLLM,
    RequestDelta,
    RequestOutput,
    SamplingParams,
    Stream,
    StreamApi,
    StreamStats,
    StructuredOutputsParams,
    TextPrompt,
    TokenLogprob,
    TokensPrompt,
    VisibleText,
    __version__,
)

GREEDY = SamplingParams(temperature=0.0, max_tokens=64, stop=["\n"], logprobs=2)


def without_zero(token_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
    logits[0] = -1e9
    return logits


SHAPED = SamplingParams(
    logit_bias={5: -1.0},
    bad_words=["no"],
    allowed_token_ids=[5, 6],
    logits_processors=[without_zero],
    truncate_prompt_tokens=-1,
)
STRUCTURED = [
    SamplingParams(structured_outputs=StructuredOutputsParams(json={"type": "object"})),
    SamplingParams(structured_outputs=StructuredOutputsParams(json='{"type": "object"}')),
    SamplingParams(structured_outputs=StructuredOutputsParams(choice=["yes", "no"])),
    SamplingParams(structured_outputs=StructuredOutputsParams(regex="[0-9]+")),
    SamplingParams(structured_outputs=StructuredOutputsParams(grammar='start: "a"')),
    SamplingParams(structured_outputs=StructuredOutputsParams(json_object=True)),
]


def offline(folder: Path) -> list[str]:
    with LLM(str(folder), window_size=1024, num_sink_tokens=4, dtype=torch.bfloat16) as llm:
        outputs: list[RequestOutput] = llm.generate(["one", "two"], GREEDY, use_tqdm=False)
        llm.generate([1, 2, 3])
        llm.generate(np.array([1, 2, 3]))
        llm.generate([{"prompt": "one"}, {"prompt_token_ids": [1, 2], "prompt": "two"}])
        text: TextPrompt = {"prompt": "three"}
        token_ids: TokensPrompt = {"prompt_token_ids": np.array([1, 2, 3])}
        llm.generate([text, token_ids])
        several: list[Prompt] = [torch.tensor([1, 2]), "text", [3], text]
        llm.generate(several, [GREEDY, GREEDY, GREEDY])
        llm.generate(["a"] * len(STRUCTURED), STRUCTURED)
        llm.chat([{"role": "user", "content": "hello"}], SHAPED)
        question = {"role": "user", "content": [{"type": "text", "text": "hello"}]}
        llm.chat([question], chat_template=folder / "a.jinja", tools=[{"type": "function"}])
        scores: list[float | None] = llm.score("a text of any length")
        of_each: list[list[float | None]] = llm.score(["one", text, [1, 2, 3]])
        vectors: list[EmbeddingRequestOutput] = llm.embed(["one", text, [1, 2, 3]])
        vector: list[float] = vectors[0].outputs.embedding
        words: list[str] = llm.get_tokenizer().tokenize(f"a text {vector}")
        known = [score for score in [*scores, *of_each[0]] if score is not None and words]
        return [f"{sum(known)} {text_of(output)}" for output in outputs]


def text_of(output: RequestOutput) -> str:
    first: CompletionOutput = output.outputs[0]
    reason: Literal["stop", "length", "abort", "error"] | None = first.finish_reason
    why: int | str | None = first.stop_reason
    entries: list[TokenLogprob] = first.logprobs or []
    likely = [entry.logprob for entry in entries if entry.top]
    waited: float | None = output.metrics.time_in_queue
    print(waited, output.metrics.arrival_time)
    return f"{output.prompt} {first.text} {first.token_ids} {reason} {why} {likely}"


def step_by_step(config: EngineConfig) -> Iterator[RequestDelta]:
    engine = LLMEngine(config)
    engine.add_request("mine", "a prompt", GREEDY, priority=1)
    while engine.has_unfinished_requests():
        yield from engine.step()
    engine.abort_request("mine")
    engine.close()


def live(engine: EngineApi, path: Path) -> int:
    told: list[tuple[int, int]] = []
    with engine.open_stream(
        pin="rules", tools=[], on_evict=lambda a, b: told.append((a, b))
    ) as stream:
        stream.append(torch.tensor([1, 2, 3]))
        with contextlib.closing(stream.generate(GREEDY)) as deltas:
            for delta in deltas:
                print(delta.delta_text, delta.delta_token_ids, delta.finished)
        thoughtless = {"enable_thinking": False}
        first = next(stream.chat("and then?", chat_template_kwargs=thoughtless), None)
        looked_back: bool = first is not None and first.template_rewrote
        with contextlib.closing(stream.chat("what else?", on_rewrite="cut")) as deltas:
            print(looked_back, next(deltas).delta_text)
        branch: StreamApi = stream.fork()
        branch.rewind(stream.position - 1)
        branch.cut(3, 5)
        stream.save(path)
        stats: StreamStats = stream.stats()
        visible: VisibleText = stream.visible()
        missing: Literal["evicted", "cut"] | None = visible.runs[0].missing
        where: Literal["cache", "host", "disk", "none"] = stats.location
        print(
            missing,
            visible.token_ids,
            where,
            first,
            stream.score("more"),
            branch.is_generating,
            stream.save_bytes()[:4],
        )
    with contextlib.suppress(EngineStoppedError, ValueError):
        engine.load_stream(path).close()
    overall: EngineStats = engine.stats()
    return overall.num_blocks + overall.kv_resident_bytes


async def serve(engine: AsyncEngineApi) -> AsyncIterator[str]:
    async for delta in engine.generate("a prompt", GREEDY, request_id="mine"):
        yield delta.delta_text
    await engine.abort("mine")
    of_each: list[list[float | None]] = await engine.score(["one", "two"])
    of_one: list[float | None] = await engine.score({"prompt": "one"})
    [embedded] = await engine.embed("one")
    print(of_each, of_one, embedded.outputs.embedding, len(await engine.get_tokenizer()))
    async with await engine.open_stream(window_size=512) as stream:
        await talk(stream)


async def talk(stream: AsyncStreamApi) -> None:
    await stream.append("text")
    async for delta in stream.generate(GREEDY):
        print(delta.finish_reason, delta.index, delta.metrics.first_token_time)
    said = [{"role": "assistant", "content": "Well, "}]
    async for delta in stream.chat(said, add_generation_prompt=False, continue_final_message=True):
        print(delta.delta_text)
    await stream.end_turn()
    await (await stream.fork()).close()


async def everywhere(folder: Path) -> None:
    config = EngineConfig(model=str(folder), kv_cache_memory_bytes="4GiB", seed=1)
    async with AsyncLLMEngine(config) as engine:
        print([text async for text in serve(engine)])
    async with AsyncRayLLM(str(folder), num_replicas=2, window_size=1024) as pool:
        print([text async for text in serve(pool)])
    with RayLLM(str(folder), num_replicas=2) as many, LLM(str(folder)) as one:
        print(live(many, folder / "a.stream"), live(one, folder / "b.stream"), __version__)
        stream: Stream = one.open_stream()
        print(stream)


if __name__ == "__main__":
    print(offline(Path("model")), list(step_by_step(EngineConfig(model="model"))))
    asyncio.run(everywhere(Path("model")))
