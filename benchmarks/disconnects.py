"""Do clients that leave in the middle harm anybody else?

    python -m benchmarks.disconnects
    python -m benchmarks.disconnects --through http --guests 16 --visits 400

Two replicas of a tiny random model serve neighbours and guests. Neighbours talk to streams of their
own, and read every answer to its end. Guests come for a random time. In one kind of phase they ask
for as much as they can read in this time, and stay to the end; in the other they ask for more, and
are cut off. Both kinds cost about the same, so what differs is what the leaving does.

Reported: replicas lost (there must be none), answers of neighbours that differ from those of one
engine to which nothing happened (none), requests that still run a while after everybody has left
(none), and how long a turn of a neighbour takes.
"""

from __future__ import annotations

import asyncio
import random
import socket
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from benchmarks import bench_pool
from benchmarks.bench_stream import tiny_model
from benchmarks.disconnects_services import HttpService, PoolService
from benchmarks.harness import parser, write_results
from paged_stream.pool.async_ray_llm import AsyncRayLLM
from paged_stream.serve.ray_app import build_app
from paged_stream.system.ray_extra import connect, import_ray

SETTINGS = bench_pool.SETTINGS | {"num_threads": 1}
MUST_BE_NONE = (
    "errors_of_guests",
    "replicas_lost",
    "neighbours_with_a_wrong_answer",
    "requests_left_running",
)
PHASES = ("alone", "beside guests that stay", "beside guests that leave")
_IDLE_SECONDS = 60.0  # after which work that nobody waits for counts as left behind


class Service(Protocol):
    """What neighbours and guests talk to."""

    visits: list[str]

    async def open(self) -> Any:
        """Open a stream for a neighbour."""
        ...

    async def turn(self, stream: Any, prompt: list[int]) -> list[int]:
        """Let a stream answer as `bench_pool.PARAMS` say; returns the answer's tokens."""
        ...

    async def visit(self, kind: str, number: int, max_tokens: int) -> None:
        """Do what a guest does, which is to be cancelled at any time."""
        ...

    async def counts(self) -> dict[str, int]:
        """``lost`` replicas and ``running`` requests and turns."""
        ...


class Neighbours:
    """Streams that take turns until they are told to stop.

    Attributes:
        answers: the tokens of every turn of every stream.
        seconds: how long each turn took, per phase.
    """

    def __init__(self, service: Service, count: int) -> None:
        self.answers: list[list[list[int]]] = [[] for _ in range(count)]
        self.seconds: dict[str, list[float]] = {phase: [] for phase in PHASES}
        self.phase = PHASES[0]
        self.is_over = False
        self._service = service

    async def live(self, number: int) -> None:
        stream, answers = await self._service.open(), self.answers[number]
        while not self.is_over:
            phase, prompt = self.phase, bench_pool.turn_of(number, len(answers))
            start = time.perf_counter()
            answers.append(await self._service.turn(stream, prompt))
            if phase == self.phase:
                self.seconds[phase].append(time.perf_counter() - start)

    def num_wrong(self, folder: str) -> int:
        """How many of them had an answer that one engine does not give them."""
        longest = max(map(len, self.answers))
        expected = bench_pool.undisturbed(folder, len(self.answers), longest)
        pairs = zip(self.answers, expected, strict=True)
        return sum(answers != right[: len(answers)] for answers, right in pairs)


class Guests:
    """Clients that come for a random time, a number of them at once."""

    def __init__(self, service: Service, count: int, longest: float, seed: int) -> None:
        self.num_cut_off: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self._service = service
        self._count = count
        self._longest = longest
        self._random = random.Random(seed)

    async def come(self, visits: int, seconds_per_token: float | None) -> None:
        """Pay visits.

        Args:
            seconds_per_token: of guests that stay; ``None`` cuts them off.
        """
        numbers = iter(range(visits))

        async def pay() -> None:
            for number in numbers:
                kind = self._random.choice(self._service.visits)
                seconds = self._random.uniform(0.0, self._longest)
                if seconds_per_token is None:
                    await self._cut_off(kind, number, seconds)
                else:
                    num_tokens = max(1, round(seconds / seconds_per_token))
                    await self._service.visit(kind, number, num_tokens)

        await asyncio.gather(*(pay() for _ in range(self._count)))

    async def _cut_off(self, kind: str, number: int, seconds: float) -> None:
        visit = asyncio.create_task(self._service.visit(kind, number, 100_000))
        await asyncio.wait([visit], timeout=seconds)
        visit.cancel()
        await asyncio.wait([visit])
        if visit.cancelled():
            self.num_cut_off[kind] += 1
        elif error := visit.exception():
            self.errors[f"{kind}: {error!r}"] += 1


