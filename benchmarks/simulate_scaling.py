"""How much do 1 to 1,000 GPUs do in an hour, and what does it take around them?

    python -m benchmarks.simulate_scaling
    python -m benchmarks.simulate_scaling --decode-rate 952 --prefill-rate 940 --kv-gib 4

Every constant is a parameter; rates are what a benchmark prints for one engine. For each number of
GPUs, a batch is simulated: documents of log-normal lengths are cut into shards, every engine works
on some shards at a time, fills each free place with the next row, dies now and then and loses the
shards that it had not committed. Standard library only.
"""

from __future__ import annotations

import argparse
import heapq
import random

GIB = 1 << 30


def kv_stream_bytes(args: argparse.Namespace) -> int:
    """K and V of one stream, sinks, window and a chunk, at any length."""
    ring = -(-(args.window - 2 + args.chunk_size) // args.block_size) + 1
    blocks = -(-args.sinks // args.block_size) + ring
    return blocks * args.block_size * args.kv_bytes_per_token


def document_seconds(args: argparse.Namespace, tokens: float) -> float:
    """Time that a document takes of one engine, when the others in the batch share its steps."""
    return tokens / args.prefill_rate + args.output_tokens / args.decode_rate


def shard_work(args: argparse.Namespace, count: int, generator: random.Random) -> list[float]:
    """Engine seconds of each shard."""
    mean, spread = args.document_tokens, args.spread
    # Log-normal with this mean.
    location = -spread * spread / 2
    return [
        sum(
            document_seconds(args, mean * generator.lognormvariate(location, spread))
            for _ in range(args.documents_per_shard)
        )
        for _ in range(count)
    ]


def simulate(args: argparse.Namespace, gpus: int, shards: int, seed: int = 0) -> tuple[float, int]:
    """Hours that a batch takes, and shards that were under way when their engine died."""
    generator = random.Random(seed)
    queue = shard_work(args, shards, generator)
    rate = 1 / (args.hours_between_failures * 3600)
    engines = [(args.start_seconds, index) for index in range(gpus)]  # when each is free, and which
    dies = [generator.expovariate(rate) for _ in range(gpus)]
    end, lost = 0.0, 0
    while queue:
        now, index = heapq.heappop(engines)
        work = queue.pop()
        if now + work > dies[index]:
            # Of what was under way, half was done on average.
            again = max(now, dies[index]) + args.start_seconds + args.shards_ahead * work / 2
            dies[index] = again + generator.expovariate(rate)
            lost += args.shards_ahead
            queue.append(work)
            heapq.heappush(engines, (again, index))
        else:
            end = max(end, now + work)
            heapq.heappush(engines, (now + work, index))
    return end / 3600, lost


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = arguments.add_argument
    add("--gpus", type=int, nargs="+", default=[1, 8, 64, 256, 1000])
    add("--decode-rate", type=float, default=952, help="tokens/s of a full batch, one engine")
    add("--prefill-rate", type=float, default=940, help="prompt tokens/s, one engine")
    add("--kv-bytes-per-token", type=int, default=23040, help="`paged-stream info` prints it")
    add("--kv-gib", type=float, default=4.0, help="memory for K and V per engine")
    add("--sinks", type=int, default=4)
    add("--window", type=int, default=1020)
    add("--chunk-size", type=int, default=256, help="a batch's")
    add("--block-size", type=int, default=16)
    add("--document-tokens", type=float, default=2000, help="mean length")
    add("--spread", type=float, default=1.0, help="standard deviation of the logarithm of it")
    add("--output-tokens", type=float, default=100)
    add("--bytes-per-token", type=float, default=4.0, help="of text")
    add("--documents-per-shard", type=int, default=200)
    add("--shards-per-gpu", type=int, default=16)
    add("--shards-ahead", type=int, default=4)
    add("--start-seconds", type=float, default=60, help="until a new engine has its model")
    add("--hours-between-failures", type=float, default=500, help="per GPU")
    args = arguments.parse_args()

    stream = kv_stream_bytes(args)
    seconds = document_seconds(args, args.document_tokens)
    read = args.document_tokens * args.bytes_per_token
    written = read + args.output_tokens * args.bytes_per_token
    shard = args.documents_per_shard * seconds
    print(f"K and V of a stream    {stream / (1 << 20):10.1f} MiB")
    print(f"streams per GPU        {int(args.kv_gib * GIB // stream):10,}")
    print(f"a document             {seconds:10.2f} s of one GPU")
    print(f"a shard                {shard / 60:10.1f} min of one GPU")
    print(
        f"read, written per GPU  {read / seconds / 1e3:10.1f}, {written / seconds / 1e3:.1f} kB/s"
    )
    print()
    print(
        f"{'GPUs':>6}{'documents/h':>14}{'tokens/h':>12}{'read':>12}{'written':>12}{'commits/s':>11}"
        f"{'utilised':>10}{'lost shards':>13}"
    )
    for gpus in args.gpus:
        shards = gpus * args.shards_per_gpu
        hours, lost = simulate(args, gpus, shards)
        documents = shards * args.documents_per_shard / hours
        tokens = documents * (args.document_tokens + args.output_tokens)
        ideal = shards * shard / gpus / 3600
        print(
            f"{gpus:>6,}{documents:>14,.0f}{tokens:>12.2e}"
            f"{documents * read / 3600 / 1e6:>7,.2f} MB/s"
            f"{documents * written / 3600 / 1e6:>7,.2f} MB/s"
            f"{shards / hours / 3600:>11.3f}{ideal / hours:>10.1%}{lost:>13,}"
        )


if __name__ == "__main__":
    main()
