"""What does HTTP take from an engine?

    python -m benchmarks.bench_serve --streams 16 64 256

First how long ``paged-stream serve`` takes until it is ready, its memory and its processes. Then,
for each number of streamed completions at once: tokens per second over HTTP; tokens per second of
the coroutines of an `AsyncLLMEngine` in a process of its own, beside which this process burns as
much processor time as its clients took over HTTP; and how much processor time HTTP takes per token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from benchmarks.harness import parser, write_results
from paged_stream import AsyncLLMEngine, EngineConfig, SamplingParams
from paged_stream.models.formats.resolve import resolve_model

MODEL = "smollm2-135m-instruct"
PROMPT = "Once upon a time, far away by the sea,"
SETTINGS: dict[str, Any] = {"window_size": 1024, "kv_cache_memory_bytes": 2 << 30}
_SLICE = 0.01  # seconds in which processor time is burned evenly


@contextmanager
def service(model: str, port: int) -> Iterator[tuple[psutil.Process, float]]:
    """A service that is ready, and how many seconds that took."""
    options = {"model": model, "port": port, **SETTINGS}
    words = [word for name, value in options.items() for word in (_flag(name), str(value))]
    begun = time.perf_counter()
    command = [sys.executable, "-m", "paged_stream", "serve", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield psutil.Process(process.pid), time.perf_counter() - begun
        finally:
            process.terminate()


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


async def read_all(port: int, streams: int, tokens: int) -> None:
    """Read completions over HTTP, all at once."""
    body = {"prompt": PROMPT, "max_tokens": tokens, "ignore_eos": True, "stream": True}
    content = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )

    async def read() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + content)
        events = [line async for line in reader if line.startswith(b"data: ")]
        *parts, last = [event.removeprefix(b"data: ").strip() for event in events]
        assert (
            last == b"[DONE]" and json.loads(parts[-1])["choices"][0]["finish_reason"] == "length"
        )
        for part in parts:
            json.loads(part)
        writer.close()

    await asyncio.gather(*(read() for _ in range(streams)))


def over_http(process: psutil.Process, port: int, streams: int, tokens: int) -> dict[str, float]:
    """Seconds, and processor seconds of the service and of its clients."""
    own, theirs, begun = psutil.Process(), cpu_seconds(process), time.perf_counter()
    mine = cpu_seconds(own)
    asyncio.run(read_all(port, streams, tokens))
    return {
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": cpu_seconds(process) - theirs,
        "client_cpu_seconds": cpu_seconds(own) - mine,
    }


async def in_process(model: str, streams: int, tokens: int) -> dict[str, float]:
    """The same with the coroutines of an engine; says on stdout when it begins."""
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    async with AsyncLLMEngine(EngineConfig(model=model, **SETTINGS)) as engine:

        async def read() -> None:
            async for _ in engine.generate(PROMPT, params):
                pass

        await read()
        own = psutil.Process()
        print("begins", flush=True)
        begun, spent = time.perf_counter(), cpu_seconds(own)
        await asyncio.gather(*(read() for _ in range(streams)))
        return {
            "seconds": time.perf_counter() - begun,
            "cpu_seconds": cpu_seconds(own) - spent,
        }


def beside(model: str, streams: int, tokens: int, share: float) -> dict[str, float]:
    """`in_process`, beside which this process burns a share of one processor."""
    words = ["--model", model, "--streams", str(streams), "--tokens", str(tokens), "--in-process"]
    command = [sys.executable, "-m", "benchmarks.bench_serve", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while process.poll() is None:
            begun = time.perf_counter()
            while time.perf_counter() - begun < share * _SLICE:
                pass
            time.sleep((1 - share) * _SLICE)
        result: dict[str, float] = json.loads(process.stdout.read())
        return result


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    with service(args.model, args.port) as (process, ready):
        memory, processes = process.memory_info().rss, 1 + len(process.children(recursive=True))
        print(f"ready in {ready:.1f} s, {memory / 2**20:.0f} MiB, {processes} process")
        asyncio.run(read_all(args.port, 1, args.tokens))
        served = [over_http(process, args.port, each, args.tokens) for each in args.streams]
    rows = []
    for streams, http in zip(args.streams, served, strict=True):
        share = min(1.0, http["client_cpu_seconds"] / http["seconds"])
        here = beside(args.model, streams, args.tokens, share)
        count = streams * args.tokens
        ratio = here["seconds"] / http["seconds"]
        extra = (http["cpu_seconds"] - here["cpu_seconds"]) / count
        print(
            f"{streams:4d} streams: {count / http['seconds']:.0f} tok/s over HTTP, "
            f"{count / here['seconds']:.0f} in process, {ratio:.2f} of it; "
            f"{1e6 * extra:.0f} us of processor time per token for HTTP"
        )
        row = {"streams": streams, "tokens": args.tokens, "ratio": ratio, "extra_seconds": extra}
        start = {"ready_seconds": ready, "rss": memory, "processes": processes}
        rows.append(row | start | {"http": http, "in_process": here})
    return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", default=MODEL)
    arguments.add_argument("--streams", type=int, nargs="+", default=[16, 64, 256])
    arguments.add_argument("--tokens", type=int, default=64, help="of each stream")
    arguments.add_argument("--port", type=int, default=8123)
    arguments.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    args = arguments.parse_args()
    resolve_model(args.model)  # a model that is to be converted first is converted now
    if args.in_process:
        [streams] = args.streams
        print(json.dumps(asyncio.run(in_process(args.model, streams, args.tokens))))
    else:
        write_results("serve", measure(args))


if __name__ == "__main__":
    main()
