"""Does an interrupt end anything but the turn that it meets?

    python -m benchmarks.interrupts
    python -m benchmarks.interrupts --interrupts 200 --engines sync

Streams of a tiny random model append, generate, answer, score, fork, cut, rewind, park, save and
load, and requests are stepped, in an engine whose cache holds few of them. Nearly every call is
interrupted at a random moment: by Ctrl-C, by another signal's handler, by another thread and, with
coroutines, by cancelling the task. Every stream has a twin in an engine to
which nothing happens, and which repeats what the interrupted call has done: all of it, nothing, or
of a turn its first tokens.

Reported: interrupts of each kind and method, and what must not be: a stream that differs from its
twin, a call that was done by half, a request that lost a token, a stream or turn that is left
behind, an engine that is lost.
"""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.bench_stream import tiny_model
from benchmarks.harness import parser, write_results
from benchmarks.interrupting import Interrupter
from benchmarks.interrupts_engines import ENGINES, Face
from paged_stream import LLM, SamplingParams, Stream

SETTINGS: dict[str, Any] = {
    "num_sink_tokens": 4,
    "window_size": 48,
    "block_size": 8,
    "max_num_batched_tokens": 64,
    "dtype": "float32",
    "num_threads": 1,
}
_MOST_STREAMS = 6


def turn(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)


class Wrong(Exception):
    """Something has happened that must not."""


class Pair:
    """A stream that is interrupted, and its twin."""

    def __init__(self, real: Any, twin: Stream) -> None:
        self.real, self.twin = real, twin

    def check(self) -> None:
        """Compare what both are."""
        if self.real.is_generating:
            raise Wrong("the stream still generates")
        if (real := self.real.visible()) != (twin := self.twin.visible()):
            raise Wrong(f"{real} is not {twin}")

    def settle(self) -> None:
        """Compute what was appended."""
        self.real.park()
        self.twin.park()

    def grown(self) -> int:
        """How many tokens the interrupted stream has more."""
        return int(self.real.position) - self.twin.position

    def generate(self, most: int) -> None:
        """Let the twin generate what the other has."""
        count = self.grown()
        if not 0 <= count <= most:
            raise Wrong(f"{count} of {most} tokens")
        if count:
            list(self.twin.generate(turn(count)))

    def append(self, token_ids: list[int], then: int = 0) -> None:
        """Append to the twin what the other has kept of it; and generate, if it has kept all."""
        count = self.grown()
        if count < 0:
            raise Wrong(f"{-count} tokens are gone")
        if count:
            self.twin.append(token_ids[:count])
            self.generate(then)


