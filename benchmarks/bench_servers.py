"""How fast does the service answer, next to the servers of vLLM and llama.cpp?

    python -m benchmarks.bench_servers --vllm-python ~/v/bin/python --llama-python ~/l/bin/python

Every server is a process of its own with the same number of threads, ready before anything is
measured; they take turns, and the others are stopped meanwhile. Each stream asks for a completion
of the same length with a prompt of its own, and all ask at once. Reported: tokens per second of all
streams, from the first request to the last token; how long a first token takes, and how long it is
from one event to the next. vLLM runs the same bfloat16 weights. llama.cpp's Python server runs the
GGUF file that these were converted from, and one request at a time, so it is asked by one stream
only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.bench_peers import MODEL, SETTLE_SECONDS, can_import
from benchmarks.float_folder import float_folder
from benchmarks.harness import add_results_option, parser, write_results
from benchmarks.texts import austen
from paged_stream.models.formats.resolve import embedded_gguf

READY_SECONDS = 300  # until a server answers


@dataclass(frozen=True, slots=True)
class Reply:
    """When a stream asked, and when each event with tokens came."""

    asked: float
    events: Sequence[float]


async def ask(port: int, body: dict[str, Any]) -> Reply:
    """Read a streamed completion to its end."""
    content = json.dumps(body | {"stream": True}).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    asked, events, last = time.perf_counter(), [], b""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + content)
    async for line in reader:
        if line.startswith(b"data: "):
            last = line.removeprefix(b"data: ").strip()
            events.append(time.perf_counter())
        elif not events:
            last += line
    writer.close()
    if last != b"[DONE]":
        raise RuntimeError(f"port {port} answered {last[-500:].decode(errors='replace')}")
    return Reply(asked, events[:-1])


class Server:
    """A server that answers; it is stopped but for the time in which it is asked."""

    def __init__(self, command: list[str], port: int, **environment: str) -> None:
        self.port = port
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [*command, "--port", str(port)],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
        )
        self._wait_until_ready()
        self._signal(signal.SIGSTOP)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        body = {"prompt": "Once upon a time", "max_tokens": 2}
        while True:
            with suppress(OSError):
                asyncio.run(ask(self.port, body))
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._log.seek(0)
                raise RuntimeError(f"no server:\n{self._log.read()[-3000:]}")
            time.sleep(0.5)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def run(self, prompts: Sequence[str], tokens: int) -> tuple[float, list[Reply]]:
        """Seconds, and what each stream saw."""

        async def ask_all() -> list[Reply]:
            bodies = [
                {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
                for prompt in prompts
            ]
            return await asyncio.gather(*(ask(self.port, body) for body in bodies))

        self._signal(signal.SIGCONT)
        time.sleep(SETTLE_SECONDS)
        begun = time.perf_counter()
        replies = asyncio.run(ask_all())
        seconds = time.perf_counter() - begun
        self._signal(signal.SIGSTOP)
        return seconds, replies

    def close(self) -> None:
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
        self._log.close()


def quantiles(values: Sequence[float]) -> tuple[float, float]:
    """The median, and what 99 of 100 do not exceed."""
    ordered = sorted(values)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]


def row_of(name: str, streams: int, tokens: int, runs: list[tuple[float, list[Reply]]]) -> dict:
    replies = [reply for _, of_run in runs for reply in of_run]
    first = quantiles([reply.events[0] - reply.asked for reply in replies])
    gaps = [b - a for r in replies for a, b in zip(r.events, r.events[1:], strict=False)]
    between = quantiles(gaps)
    seconds = statistics.median(seconds for seconds, _ in runs)
    row = {
        "server": name,
        "streams": streams,
        "tokens": tokens,
        "tokens_per_second": streams * tokens / seconds,
        "first_token_seconds": first[0],
        "first_token_seconds_p99": first[1],
        "between_seconds": between[0],
        "between_seconds_p99": between[1],
    }
    print(
        f"{name:<26}{streams:>4} streams{row['tokens_per_second']:>9.1f} tok/s   first token"
        f"{1e3 * first[0]:>8.0f} ms, p99{1e3 * first[1]:>8.0f}   between"
        f"{1e3 * between[0]:>7.1f} ms, p99{1e3 * between[1]:>7.1f}",
        flush=True,
    )
    return row


def measure(servers: dict[str, Server], streams: int, args: argparse.Namespace) -> list[dict]:
    """Rows of servers that take turns; the first run of each warms up."""
    novel = austen("persuasion")
    prompts = [novel[2_000 * n :][: args.prompt] for n in range(1, 1 + streams)]
    runs: dict[str, list[tuple[float, list[Reply]]]] = {name: [] for name in servers}
    for number in range(1 + args.repeats):
        for name, server in servers.items():
            run = server.run(prompts, args.tokens)
            if number:
                runs[name].append(run)
    return [row_of(name, streams, args.tokens, of_server) for name, of_server in runs.items()]


def same_weights(args: argparse.Namespace, threads: int) -> list[dict]:
    folder, most = str(float_folder(MODEL)), str(max(args.streams))
    ours = [sys.executable, "-m", "paged_stream", "serve", "--model", folder]
    ours += ["--dtype", "bfloat16", "--max-num-seqs", most, "--num-threads", str(threads)]
    ours += ["--window-size", "1024", "--no-enable-prefix-caching"]
    with ExitStack() as stack:
        servers = {"paged_stream": Server(ours, args.port)}
        stack.callback(servers["paged_stream"].close)
        if can_import(args.vllm_python, "vllm"):
            theirs = [args.vllm_python, "-m", "vllm.entrypoints.openai.api_server"]
            theirs += ["--model", folder, "--dtype", "bfloat16", "--max-num-seqs", most]
            theirs += ["--max-model-len", "4096", "--no-enable-prefix-caching"]
            environment = {
                "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, range(threads))),
                "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
                "VLLM_LOGGING_LEVEL": "WARNING",
            }
            servers["vLLM"] = Server(theirs, args.port + 1, **environment)
            stack.callback(servers["vLLM"].close)
        return [row for streams in args.streams for row in measure(servers, streams, args)]


def same_file(args: argparse.Namespace, threads: int) -> list[dict]:
    if not can_import(args.llama_python, "llama_cpp.server"):
        return []
    file = str(embedded_gguf())
    ours = [sys.executable, "-m", "paged_stream", "serve", "--model", file]
    ours += ["--num-threads", str(threads), "--no-enable-prefix-caching"]
    theirs = [args.llama_python, "-m", "llama_cpp.server", "--model", file, "--n_ctx", "4096"]
    theirs += ["--n_threads", str(threads), "--n_threads_batch", str(threads)]
    with ExitStack() as stack:
        servers = {}
        for number, (name, command) in enumerate(
            {"paged_stream": ours, "llama.cpp": theirs}.items()
        ):
            servers[f"{name}, the file"] = Server(command, args.port + 2 + number)
            stack.callback(servers[f"{name}, the file"].close)
        return measure(servers, 1, args)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--vllm-python", default=sys.executable, metavar="PATH")
    arguments.add_argument("--llama-python", default=sys.executable, metavar="PATH")
    arguments.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64])
    arguments.add_argument("--prompt", type=int, default=300, help="characters of each prompt")
    arguments.add_argument("--tokens", type=int, default=64, help="to generate, of each stream")
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--port", type=int, default=8133)
    add_results_option(arguments)
    args = arguments.parse_args()
    threads = torch.get_num_threads()
    rows = same_weights(args, threads) + same_file(args, threads)
    write_results("servers", rows, args.results)


if __name__ == "__main__":
    main()
