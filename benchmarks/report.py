"""Writes what was measured into docs/measurements.md, and a summary into README.md, each between
two markers.

    python -m benchmarks.report

Everything comes from the files in ``benchmarks/results``; a benchmark without one is left out.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import parser, read_results
from benchmarks.report_summary import summary_lines
from benchmarks.texts import NOVELS

ROOT = Path(__file__).parent.parent
README, MEASUREMENTS = ROOT / "README.md", ROOT / "docs" / "measurements.md"
BEGIN = "<!-- benchmarks: begin; python -m benchmarks.report writes what follows -->"
END = "<!-- benchmarks: end -->"

Rows = Sequence[Mapping[str, Any]]


def table(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    cells = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in cells)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("<", "\\<")


def paragraph(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def section(title: str, command: str, text: str, *more: str) -> str:
    first = paragraph(f"**{title}**, `python -m benchmarks.{command}`{text}")
    return "\n\n".join([first, *more])


def percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"


def signed_percent(percent: float) -> str:
    return f"{round(percent, 2) + 0.0:+.2f} %"  # no -0.00


def rate(value: float) -> str:
    return f"{value:,.0f} tok/s" if value >= 10 else f"{value:.1f} tok/s"


def settled(points: Rows) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The first point after the warm-up, and the last."""
    return next((p for p in points if p["tokens"] >= 10_000), points[-1]), points[-1]


def weights_of(name: str) -> str:
    return "as in the file" if name == "auto" else name


def perplexity(rows: Rows) -> str:
    longest: dict[tuple[str, str, str], tuple[int, Mapping[str, Any]]] = {}
    for row in rows:
        key = row["model"], row["text"], row["case"]
        first, last = map(int, row["tokens"].split("-"))
        if row["text"] not in NOVELS or first:
            continue
        if key not in longest or longest[key][0] < last:
            longest[key] = last, row
    lines = [
        (
            model,
            f"{text}, {last:,} tokens",
            "all" if case == "dense" else case,
            f"{row['perplexity']:.2f}",
            f"{row['figure']:.2f}",
            signed_percent(row["difference_percent"]),
        )
        for (model, text, case), (last, row) in longest.items()
    ]
    return section(
        "Perplexity",
        "sink_effect",
        f" (`--model` for other models), in {rows[0]['dtype']}, over the longest span of each "
        "novel. The independent figure comes from banded masks over transformers' weights and was "
        "made without this engine. [Evidence](evidence.md) has all spans:",
        table(
            ("model", "text", "sinks + window", "perplexity", "independent", "difference"), lines
        ),
    )


_QUANTIZED = {
    "kv_cache_dtype=int8": "K and V in int8",
    "quantization=int8": "weights in int8",
    "quantization=int4": "weights in 4 bits",
    "quantization=auto": "weights in the file's own Q4_1 blocks",
}


def quantized(rows: Rows) -> str:
    plain = rows[0]
    lines = [
        (
            _QUANTIZED.get(row["variant"], f"nothing, all in {row['variant']}"),
            f"{row['perplexity']:.3f}",
            signed_percent(row["difference_percent"]) if row is not plain else "",
        )
        for row in rows
    ]
    return paragraph(
        f"**Quantising**, {plain['model']}, {plain['text']}, {plain['tokens']:,} tokens, "
        f"{plain['num_sink_tokens']} + {plain['window_size']:,} visible, `python -m benchmarks "
        "quantized_perplexity`:"
    ) + ("\n\n" + table(("what", "perplexity", "difference"), lines))


def decode(rows: Rows) -> str:
    theirs = {
        (row["batch"], row["prompt"]): row["tokens_per_second"]
        for row in rows
        if row["engine"] == "transformers"
    }
    lines = []
    for row in rows:
        if row["engine"] != "transformers":
            batch, prompt, speed = row["batch"], row["prompt"], row["tokens_per_second"]
            other = theirs[batch, prompt]
            weights = weights_of(row["engine"].removeprefix("ours").strip() or row["dtype"])
            lines.append(
                (
                    f"{batch}, {prompt} tokens",
                    weights,
                    rate(speed),
                    percent(row["floor_fraction"]),
                    rate(other),
                    f"{speed / other:.1f}",
                )
            )
    return section(
        "Decoding",
        "bench_decode",
        f", next to transformers' `generate` in {rows[0]['dtype']}. The floor is every weight and "
        "visible K and V read once, at the bandwidth measured in the same run, or the arithmetic "
        "at the matrix rate, whichever takes longer:",
        table(
            ("batch, prompt", "weights", "this engine", "of the floor", "transformers", "ratio"),
            lines,
        ),
    )