class World:
    """An engine that is interrupted, and one that is not."""

    def __init__(self, engine: Face, calm: LLM, rng: random.Random, seconds: Interrupter) -> None:
        self.engine, self.calm, self.rng, self._interrupter = engine, calm, rng, seconds
        self.pairs: list[Pair] = []
        self.counts: Counter[tuple[str, str]] = Counter()  # by kind and method

    def ids(self, most: int = 30) -> list[int]:
        return [self.rng.randrange(2, 200) for _ in range(self.rng.randint(1, most))]

    def attempt(self, name: str, function: Callable[[], Any]) -> tuple[bool, Any]:
        """Call a method of the engine or of a stream, and interrupt it."""
        kind = self.rng.choice(self.engine.kinds)
        stopped, result = self.engine.interrupt(self._interrupter, kind, name, function)
        self.counts[kind, name] += stopped
        return stopped, result

    def round(self) -> None:
        """One call, and a look at what it has left behind."""
        name = self.rng.choice([name for name in dir(self) if name.startswith("do_")])
        pair: Pair | None = self.rng.choice(self.pairs) if self.pairs else None
        if pair is None:
            self.do_open(None)
        else:
            getattr(self, name)(pair)
        self.check(pair if pair in self.pairs else None)

    def check(self, pair: Pair | None) -> None:
        if pair is not None:
            pair.check()
        stats = self.engine.call(self.engine.engine.stats)
        if stats.num_streams != len(self.pairs):
            raise Wrong(f"{stats.num_streams} streams are open, {len(self.pairs)} are known")
        if turns := self.engine.turns_left():
            raise Wrong(f"{turns} turns or requests are left")

    def add(self, real: Any, twin: Stream) -> None:
        self.pairs.append(Pair(self.engine.plain(real), twin))
        if len(self.pairs) > _MOST_STREAMS:
            self.do_close(self.rng.choice(self.pairs))

    # Of streams

    def do_open(self, _: Pair | None) -> None:
        real = self.attempt("open_stream", self.engine.engine.open_stream)[1]
        if real is not None:
            self.add(real, self.calm.open_stream())
            ids = self.ids()
            self.pairs[-1].real.append(ids)
            self.pairs[-1].twin.append(ids)

    def do_load(self, pair: Pair) -> None:
        _, data = self.attempt("save_bytes", pair.real.inner_call("save_bytes"))
        if data is not None:
            engine = self.engine.engine
            _, real = self.attempt("load_stream", lambda: engine.load_stream(data))
            if real is not None:
                self.add(real, self.calm.load_stream(pair.twin.save_bytes()))

    def do_fork(self, pair: Pair) -> None:
        _, real = self.attempt("fork", pair.real.inner_call("fork"))
        if real is not None:
            self.add(real, pair.twin.fork())

    def do_close(self, pair: Pair) -> None:
        self.attempt("close", pair.real.inner_call("close"))
        pair.real.close()
        pair.twin.close()
        self.pairs.remove(pair)

    def do_append(self, pair: Pair) -> None:
        ids = self.ids(150)
        self.attempt("append", pair.real.inner_call("append", ids))
        pair.append(ids)

    def do_generate(self, pair: Pair) -> None:
        most = self.rng.randint(1, 20)
        self.attempt("generate", pair.real.inner_read("generate", turn(most)))
        pair.generate(most)

    def do_complete(self, pair: Pair) -> None:
        ids, most = self.ids(), self.rng.randint(1, 20)
        self.attempt("complete", pair.real.inner_read("complete", ids, turn(most)))
        pair.append(ids, most)

    def do_score(self, pair: Pair) -> None:
        ids = self.ids(100)
        self.attempt("score of a stream", pair.real.inner_call("score", ids))
        pair.append(ids)

    def do_cut(self, pair: Pair) -> None:
        pair.settle()
        before, start = pair.real.visible(), pair.real.stats().window_start
        if (room := pair.real.position - 1 - start) < 2:
            return
        start += self.rng.randrange(room)
        end = self.rng.randint(start + 1, pair.real.position - 1)
        self.attempt("cut", pair.real.inner_call("cut", start, end))
        if pair.real.visible() != before:
            pair.twin.cut(start, end)

    def do_rewind(self, pair: Pair) -> None:
        pair.settle()
        stats, before = pair.real.stats(), pair.real.position
        least = max(stats.window_start, stats.num_sink_tokens) + 1
        if least >= before:
            return
        position = self.rng.randrange(least, before)
        self.attempt("rewind", pair.real.inner_call("rewind", position))
        if pair.real.position != before:
            pair.twin.rewind(position)

    def do_park(self, pair: Pair) -> None:
        self.attempt("park", pair.real.inner_call("park"))

    def do_look(self, pair: Pair) -> None:
        name = self.rng.choice(["stats", "visible", "end_turn"])
        self.attempt(f"{name} of a stream", pair.real.inner_call(name))

    # Of the engine

    def do_requests(self, _: Pair) -> None:
        prompts = [self.ids() for _ in range(3)]
        expected = [self.calm.generate(p, turn(9), use_tqdm=False)[0] for p in prompts]
        answers = self.engine.answer(self.attempt, prompts, turn(9))
        for answer, output in zip(answers, expected, strict=True):
            if answer is not None and answer != output.outputs[0].token_ids:
                raise Wrong(f"{answer} is not {output.outputs[0].token_ids}")

    def do_engine(self, _: Pair) -> None:
        name, function = self.rng.choice(self.engine.uses(self.ids, turn(9)))
        self.attempt(name, function)


def run(name: str, folder: str, interrupts: int, seed: int) -> dict[str, Any]:
    """Interrupt one engine so many times."""
    rng = random.Random(seed)
    with LLM(folder, **SETTINGS) as calm, ENGINES[name](folder, SETTINGS, rng) as engine:
        world = World(engine, calm, rng, Interrupter(rng))
        while world.counts.total() < interrupts:
            world.round()
        for pair in world.pairs:
            if list_of(pair.real, 20) != list_of(pair.twin, 20):
                raise Wrong("a stream goes on otherwise than its twin")
            pair.check()
            pair.real.close()
            pair.twin.close()
    kinds, methods = Counter[str](), Counter[str]()
    for (kind, method), count in world.counts.items():
        kinds[kind] += count
        methods[method] += count
    return {"engine": name, "interrupts": kinds.total(), "kinds": kinds, "methods": methods}


def list_of(stream: Any, count: int) -> list[int]:
    deltas = stream.generate(turn(count))
    return [token_id for delta in deltas for token_id in delta.delta_token_ids]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    arguments.add_argument("--interrupts", type=int, default=5000, help="of each engine")
    arguments.add_argument("--seed", type=int, default=0)
    args = arguments.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tiny_model(Path(folder))
        for name in args.engines:
            rows.append(run(name, folder, args.interrupts, args.seed))
            for key, value in rows[-1].items():
                print(f"{key:12}{value}", flush=True)
    write_results("interrupts", rows)


if __name__ == "__main__":
    main()
