"""How long until the first token of a turn, early and late in a dialogue?

    python -m benchmarks.bench_turns

A live stream computes only what is new. It is compared with what a stateless service does: send
the visible history again with each turn, as a new request. Both generate greedily from the same
texts; prefix caching is off, so that the request computes what it is given.
"""

from __future__ import annotations

import statistics
import time

from tqdm import tqdm

from benchmarks.harness import parser, write_results
from benchmarks.texts import austen
from paged_stream import EngineConfig, LLMEngine, SamplingParams

MODEL = "smollm2-135m-instruct"


def first_token_of_stream(stream, ids: list[int], params: SamplingParams) -> tuple[float, list]:
    """Seconds from a message to the first token of its answer, and the whole answer."""
    start = time.perf_counter()
    stream.append(ids)
    deltas = stream.generate(params)
    answer = next(deltas).delta_token_ids
    seconds = time.perf_counter() - start
    return seconds, answer + [t for delta in deltas for t in delta.delta_token_ids]


def first_token_of_request(engine: LLMEngine, ids: list[int]) -> float:
    params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    start = time.perf_counter()
    engine.add_request("again", ids, params)
    while engine.has_unfinished_requests():
        engine.step()
    return time.perf_counter() - start


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--turns", type=int, default=50)
    arguments.add_argument("--turn-tokens", type=int, default=40, help="of each message and answer")
    arguments.add_argument("--window-size", type=int, default=1020)
    args = arguments.parse_args()
    engine = LLMEngine(
        EngineConfig(
            model=MODEL,
            window_size=args.window_size,
            max_num_seqs=1,
            enable_prefix_caching=False,
        )
    )
    text = engine.encode(austen("emma"))
    params = SamplingParams(temperature=0.0, max_tokens=args.turn_tokens, ignore_eos=True)
    visible = engine.sink_window.num_sink_tokens + args.window_size
    history: list[int] = []
    live, again = [], []
    first_token_of_request(engine, text[:64])  # warms up
    with engine.open_stream() as stream:
        for turn in tqdm(range(args.turns), unit="turn", disable=None):
            message = text[turn * args.turn_tokens : (turn + 1) * args.turn_tokens]
            again.append(first_token_of_request(engine, (history + message)[-visible:]))
            seconds, answer = first_token_of_stream(stream, message, params)
            live.append(seconds)
            history += message + answer
        evicted = stream.stats().num_evicted_tokens
    # A few turns around each place: one alone may meet a busy moment of the machine.
    first_full = -(-visible // (2 * args.turn_tokens)) + 1  # the first turn with a full window
    early, late = statistics.median(live[1:6]), statistics.median(live[-5:])
    full = statistics.median(live[first_full : first_full + 5])
    late_again = statistics.median(again[-5:])
    print(f"{args.turns} turns, {len(history):,} tokens, {evicted:,} evicted")
    print(f"first token, turns 2-6       {1e3 * early:8.1f} ms")
    print(
        f"first token, turns {first_full + 1}-{first_full + 5}, the first that see a full window "
        f"{1e3 * full:8.1f} ms"
    )
    print(
        f"first token, last five turns {1e3 * late:8.1f} ms   {late / early:.2f} times turns 2-6, "
        f"{late / full:.2f} times the first with a full window"
    )
    print(
        f"  by sending {min(visible, len(history)):,} tokens again {1e3 * late_again:8.1f} ms   "
        f"{late_again / late:.1f} times the live stream's"
    )
    row = {
        "model": MODEL,
        "turns": args.turns,
        "turn_tokens": args.turn_tokens,
        "window_size": args.window_size,
        "early_seconds": early,
        "full_seconds": full,
        "late_seconds": late,
        "again_seconds": late_again,
    }
    write_results("turns", [row])


if __name__ == "__main__":
    main()
