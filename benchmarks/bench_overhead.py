"""How much of a decode step is not the model: scheduling, batches, sampling, text?

    python -m benchmarks.bench_overhead --batch 1 64

Greedy and random steps alternate in one process, one at a time and eight in a group, as `LLM` runs
them. Each tells its own share: what the step took beyond the model's forward pass and its logits,
over the whole.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.cost import decoder
from benchmarks.harness import alternate, parser, spread, write_results
from paged_stream import EngineConfig, LLMEngine, SamplingParams
from paged_stream.setting_kinds import Dtype

WINDOW_SIZE = 1020  # so small that the cache holds every batch
SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.8, "top_p": 0.95, "top_k": 50},
}


class Decoding:
    """An engine in the middle of generating, whose model is timed apart."""

    def __init__(
        self, model: str, dtype: Dtype, batch: int, prompt: int, sampling: str, group: int
    ) -> None:
        self.engine = LLMEngine(
            EngineConfig(
                model=model,
                dtype=dtype,
                max_num_seqs=batch,
                num_decode_steps=group,
                window_size=WINDOW_SIZE,
            )
        )
        self.model_seconds = 0.0
        self.outside: list[float] = []  # seconds of each step
        self.shares: list[float] = []
        of_engine = decoder(self.engine)
        for name in ("forward", "compute_logits"):
            setattr(of_engine, name, self._timed(getattr(of_engine, name)))
        params = SamplingParams(max_tokens=None, ignore_eos=True, seed=0, **SAMPLING[sampling])
        rng = random.Random(0)
        for index in range(batch):
            ids = [rng.randrange(1000, 40000) for _ in range(prompt)]
            self.engine.add_request(str(index), ids, params)
        for _ in range(batch * prompt // 512 + 2):  # all prompts, in chunks of a step's budget
            self.engine.step()
        stats = self.engine.stats()
        assert stats.num_running == batch, "the cache does not hold the batch"
        assert stats.num_generated_tokens >= batch, "prompts are still to be computed"

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self.model_seconds += time.perf_counter() - start
            return result

        return run

    def step(self) -> None:
        self.model_seconds = 0.0
        start = time.perf_counter()
        self.engine.step()
        seconds = time.perf_counter() - start
        self.outside.append(seconds - self.model_seconds)
        self.shares.append(self.outside[-1] / seconds)


def bench(args: argparse.Namespace, batch: int) -> list[dict[str, Any]]:
    runs = {
        (name, group): Decoding(args.model, args.dtype, batch, args.prompt, name, group)
        for name in args.sampling
        for group in args.group
    }
    seconds = alternate(
        {key: run.step for key, run in runs.items()}, repeats=args.steps, warmup=args.warmup
    )
    rows = []
    for (name, group), run in runs.items():
        outside, shares = run.outside[args.warmup :], run.shares[args.warmup :]
        share = statistics.median(shares)
        step_seconds = statistics.median(seconds[name, group]) / group
        outside_seconds = statistics.median(outside) / group
        print(
            f"batch {batch:>3}  {name:<8} groups of {group}  step {1e3 * step_seconds:7.2f} ms, "
            f"{1e3 * outside_seconds:6.3f} ms of it outside the model: {100 * share:5.2f} %"
        )
        rows.append(
            {
                "model": args.model,
                "dtype": args.dtype,
                "batch": batch,
                "sampling": name,
                "group": group,
                "steps": args.steps,
                "step_seconds": step_seconds,
                "outside_seconds": outside_seconds,
                "share": share,
                "spread": spread(shares),
            }
        )
    return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", default="smollm2-135m-instruct")
    arguments.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    arguments.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    arguments.add_argument("--sampling", nargs="+", default=list(SAMPLING), choices=list(SAMPLING))
    arguments.add_argument("--group", type=int, nargs="+", default=[1, 8], help="num_decode_steps")
    arguments.add_argument("--prompt", type=int, default=64)
    arguments.add_argument("--steps", type=int, default=50, help="groups to time")
    arguments.add_argument("--warmup", type=int, default=10)
    args = arguments.parse_args()
    write_results("overhead", [row for batch in args.batch for row in bench(args, batch)])


if __name__ == "__main__":
    main()
