"""How close does the paged attention op come to what memory and arithmetic allow?

    python -m benchmarks.bench_attention --batch 1 16

The op alone, on streams far past their window: decode steps at several batch sizes, and a chunk of
a prompt. As in a model, one call follows another on the K and V of the next layer; for decode steps
there are so many layers that no cache holds all of them from one pass to the next. Heads are
SmolLM2-135M's unless others are given.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.harness import (
    Ceilings,
    alternate,
    matrix_rate,
    parser,
    read_bandwidth,
    spread,
    write_results,
)
from paged_stream import ops
from paged_stream.layers.large_pages import zeros_in_large_pages
from paged_stream.scheduler.sink_window import SinkWindow

BLOCK_SIZE = 16
NUM_SINK_TOKENS = 4
BEYOND_CACHES = 512 << 20  # bytes
CHUNK_LAYERS = 30  # as SmolLM2-135M


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """``batch`` sequences that compute ``chunk`` tokens each, far past their window."""

    batch: int
    chunk: int
    window_size: int

    @property
    def sink_window(self) -> SinkWindow:
        return SinkWindow(NUM_SINK_TOKENS, self.window_size)

    @property
    def num_read(self) -> int:
        """Keys that one call reads: those that any token of a chunk sees."""
        return self.batch * (NUM_SINK_TOKENS + self.window_size - 1 + self.chunk)

    @property
    def num_scores(self) -> int:
        """Pairs of a token and a key that it sees."""
        return self.batch * self.chunk * (NUM_SINK_TOKENS + self.window_size)

    @property
    def name(self) -> str:
        kind = "decode" if self.chunk == 1 else f"chunk of {self.chunk}"
        return f"{kind}, {NUM_SINK_TOKENS} + {self.window_size}"


def calls(case: Case, args: argparse.Namespace) -> tuple[Callable[[], None], int]:
    """Returns a pass over all layers, and how many there are."""
    num_heads, num_kv_heads, head_dim = args.heads
    dtype = getattr(torch, args.dtype)
    window = case.sink_window
    ring = window.ring_blocks(case.chunk, BLOCK_SIZE)
    width = window.num_sink_blocks(BLOCK_SIZE) + ring
    num_blocks = case.batch * width
    shape = (2, num_blocks, num_kv_heads, BLOCK_SIZE, head_dim)
    layer_bytes = torch.Size(shape).numel() * dtype.itemsize
    num_layers = max(2, -(-BEYOND_CACHES // layer_bytes))
    if case.chunk > 1:  # arithmetic, not memory, takes the time
        num_layers = min(num_layers, CHUNK_LAYERS)
    caches = zeros_in_large_pages((num_layers, *shape), dtype)
    caches[:] = torch.randn(1, *shape)
    order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(0))
    num_tokens = case.batch * case.chunk
    query, sink_query = (torch.randn(num_tokens, num_heads, head_dim).to(dtype) for _ in range(2))
    seq_len = 3 * (NUM_SINK_TOKENS + case.window_size) + case.chunk + 5

    columns = ops.SequenceColumns(
        lengths=[case.chunk] * case.batch,
        starts=[seq_len - case.chunk] * case.batch,
        num_sink_tokens=[NUM_SINK_TOKENS] * case.batch,
        window_size=[case.window_size] * case.batch,
        window_floor=[0] * case.batch,
        ring_blocks=[ring] * case.batch,
        row_lengths=[width] * case.batch,
    )
    token_ids = torch.zeros(num_tokens, dtype=torch.int32)
    batch, _ = ops.lay_out_batch(token_ids, order.int(), columns, BLOCK_SIZE)
    scoring = ops.Scoring(head_dim**-0.5)

    def run() -> None:
        for k_cache, v_cache in caches:
            ops.paged_attention(query, sink_query, k_cache, v_cache, batch, scoring)

    return run, num_layers


def bench(case: Case, args: argparse.Namespace, ceilings: Ceilings) -> dict:
    run, num_layers = calls(case, args)
    runs = alternate({"op": run}, repeats=args.repeats)["op"]
    seconds = statistics.median(runs) / num_layers
    num_heads, num_kv_heads, head_dim = args.heads
    num_bytes = 2 * case.num_read * num_kv_heads * head_dim * getattr(torch, args.dtype).itemsize
    flops = 4.0 * case.num_scores * num_heads * head_dim
    row = {
        "case": case.name,
        "batch": case.batch,
        "chunk": case.chunk,
        "window_size": case.window_size,
        "heads": args.heads,
        "dtype": args.dtype,
        "seconds": seconds,
        "spread": spread(runs),
        "bandwidth_fraction": num_bytes / seconds / ceilings.bandwidth,
        "matrix_rate_fraction": flops / seconds / ceilings.matrix_rate,
        "floor_fraction": ceilings.floor_seconds(num_bytes, flops) / seconds,
    }
    print(
        f"{case.name:<24}{case.batch:>5}{1e6 * seconds:>12.0f}{100 * row['spread']:>7.0f} %"
        f"{100 * row['bandwidth_fraction']:>11.0f} %{100 * row['matrix_rate_fraction']:>11.0f} %",
        flush=True,
    )
    return row


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64])
    arguments.add_argument("--chunk", type=int, nargs="+", default=[512], help="of a prompt")
    arguments.add_argument("--window-size", type=int, nargs="+", default=[1020, 4092])
    arguments.add_argument(
        "--heads",
        type=int,
        nargs=3,
        default=[9, 3, 64],
        metavar=("QUERY", "KV", "DIM"),
        help="number of query heads, of KV heads, and their size",
    )
    arguments.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    arguments.add_argument("--repeats", type=int, default=5)
    args = arguments.parse_args()
    ceilings = Ceilings(bandwidth=read_bandwidth(BEYOND_CACHES), matrix_rate=matrix_rate())
    print(
        f"read bandwidth {ceilings.bandwidth / 1e9:.1f} GB/s, "
        f"matrix rate {ceilings.matrix_rate / 1e9:.0f} GFLOP/s"
    )
    print("sinks + window          batch     us a call  spread   of bandwidth  of matrix rate")
    rows = []
    for window_size in args.window_size:
        for batch, chunk in [(n, 1) for n in args.batch] + [(1, n) for n in args.chunk]:
            rows.append(
                bench(Case(batch=batch, chunk=chunk, window_size=window_size), args, ceilings)
            )
    write_results("attention", rows)


if __name__ == "__main__":
    main()
