"""The two ways into a pool that `benchmarks.disconnects` measures, and what guests do there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from benchmarks import bench_pool
from paged_stream import SamplingParams
from paged_stream.pool.async_ray_llm import AsyncRayLLM

LONG_PROMPT = [(5 * i) % 256 for i in range(4000)]  # takes many steps
_FIELDS = {"temperature": 0.0, "ignore_eos": True}


def prompt_of(number: int) -> list[int]:
    return [(11 * number + 3 * i) % 256 for i in range(8)]


class PoolService:
    """The coroutines of an `AsyncRayLLM`."""

    visits = ["generate", "turn", "drop", "append", "score", "score stream", "open", "fork", "save"]

    def __init__(self, pool: AsyncRayLLM) -> None:
        self._pool = pool

    async def open(self) -> Any:
        return await self._pool.open_stream()

    async def turn(self, stream: Any, prompt: list[int]) -> list[int]:
        tokens: list[int] = []
        async for delta in stream.complete(prompt, bench_pool.PARAMS):
            tokens += delta.delta_token_ids
        return tokens

    async def visit(self, kind: str, number: int, max_tokens: int) -> None:
        params = replace(bench_pool.PARAMS, max_tokens=max_tokens)
        prompt = prompt_of(number)
        if kind == "generate":
            await _read(self._pool.generate(prompt, params))
        elif kind == "score":
            await self._pool.score(LONG_PROMPT)
        elif kind == "open":
            async with await self._pool.open_stream(pin=LONG_PROMPT[:16]) as stream:
                await stream.append(LONG_PROMPT)
        else:
            async with await self._pool.open_stream() as stream:
                await stream.append(prompt)
                await self._visit_stream(kind, stream, params)

    async def _visit_stream(self, kind: str, stream: Any, params: SamplingParams) -> None:
        if kind == "turn":
            await _read(stream.generate(params))
        elif kind == "drop":  # begins a turn that nobody reads, and lets the collector find it
            async for _ in stream.generate(params):
                break
        elif kind == "append":
            await stream.append(LONG_PROMPT)
        elif kind == "score stream":
            await stream.score(LONG_PROMPT)
        elif kind == "fork":
            async with await stream.fork() as fork:
                await _read(fork.generate(params))
        else:
            async with await self._pool.load_stream(await stream.save_bytes()) as copy:
                await _read(copy.generate(params))

    async def counts(self) -> dict[str, int]:
        stats = await self._pool.stats()
        running = stats.num_running + stats.num_waiting + sum(each.load for each in stats.replicas)
        return {"lost": stats.num_lost_replicas, "running": running}


async def _read(deltas: Any) -> None:
    async for _ in deltas:
        pass


class HttpService:
    """The same over HTTP, by clients that hang up when they are cancelled."""

    visits = ["completion", "whole completion", "turn", "whole turn", "append", "open", "fork"]

    def __init__(self, port: int) -> None:
        self._port = port

    async def open(self) -> Any:
        return (await self._ask("POST", "/v1/streams", {}))["id"]

    async def turn(self, stream: Any, prompt: list[int]) -> list[int]:
        body = {"prompt": prompt, "max_tokens": bench_pool.NUM_TOKENS, "stream": True}
        tokens: list[int] = []
        path = f"/v1/streams/{stream}/generate"
        async with aclosing(self._lines("POST", path, body | _FIELDS)) as lines:
            async for line in lines:
                if line.startswith("data: {"):
                    tokens += json.loads(line.removeprefix("data: ")).get("token_ids", [])
        return tokens

    async def visit(self, kind: str, number: int, max_tokens: int) -> None:
        body = {"max_tokens": max_tokens, "stream": not kind.startswith("whole")} | _FIELDS
        if kind.endswith("completion"):
            await self._read("/v1/completions", body | {"prompt": prompt_of(number)})
            return
        opening = {"pin": LONG_PROMPT[:16]} if kind == "open" else {}
        path = f"/v1/streams/{(await self._ask('POST', '/v1/streams', opening))['id']}"
        try:
            if kind.endswith("turn"):
                await self._read(f"{path}/generate", body | {"prompt": prompt_of(number)})
            elif kind == "fork":
                await self._ask("POST", f"{path}/append", {"prompt": prompt_of(number)})
                fork = await self._ask("POST", f"{path}/fork", {})
                await self._ask("DELETE", f"/v1/streams/{fork['id']}")
            else:
                await self._ask("POST", f"{path}/append", {"prompt": LONG_PROMPT})
        finally:
            await self._ask("DELETE", path)

    async def counts(self) -> dict[str, int]:
        counts = {"lost_replicas_total": 0, "load": 0, "running_sequences": 0}
        counts["waiting_sequences"] = 0
        async with aclosing(self._lines("GET", "/metrics")) as lines:
            async for line in lines:
                name = line.partition(" ")[0].partition("{")[0].removeprefix("paged_stream_")
                if name in counts:
                    counts[name] += int(float(line.rpartition(" ")[2]))
        lost = counts.pop("lost_replicas_total")
        return {"lost": lost, "running": sum(counts.values())}

    async def _read(self, path: str, body: dict[str, Any]) -> None:
        async with aclosing(self._lines("POST", path, body)) as lines:
            async for _ in lines:
                pass

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        async with aclosing(self._lines(method, path, body)) as lines:
            async for line in lines:
                if line.startswith("{"):
                    return json.loads(line)
        raise RuntimeError(f"no answer to {method} {path}")

    async def _lines(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> AsyncGenerator[str, None]:
        """The lines of an answer. Closing this hangs up."""
        content = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
            f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 24)
        try:
            writer.write(head.encode() + content)
            status = (await reader.readline()).decode().split(" ")[1:2]
            async for line in reader:
                if status != ["200"]:
                    raise RuntimeError(f"status {status}: {line!r}")
                yield line.decode().strip()
        finally:
            writer.transport.abort()