def prefill(rows: Rows) -> str:
    lines = [
        (
            f"{row['prompt']:,} tokens",
            rate(row["tokens_per_second"]),
            percent(row["floor_fraction"]),
            rate(row["transformers_tokens_per_second"]),
            f"{row['ratio']:.1f}",
        )
        for row in rows
    ]
    quantization = rows[0]["quantization"]
    weights = "" if quantization == "none" else f" with weights {weights_of(quantization)}"
    return section(
        "Prefill",
        "bench_prefill",
        f", {rows[0]['dtype']}{weights}, next to transformers' forward pass; the floor is the "
        f"arithmetic at {rows[0]['matrix_rate'] / 1e9:,.0f} GFLOP/s, the fastest large matrix "
        "product that torch or this engine computes there:",
        table(("prompt", "this engine", "of the floor", "transformers", "ratio"), lines),
    )


def attention(rows: Rows) -> str:
    lines = [
        (
            row["case"],
            row["batch"],
            f"{1e6 * row['seconds']:,.0f} µs",
            percent(row["bandwidth_fraction"]),
            percent(row["matrix_rate_fraction"]),
        )
        for row in rows
    ]
    heads, kv_heads, size = rows[0]["heads"]
    return section(
        "The attention op alone",
        "bench_attention",
        f", {heads} heads over {kv_heads} of {size}, {rows[0]['dtype']}, K and V read from memory:",
        table(
            ("sinks + window", "batch", "one call", "of the bandwidth", "of the matrix rate"), lines
        ),
    )


def peers(rows: Rows) -> str:
    lines = [
        (
            f"prefill, {row['prompt']:,} tokens"
            if row["task"] == "prefill"
            else f"{row['task']}, batch {row['batch']}, {row['prompt']:,} tokens",
            weights_of(row["ours"]),
            rate(row["tokens_per_second"]),
            f"{row['peer']} ({row['version']})",
            rate(row["peer_tokens_per_second"]),
            f"{row['ratio']:.2f}",
        )
        for row in rows
    ]
    return section(
        "Next to other engines",
        "bench_peers",
        ", each in a process of its own, in turns, with as many threads:",
        table(("what", "weights", "this engine", "peer", "its speed", "ratio"), lines),
    )


def speculation(rows: Rows) -> str:
    lines = [
        (
            f"{row['text']}, {row['prompts']} texts",
            row["way"],
            rate(row["plain_tokens_per_second"]),
            rate(row["tokens_per_second"]),
            f"{row['ratio']:.2f}",
            f"{min(row['ratios']):.2f} to {max(row['ratios']):.2f}",
            percent(row["right"]),
        )
        for row in rows
    ]
    return section(
        "Several tokens per step",
        "bench_speculation",
        f", {rows[0]['model']}, {rows[0]['dtype']}, batch 1, {rows[0]['tokens']} tokens after each "
        "prompt; the draft model is the same one in the 4 bits of its file. All tokens are those "
        "without guesses:",
        table(
            ("what", "guesses by", "without", "with", "ratio", "of single texts", "right guesses"),
            lines,
        ),
    )


def overhead(rows: Rows) -> str:
    lines = [
        (
            row["batch"],
            row["sampling"],
            row["group"],
            f"{1e3 * row['step_seconds']:.1f} ms",
            f"{1e3 * row['outside_seconds']:.2f} ms",
            f"{100 * row['share']:.1f} %",
        )
        for row in rows
    ]
    return section(
        "The part of a decode step that is not the model",
        "bench_overhead",
        f", {rows[0]['dtype']}, window 1,020. `LLMEngine` runs one step at a time here, `LLM` and "
        "batches run eight in a group. The texts of the groups are longer when they are timed:",
        table(("batch", "sampling", "steps", "one step", "not the model", "share"), lines),
    )


