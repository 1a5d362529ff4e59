"""Engines behind one call, ``run(prompts, new_tokens)``, here or in another interpreter's worker.

As a module it gives the classes. As a script, ``PYTHON -m benchmarks.engines NAME SETTINGS``, it
loads one engine and then answers a JSON command per line on stdin with a JSON line on stdout:
``{"prompts": [[1, 2]], "new_tokens": 8}`` with ``{"seconds": 0.3, "first_token_seconds": 0.1}``. It
imports nothing of this project but for the engine itself, so any interpreter that has the engine
can run it.

All generate greedily, without stopping early, and compute every prompt anew. `run` returns the
`time.perf_counter` at which every prompt had its first token, or ``None`` if the engine does not
tell (`tells_first_token`).

With ``keep_prompts`` an engine keeps what it has computed of a prompt: vLLM in its prefix cache,
this one in streams (``paged_stream_streams``), whose windows the prompts fill.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from paged_stream import AsyncStream


class Engine(Protocol):
    """What they have in common; ``module`` is the package that has the version."""

    module: str
    tells_first_token: bool

    def __init__(self, model: str, **settings: Any) -> None: ...

    def run(self, prompts: list[list[int]], new_tokens: int) -> float | None: ...


def precision(quantization: str, dtype: str) -> dict[str, Any]:
    """What `EngineConfig` takes; ``"none"`` is weights in the dtype, whatever the file has."""
    if quantization == "none":
        return {"dtype": dtype, "quantization": None}
    # A file runs in its own blocks unless a dtype is asked for.
    return {"dtype": "auto" if quantization == "auto" else dtype, "quantization": quantization}


class PagedStream:
    module = "paged_stream"
    tells_first_token = True

    def __init__(
        self,
        model: str,
        *,
        dtype: str,
        threads: int,
        max_num_seqs: int,
        quantization: str = "none",
        **unused: Any,
    ) -> None:
        from paged_stream import EngineConfig, LLMEngine

        self.engine = LLMEngine(
            EngineConfig(
                model=model,
                max_num_seqs=max_num_seqs,
                num_threads=threads,
                enable_prefix_caching=False,
                num_decode_steps=8,  # as LLM has it
                **precision(quantization, dtype),
            )
        )

    def run(self, prompts: list[list[int]], new_tokens: int) -> float:
        from paged_stream import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
        for index, prompt in enumerate(prompts):
            self.engine.add_request(str(index), prompt, params)
        begun: set[str] = set()
        num_tokens = 0
        while self.engine.has_unfinished_requests():
            for delta in self.engine.step():
                num_tokens += len(delta.delta_token_ids)
                if delta.request_id not in begun:
                    begun.add(delta.request_id)
                    first_token = time.perf_counter()
        assert num_tokens == len(prompts) * new_tokens
        return first_token


class PagedStreams:
    """Streams that stay open: a set of prompts is computed once, then each run is a turn of theirs.

    A prompt is as long as what its stream sees, so every new token lets go of an old one.
    """

    module = "paged_stream"
    tells_first_token = False

    def __init__(
        self,
        model: str,
        *,
        dtype: str,
        threads: int,
        max_num_seqs: int,
        kv_cache_dtype: str = "auto",
        **unused: Any,
    ) -> None:
        from paged_stream import AsyncLLMEngine, EngineConfig

        self._loop = asyncio.new_event_loop()
        config = EngineConfig(
            model=model,
            max_num_seqs=max_num_seqs,
            num_threads=threads,
            num_decode_steps=8,  # as LLM has it
            enable_prefix_caching=False,
            **{"kv_cache_dtype": kv_cache_dtype, **precision("none", dtype)},
        )
        self._engine = AsyncLLMEngine(config)
        self._prompts: list[list[int]] = []
        self._streams: list[AsyncStream] = []

    def run(self, prompts: list[list[int]], new_tokens: int) -> None:
        self._loop.run_until_complete(self._run(prompts, new_tokens))

    async def _run(self, prompts: list[list[int]], new_tokens: int) -> None:
        if prompts != self._prompts:
            for stream in self._streams:
                await stream.close()
            self._prompts, self._streams = prompts, []
            for prompt in prompts:
                window = len(prompt) - self._engine.config.num_sink_tokens
                self._streams.append(await self._engine.open_stream(window_size=window))
                await self._streams[-1].append(prompt)
        counts = await asyncio.gather(*(self._turn(stream, new_tokens) for stream in self._streams))
        assert counts == [new_tokens] * len(prompts)

    @staticmethod
    async def _turn(stream: AsyncStream, new_tokens: int) -> int:
        from paged_stream import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
        return sum([len(delta.delta_token_ids) async for delta in stream.generate(params)])


class Transformers:
    module = "transformers"
    tells_first_token = False

    def __init__(self, model: str, *, dtype: str, threads: int, **unused: Any) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))

    def run(self, prompts: list[list[int]], new_tokens: int) -> None:
        import torch

        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=new_tokens,
                max_new_tokens=new_tokens,
                pad_token_id=0,
            )
        assert out.shape[1] == ids.shape[1] + new_tokens


class VLLM:
    module = "vllm"
    tells_first_token = False

    def __init__(
        self,
        model: str,
        *,
        dtype: str,
        threads: int,
        max_num_seqs: int,
        max_model_len: int,
        keep_prompts: bool = False,
        **unused: Any,
    ) -> None:
        # vLLM computes in a process that it starts itself, with the allocator and the OpenMP
        # library that it wants, so these are set before.
        os.environ |= {
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, range(threads))),
            "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
            "VLLM_LOGGING_LEVEL": "WARNING",
        }
        from vllm import LLM

        self.llm = LLM(
            model,
            dtype=dtype,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            enable_prefix_caching=keep_prompts,
        )

    def run(self, prompts: list[list[int]], new_tokens: int) -> None:
        from vllm import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self.llm.generate(inputs, params, use_tqdm=False)
        assert all(len(output.outputs[0].token_ids) == new_tokens for output in outputs)


class LlamaCpp:
    module = "llama_cpp"
    tells_first_token = True

    def __init__(
        self, model: str, *, threads: int, max_model_len: int, flash_attn: bool, **unused: Any
    ) -> None:
        from llama_cpp import Llama

        self.llama = Llama(
            model,
            n_ctx=max_model_len,
            n_threads=threads,
            n_threads_batch=threads,
            flash_attn=flash_attn,
            verbose=False,
        )

    def run(self, prompts: list[list[int]], new_tokens: int) -> float:
        (tokens,) = prompts
        self.llama.reset()
        for index in range(new_tokens):
            self.llama.eval(tokens)
            tokens = [self.llama.sample(temp=0.0)]
            if index == 0:
                first_token = time.perf_counter()
        return first_token


ENGINES: dict[str, type[Engine]] = {
    "paged_stream": PagedStream,
    "paged_stream_streams": PagedStreams,
    "transformers": Transformers,
    "vllm": VLLM,
    "llama_cpp": LlamaCpp,
}


def package_version(module: str) -> str:
    return getattr(sys.modules[module], "__version__", "unknown")


def serve(name: str, settings: dict[str, Any]) -> None:
    """Load an engine and run what comes, one command at a time, until stdin ends."""
    # Whatever a library prints goes to stderr: stdout carries answers only.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine = ENGINES[name](**settings)
    answer: dict[str, Any] = {"version": package_version(engine.module)}
    print(json.dumps(answer), file=answers, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        start = time.perf_counter()
        first_token = engine.run(command["prompts"], command["new_tokens"])
        answer = {"seconds": time.perf_counter() - start}
        if first_token is not None:
            answer["first_token_seconds"] = first_token - start
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]))