async def measure(
    service: Service,
    folder: str,
    *,
    num_neighbours: int,
    num_guests: int,
    visits: int,
    longest: float,
    blocks: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Run all phases in turn, so that a slow spell of the machine hits all of them."""
    neighbours = Neighbours(service, num_neighbours)
    guests = Guests(service, num_guests, longest, seed)
    lives = [asyncio.create_task(neighbours.live(n)) for n in range(num_neighbours)]
    await guests.come(num_guests, longest)  # warms up
    lost_before = (await service.counts())["lost"]
    for _ in range(blocks):
        neighbours.phase = PHASES[0]
        await asyncio.sleep(longest * visits / num_guests / blocks / 2)
        turn = statistics.median(neighbours.seconds[PHASES[0]] or [longest])
        neighbours.phase = PHASES[1]
        await guests.come(visits // blocks, turn / bench_pool.NUM_TOKENS)
        neighbours.phase = PHASES[2]
        await guests.come(visits // blocks, None)
    neighbours.is_over = True
    await asyncio.gather(*lives)
    running = await _left_behind(service)
    return {
        "visits": visits // blocks * blocks,
        "cut_off": guests.num_cut_off.total(),
        "cut_off_by_kind": dict(guests.num_cut_off),
        "errors_of_guests": dict(guests.errors),
        "replicas_lost": (await service.counts())["lost"] - lost_before,
        "neighbours": num_neighbours,
        "answers": sum(map(len, neighbours.answers)),
        "neighbours_with_a_wrong_answer": neighbours.num_wrong(folder),
        "requests_left_running": running,
        **_latencies(neighbours),
    }


async def _left_behind(service: Service) -> int:
    """How many requests and turns still run when all had time to end."""
    deadline = time.monotonic() + _IDLE_SECONDS
    while (running := (await service.counts())["running"]) and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    return running


def _latencies(neighbours: Neighbours) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for phase, seconds in neighbours.seconds.items():
        cuts = statistics.quantiles(seconds, n=100) if len(seconds) > 1 else [0.0] * 99
        name = f"turn_seconds_{phase.replace(' ', '_')}"
        figures |= {name: cuts[49], f"{name}_p99": cuts[98], f"{name}_max": max(seconds, default=0)}
    stay, leave = (figures[f"turn_seconds_{phase.replace(' ', '_')}"] for phase in PHASES[1:])
    return figures | {"turn_seconds_ratio_leave_to_stay": leave / stay if stay else 0.0}


@asynccontextmanager
async def pool_service(folder: str) -> AsyncIterator[Service]:
    async with AsyncRayLLM(folder, num_replicas=2, **SETTINGS) as pool:
        yield PoolService(pool)


@asynccontextmanager
async def http_service(folder: str) -> AsyncIterator[Service]:
    serve = import_ray("serve").serve
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    try:
        serve.start(http_options={"port": port}, logging_config=quiet)
        serve.run(build_app(folder, num_replicas=2, **SETTINGS), logging_config=quiet)
        yield HttpService(port)
    finally:
        serve.shutdown()


SERVICES = {"pool": pool_service, "http": http_service}


async def run(through: str, folder: str, **options: Any) -> dict[str, Any]:
    """Measure one way in."""
    async with SERVICES[through](folder) as service:
        return {"through": through} | await measure(service, folder, **options)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--through", nargs="+", default=list(SERVICES), choices=list(SERVICES))
    arguments.add_argument("--neighbours", type=int, default=4)
    arguments.add_argument("--guests", type=int, default=16, help="at once")
    arguments.add_argument("--visits", type=int, default=2000, help="of each kind of phase")
    arguments.add_argument("--longest", type=float, default=0.4, help="seconds of a visit")
    arguments.add_argument("--blocks", type=int, default=5, help="phases of each kind")
    args = arguments.parse_args()
    connect(import_ray())
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tiny_model(Path(folder))
        for through in args.through:
            options = {
                "num_neighbours": args.neighbours,
                "num_guests": args.guests,
                "visits": args.visits,
                "longest": args.longest,
                "blocks": args.blocks,
            }
            rows.append(asyncio.run(run(through, folder, **options)))
            for name, value in rows[-1].items():
                shown = f"{value:.4f}" if isinstance(value, float) else value
                print(f"{name.replace('_', ' '):44}{shown}", flush=True)
    write_results("disconnects", rows)
    if any(row[name] for row in rows for name in MUST_BE_NONE):
        raise SystemExit(f"there must be none of these: {', '.join(MUST_BE_NONE)}")


if __name__ == "__main__":
    main()
