"""Does every stream of a service go on, with the right history, when a worker is killed?

    python -m benchmarks.bench_pool

Streams of a tiny random model are spread over two replicas and take turns, all at once. In the
middle the process of one replica is killed with SIGKILL. Every turn is compared with that of a
stream that nothing happened to, in one engine. Reported: streams that went on, answers from another
history (there must be none), and what was computed again. Times are no part of it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.bench_stream import tiny_model
from benchmarks.harness import parser, write_results
from paged_stream import EngineConfig, LLMEngine, SamplingParams
from paged_stream.pool.async_ray_llm import AsyncRayLLM

SETTINGS: dict[str, Any] = {
    "window_size": 64,
    "block_size": 16,
    "dtype": "float32",
    "max_num_batched_tokens": 256,
    "kv_cache_memory_bytes": 16 << 20,
}
NUM_TOKENS = 12  # of an answer
PARAMS = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)


def turn_of(stream: int, turn: int) -> list[int]:
    """What is said in a turn: no two streams say the same."""
    return [(7 * stream + 31 * turn + 13 * i) % 256 for i in range(5 + stream % 4)]


def undisturbed(folder: str, num_streams: int, num_turns: int) -> list[list[list[int]]]:
    """The tokens of every turn of every stream."""
    engine = LLMEngine(EngineConfig(model=folder, **SETTINGS))
    answers = []
    for number in range(num_streams):
        with engine.open_stream() as stream:
            turns = []
            for turn in range(num_turns):
                stream.append(turn_of(number, turn))
                turns.append([t for d in stream.generate(PARAMS) for t in d.delta_token_ids])
        answers.append(turns)
    return answers


class Service:
    """Streams that take turns, of which some are on a worker that is killed."""

    def __init__(self, pool: AsyncRayLLM, num_streams: int, num_turns: int) -> None:
        self.pool = pool
        self.num_turns = num_turns
        self.answers: list[list[list[int]]] = [[] for _ in range(num_streams)]
        self.num_on_lost_replica = 0
        self._num_left = num_streams * num_turns // 2  # turns before the kill

    async def run(self) -> None:
        await asyncio.gather(*(self._live(number) for number in range(len(self.answers))))

    async def _live(self, number: int) -> None:
        stream = await self.pool.open_stream()
        for turn in range(self.num_turns):
            await stream.append(turn_of(number, turn))
            tokens: list[int] = []
            async for delta in stream.generate(PARAMS):
                tokens += delta.delta_token_ids
            self.answers[number].append(tokens)
            self._num_left -= 1
            if self._num_left == 0:
                await self._kill()

    async def _kill(self) -> None:
        replica = (await self.pool.stats()).replicas[0]
        self.num_on_lost_replica = replica.num_streams
        os.kill(replica.pid, signal.SIGKILL)


async def measure(folder: str, num_streams: int, num_turns: int, save_every: int) -> dict[str, Any]:
    """Run the streams in a pool, kill a worker, and count what came of it."""
    expected = undisturbed(folder, num_streams, num_turns)
    async with AsyncRayLLM(
        folder, num_replicas=2, save_every_tokens=save_every, **SETTINGS
    ) as pool:
        service = Service(pool, num_streams, num_turns)
        await service.run()
        stats = await pool.stats()
    pairs = list(zip(service.answers, expected, strict=True))
    return {
        "streams": num_streams,
        "turns": num_turns,
        "save_every_tokens": save_every,
        "streams_on_the_killed_replica": service.num_on_lost_replica,
        "streams_that_went_on": sum(len(turns) == num_turns for turns in service.answers),
        "streams_with_a_wrong_answer": sum(answers != right for answers, right in pairs),
        "replicas_lost": stats.num_lost_replicas,
        "streams_restored": stats.num_restored_streams,
        "tokens_replayed": stats.num_replayed_tokens,
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--streams", type=int, default=100)
    arguments.add_argument("--turns", type=int, default=8)
    arguments.add_argument("--save-every-tokens", type=int, default=64)
    args = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tiny_model(Path(folder))
        counts = asyncio.run(measure(folder, args.streams, args.turns, args.save_every_tokens))
    for name, value in counts.items():
        print(f"{name.replace('_', ' '):32}{value:>8,}")
    write_results("pool", [counts])
    if counts["streams_with_a_wrong_answer"]:
        raise SystemExit("a stream has answered from a wrong history")


if __name__ == "__main__":
    main()