def recompute(rows: Rows) -> str:
    lines = [
        (
            f"{row['cache_size']:,}",
            f"{1e3 * row['streaming_seconds']:.1f} ms",
            f"{1e3 * row['recompute_seconds']:,.0f} ms",
            f"{row['recompute_ratio']:.0f}",
            f"{1e3 * row['transformers_seconds']:,.0f} ms",
            f"{row['transformers_ratio']:.0f}",
        )
        for row in rows
    ]
    return section(
        "Streaming against a recomputed window",
        "bench_recompute",
        ", time per generated token (the paper's figure 10: 22.2 times at 4,096, with a model of "
        "13 billion parameters on a GPU):",
        table(
            (
                "cache",
                "streaming",
                "recomputed by this engine",
                "ratio",
                "by transformers",
                "ratio",
            ),
            lines,
        ),
        "![time per token](../benchmarks/results/recompute.png)",
    )


def stream(rows: Rows) -> str:
    (row,) = rows
    first, last = settled(row["points"])
    blocks = " to ".join(map(str, sorted({min(row["blocks"]), max(row["blocks"])})))
    return section(
        f"One stream of {row['tokens']:,} tokens",
        "bench_stream",
        f", tiny random model: {blocks} blocks from token 10,000 to the end; resident memory "
        f"{first['rss'] / 2**20:.2f} MiB at {first['tokens']:,} and {last['rss'] / 2**20:.2f} MiB "
        f"at {last['tokens']:,} (slope {row['rss_slope_bytes_per_100k'] / 2**10:+.0f} KiB per "
        f"100,000 tokens); time per token {first['us_per_token']:.0f} and "
        f"{last['us_per_token']:.0f} microseconds (slope "
        f"{100 * row['time_slope_per_100k']:+.1f} % per 100,000).",
    )


def stream_positions(rows: Rows) -> str:
    (row,) = rows
    return paragraph(
        f"Of two such streams that take turns, the one at position {row['far']:,} takes "
        f"{row['ratio']:.3f} times as long per token as the one at {row['near']:,} "
        f"({row['far_us_per_token']:.0f} and {row['near_us_per_token']:.0f} microseconds)."
    ) + ("\n\n![time and memory](../benchmarks/results/stream.png)")


def turns(rows: Rows) -> str:
    (row,) = rows
    return section(
        f"A dialogue of {row['turns']} turns",
        "bench_turns",
        f", {row['turn_tokens']} tokens each way, window {row['window_size']:,}: first token "
        f"after {1e3 * row['early_seconds']:.0f} ms in turns 2 to 6, after "
        f"{1e3 * row['late_seconds']:.0f} ms in the last five. Sending the visible tokens again "
        f"takes {1e3 * row['again_seconds']:,.0f} ms, "
        f"{row['again_seconds'] / row['late_seconds']:.1f} times as long.",
    )


def start(rows: Rows) -> str:
    (row,) = rows
    return section(
        f"`LLM({row['model']!r})` and one short answer",
        "bench_start",
        f": {row['answer_bytes'] / 2**20:.0f} MiB over what importing torch takes, "
        f"{row['kv_resident_bytes'] / 2**20:.0f} of {row['kv_reserved_bytes'] / 2**20:,.0f} MiB of "
        f"KV cache among them; loading takes {row['load_seconds']:.1f} s.",
    )


def open_streams(rows: Rows) -> str:
    (row,) = rows
    return section(
        f"{row['streams']:,} open streams",
        "bench_open_streams",
        " on a cache that holds about 100, tiny random model. An idle stream takes its keys and "
        f"values ({row['kv_bytes'] / 2**10:.1f} KiB) and {row['other_bytes'] / 2**10:.1f} KiB of "
        f"host memory on top. A round of {row['active']} streams, with 8 tokens in and 8 out each, "
        f"takes {1e3 * row['round_seconds']:.0f} ms, parking included.",
    )


def service(rows: Rows) -> str:
    (row,) = rows
    first, last = settled(row["points"])
    return section(
        f"{row['tokens']:,} tokens through `AsyncLLMEngine`",
        "bench_async",
        f" beside a reader that sleeps {1e3 * row['sleep']:.0f} ms per token: resident memory "
        f"{first['rss'] / 2**20:.2f} MiB at {first['tokens']:,} and {last['rss'] / 2**20:.2f} MiB "
        f"at {last['tokens']:,}; at the end, the slow reader's stream is no more "
        f"than {row['max_unread']} tokens ahead of it.",
    )


