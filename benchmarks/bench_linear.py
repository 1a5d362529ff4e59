"""Is a projection ever faster in torch than in the engine's own kernels, and from how many rows?

    python -m benchmarks.bench_linear --rows 1 16 512

Both multiply the same rows by the same weights, as many different ones as a model has, so that they
come from memory. The rate is of the arithmetic; what reading the weights allows is printed beside.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.harness import alternate, parser, read_bandwidth, write_results
from paged_stream import ops
from paged_stream.layers.blocks import BLOCK_FORMATS, Blocks, pack_blocks, packed_bytes

WEIGHTS = ("float32", "bfloat16", *BLOCK_FORMATS)


def make(weights: torch.Tensor, kind: str) -> dict[str, Callable[[torch.Tensor], Any]]:
    """What multiplies by [out, in] weights, by whose it is; quantised ones are ours alone."""
    size = weights.shape[0]
    if kind not in ("float32", "bfloat16"):
        width, num_bytes, scales = BLOCK_FORMATS[kind]
        shape = (size, weights.shape[1] // width, num_bytes)
        blocks = torch.randint(0, 256, shape, dtype=torch.uint8)
        blocks[..., scales] = (
            torch.tensor([0.02]).half().view(torch.uint8).repeat((scales.stop - scales.start) // 2)
        )
        packed = pack_blocks([Blocks(kind, blocks.flatten(1))])
        return {"engine": lambda rows: ops.linear(rows, packed, None, size)}
    plain = weights.to(getattr(torch, kind))
    packed = ops.pack_linear_weight(plain)
    return {
        "engine": lambda rows: ops.linear(rows, packed, None, size),
        "torch": lambda rows: F.linear(rows, plain),
    }


def run_all(layers: Sequence[Callable[[torch.Tensor], Any]], hidden: torch.Tensor) -> None:
    for layer in layers:
        layer(hidden)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 64, 256, 512])
    arguments.add_argument("--in-features", type=int, default=768)
    arguments.add_argument("--out-features", type=int, default=3072)
    arguments.add_argument("--layers", type=int, default=60)
    arguments.add_argument("--weights", nargs="+", choices=WEIGHTS, default=WEIGHTS)
    arguments.add_argument("--repeats", type=int, default=7)
    args = arguments.parse_args()
    shape = (args.out_features, args.in_features)
    layers = {
        kind: [make(torch.randn(shape) * 0.02, kind) for _ in range(args.layers)]
        for kind in args.weights
    }
    results = []
    print(f"{'rows':>5} {'weights':<9}{'engine':>12}{'torch':>12}{'ratio':>7}{'of reading':>12}")
    for rows in args.rows:
        for kind in args.weights:
            dtype = torch.float32 if kind == "float32" else torch.bfloat16
            hidden = torch.randn(rows, args.in_features).to(dtype)
            candidates = {
                whose: partial(run_all, [layer[whose] for layer in layers[kind]], hidden)
                for whose in layers[kind][0]
            }
            seconds = alternate(candidates, repeats=args.repeats)
            medians = {whose: statistics.median(times) for whose, times in seconds.items()}
            if kind in BLOCK_FORMATS:
                weight_bytes = packed_bytes([(kind, args.out_features)], args.in_features)
            else:
                weight_bytes = args.in_features * args.out_features * dtype.itemsize
            num_bytes = args.layers * weight_bytes
            reading = num_bytes / read_bandwidth(int(num_bytes)) / medians["engine"]
            flops = 2 * rows * args.layers * args.in_features * args.out_features
            rates = {whose: flops / median for whose, median in medians.items()}
            torch_rate = f"{rates['torch'] / 1e9:.0f} G/s" if "torch" in rates else "-"
            ratio = f"{rates['engine'] / rates['torch']:.2f}" if "torch" in rates else "-"
            print(
                f"{rows:>5} {kind:<9}{rates['engine'] / 1e9:>8.0f} G/s{torch_rate:>12}{ratio:>7}"
                f"{100 * reading:>10.0f} %",
                flush=True,
            )
            results.append(
                {"rows": rows, "weights": kind, "flops_per_second": rates, "of_reading": reading}
            )
    write_results("linear", results)


if __name__ == "__main__":
    main()
