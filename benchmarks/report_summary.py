"""The few figures of the README: one line each, from the files in ``benchmarks/results``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]
Line = tuple[str, str, str]
_PEERS = ("peer_transformers", "peer_vllm", "peer_llama_cpp")
_SHOWN = (("decode", 1, 64), ("decode", 64, 64), ("prefill", 1, 2048))


def summary_lines(results: Mapping[str, Rows]) -> Iterator[Line]:
    """What was measured, the figure here, and what it is to be compared with."""
    peers = [row for name in _PEERS for row in results.get(name, ())]
    for ours in ("bfloat16", "auto"):
        for case in _SHOWN:
            yield from _speed(peers, ours, case)
    yield from _recompute(results)
    yield from _perplexity(results)
    yield from _long_stream(results)
    for row in results.get("batch_crash", ()):
        what = f"batch of {row['documents']:,} documents, engine and driver killed, resumed"
        counts = f"{row['missing']} missing, {row['twice']} twice, {row['different']} different"
        yield what, f"{row['outputs']:,} outputs", counts
    for row in results.get("pool", ()):
        what = f"pool of two engines with {row['streams']} streams, one engine killed"
        wrong = f"{row['streams_with_a_wrong_answer']} with a wrong answer"
        yield what, f"{row['streams_that_went_on']} streams went on", wrong


def _speed(peers: Rows, ours: str, case: tuple[str, int, int]) -> Iterator[Line]:
    """One line for all peers that ran a case with weights of the same size, each at its best."""
    rows = [
        row
        for row in peers
        if (row["task"], row["batch"], row["prompt"]) == case and row["ours"] == ours
    ]
    best: dict[str, float] = {}
    for row in rows:
        name = row["peer"].split(",")[0]
        best[name] = max(best.get(name, 0.0), row["peer_tokens_per_second"])
    if rows:
        task, batch, prompt = case
        size = f"batch {batch}" if task == "decode" else f"{prompt:,} tokens"
        weights = "weights in the file's 4 bits" if ours == "auto" else ours
        here = f"{rows[0]['tokens_per_second']:,.0f} tokens/s"
        others = "; ".join(f"{name} {speed:,.0f}" for name, speed in best.items())
        yield f"{task}, {size}, {weights}", here, others


def _recompute(results: Mapping[str, Rows]) -> Iterator[Line]:
    for row in results.get("recompute", ()):
        if row["cache_size"] == 1024:
            yield (
                "time per token with 1,024 visible, far past the window",
                f"{1e3 * row['streaming_seconds']:.1f} ms",
                f"window recomputed by transformers {1e3 * row['transformers_seconds']:,.0f} ms",
            )


def _perplexity(results: Mapping[str, Rows]) -> Iterator[Line]:
    found = {
        row["case"]: row["perplexity"]
        for row in results.get("sink_effect_smollm2-135m-instruct", ())
        if (row["text"], row["tokens"]) == ("persuasion", "0-8192")
    }
    if {"4+2044", "0+2048", "dense"} <= found.keys():
        yield (
            "perplexity of 8,192 tokens, 4 sink tokens + window of 2,044",
            f"{found['4+2044']:.2f}",
            f"everything visible {found['dense']:.2f}; window alone {found['0+2048']:.2f}",
        )


def _long_stream(results: Mapping[str, Rows]) -> Iterator[Line]:
    for row in results.get("stream", ()):
        points = row["points"]
        first = next((p for p in points if p["tokens"] >= 10_000), points[-1])
        last = points[-1]
        yield (
            f"one stream (tiny model), token {first['tokens']:,} → {last['tokens']:,}",
            f"{first['us_per_token']:.0f} → {last['us_per_token']:.0f} µs per token",
            f"resident memory {first['rss'] / 2**20:.1f} → {last['rss'] / 2**20:.1f} MiB",
        )