def batch_crash(rows: Rows) -> str:
    (row,) = rows
    return section(
        f"A batch of {row['documents']:,} documents that is killed",
        "bench_batch crash",
        f", tiny random model, two engines. After a third of {row['shards']} shards an engine is "
        f"killed, after {row['shards_before_the_driver_died']} the driver with all that it has "
        f"started. The resumed run has {row['outputs']:,} outputs: {row['missing']} are missing, "
        f"{row['twice']} are there twice, {row['different']} differ from an undisturbed run.",
    )


def batch_overhead(rows: Rows) -> str:
    by_what = {row["what"]: row for row in rows}
    alone, ray = by_what["alone"], by_what["ray"]
    return section(
        "What Ray costs a batch",
        "bench_batch overhead",
        f", {ray['documents']} documents, {ray['engines']} engines of one thread: "
        f"{ray['rate']:.2f} documents per second and engine. In as many processes with one `LLM` "
        f"each and nothing else it is {alone['rate']:.2f}, so a batch reaches "
        f"{100 * ray['share']:.1f} %.",
    )


def pool(rows: Rows) -> str:
    (row,) = rows
    return section(
        f"A pool with {row['streams']} streams that loses a replica",
        "bench_pool",
        f", two replicas, {row['turns']} turns each: {row['streams_that_went_on']} streams went "
        f"on, {row['streams_with_a_wrong_answer']} with a wrong answer. "
        f"{row['streams_on_the_killed_replica']} were on the killed replica, and "
        f"{row['tokens_replayed']:,} of their tokens were computed again (with a save every "
        f"{row['save_every_tokens']}).",
    )


# In the order of the page, by the files that they are made of.
SECTIONS: tuple[tuple[tuple[str, ...], Callable[[Rows], str]], ...] = (
    (
        tuple(
            f"sink_effect_{model}"
            for model in ("smollm2-135m-instruct", "qwen2.5-coder-0.5b", "gemma-3-270m")
        ),
        perplexity,
    ),
    (("quantized_perplexity_smollm2-135m-instruct",), quantized),
    (("decode",), decode),
    (("prefill",), prefill),
    (("peer_transformers", "peer_vllm", "peer_llama_cpp"), peers),
    (("speculation",), speculation),
    (("attention",), attention),
    (("overhead",), overhead),
    (("recompute",), recompute),
    (("start",), start),
    (("stream",), stream),
    (("stream_positions",), stream_positions),
    (("turns",), turns),
    (("open_streams",), open_streams),
    (("async",), service),
    (("batch_crash",), batch_crash),
    (("batch_overhead",), batch_overhead),
    (("pool",), pool),
)


def render(results: Mapping[str, Rows]) -> str:
    """The part of the page between the markers."""
    parts: list[str] = []
    machines: dict[str, set[str]] = {}
    for names, write in SECTIONS:
        if rows := [row for name in names for row in results.get(name, ())]:
            parts.append(write(rows))
            for machine in (row["machine"] for row in rows):
                what = "{cpu} ({isa}), {threads} thread{s}, torch {torch}".format(
                    **machine, s="" if machine["threads"] == 1 else "s"
                )
                machines.setdefault(what, set()).add(machine.get("date"))
    measured = []
    for what, dates in machines.items():
        days = sorted(date for date in dates if date)
        measured.append(what + (f", {' to '.join(sorted({days[0], days[-1]}))}" if days else ""))
    return "\n\n".join([paragraph(f"Measured on {'; '.join(measured)}."), *parts])


def summary(results: Mapping[str, Rows]) -> str:
    """The README's one table."""
    return table(("what", "here", "beside it"), summary_lines(results))


def insert(text: str, part: str) -> str:
    """``text`` with ``part`` between the markers.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in before or END in after:
        raise ValueError(f"the page must have these two lines once: {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{part}\n\n{END}{after}"


def pages(results: Mapping[str, Rows]) -> dict[Path, str]:
    """Every page that figures are written into, as it should be."""
    parts = {README: summary(results), MEASUREMENTS: render(results)}
    return {page: insert(page.read_text(), part) for page, part in parts.items()}


def main() -> None:
    parser(__doc__).parse_args()
    for page, text in pages(read_results()).items():
        page.write_text(text)
        print(f"wrote {page}")


if __name__ == "__main__":
    main()
