"""Sections of docs/evidence.md about attention, training, and what streams remember."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.evidence_text import (
    NAMES,
    Rows,
    by_variant,
    command,
    holds,
    number,
    percent,
    picture,
    signed,
)
from benchmarks.report import paragraph, table

# Shares of attention on the first 4 tokens, 2,048 tokens of Persuasion, queries past 512, from
# transformers' own weights without this engine: layers 12 to 29, and the mean of all.
SHARES = "0.34 0.34 0.42 0.39 0.25 0.49 0.55 0.37 0.39 0.39 0.44 0.57 0.50 0.50 0.51 0.39 0.46 0.28"
MEAN_SHARES = {"smollm2": 0.256, "qwen": 0.206}


def attention(key: str) -> Callable[[Rows], list[str]]:
    def write(rows: Rows) -> list[str]:
        per_layer = [row["share"] for row in rows]
        mean = sum(per_layer) / len(per_layer)
        first = [
            sum(head[0] for head in row["shares"]) / len(row["shares"]) / max(row["share"], 1e-9)
            for row in rows
            if row["share"] > 0.1
        ]
        text = (
            f"Share of attention that the first 4 tokens get from queries beyond "
            f"{rows[0]['first_query']:,} of {rows[0]['tokens']:,} tokens: {mean:.3f} on average "
            f"over layers and heads (independent figure: {MEAN_SHARES[key]:.3f}), "
            f"{max(per_layer):.2f} in the layer that has most. "
        )
        if first:
            text += (
                f"In layers where it is above 0.1, at least {percent(min(first))} of it is the "
                f"first token's alone{': the model has one sink' if min(first) > 0.9 else ''}. "
            )
        if key == "smollm2" and rows[0]["tokens"] == 2048:
            expected = map(float, SHARES.split())
            gaps = [abs(a - b) for a, b in zip(per_layer[12:], expected, strict=True)]
            text += (
                f"Layers 12 to 29 differ from the independent figures by {max(gaps):.3f} at most. "
            )
        return [
            f"## {NAMES[key]}: where attention goes (figure 2)",
            command(rows),
            paragraph(
                text + "As in the paper, the lowest layers attend to what is near, and beyond them "
                "the first token is the bright column. In Llama-2-7B that begins with layer 2, "
                "here later."
            ),
            picture(f"attention_{key}", "average attention logits, and shares of the first tokens"),
        ]

    return write


PAPER_TRAINED = {
    "vanilla": (27.87, 18.49, 18.05, 18.05),
    "1 learnable sink": (1235, 18.01, 18.01, 18.02),
}


def sink_token(rows: Rows) -> list[str]:
    found = {(row["kind"], row["sinks"]): row["perplexity"] for row in rows}
    counts = sorted({row["sinks"] for row in rows})
    size = rows[0]
    lines = [
        (kind, *(number(found[kind, count]) for count in counts))
        for kind in ("vanilla", "sink token")
    ]
    lines += [(f"paper: {name}", *map(number, f)) for name, f in PAPER_TRAINED.items()]
    one, four = found["sink token", 1], found["vanilla", 4]
    head = ["model", *(f"{count}+{size['cache'] - count}" for count in counts)]
    return [
        "## Training with a sink token (table 3)",
        command(rows),
        table(head, lines),
        paragraph(
            f"Two models of one shape ({size['num_layers']} layers of {size['hidden_size']}, "
            f"{size['context']} tokens per sample, {size['steps']:,} steps of "
            f"{size['batch_size']}), the same slices of five novels, evaluated on the first "
            f"{size['eval_tokens']:,} tokens of the sixth. That the trained sink token alone does "
            f"as well as four sink tokens on the vanilla model {holds(one <= 1.01 * four)}: "
            f"{signed(one / four)}. Without any sink token, the one that was trained with it is "
            f"{found['sink token', 0] / one:.2f} times as perplexed, the vanilla model "
            f"{found['vanilla', 0] / four:.2f} times. The paper's models have 160 million "
            "parameters and were trained for 143,000 steps of 256; attention that settles on a "
            "sink grows with training."
        ),
    ]


def recall(key: str) -> Callable[[Rows], list[str]]:
    def write(rows: Rows) -> list[str]:
        variants = list(dict.fromkeys(row["variant"] for row in rows))
        distances = sorted({row["distance"] for row in rows})
        found = {(row["variant"], row["distance"]): row for row in rows}
        lines = [
            (distance, *(percent(found[variant, distance]["recall"]) for variant in variants))
            for distance in distances
        ]
        gone, hits = (sum(row[name] for row in rows) for name in ("gone", "gone_hits"))
        seen, right = (sum(row[name] for row in rows) for name in ("visible", "visible_hits"))
        return [
            f"## {NAMES[key]}: StreamEval, recall against distance (table 7)",
            command(rows),
            table(("lines back", *variants), lines),
            paragraph(
                f"Of {gone:,} questions about a line that had left the window, {hits} were "
                f"answered; of {seen:,} about one that was visible, {right}. That recall is zero "
                f"past the window {holds(hits == 0)}: sink tokens are no memory. The paper has, "
                "for Llama-2-7B-32K-Instruct with 4 + 2044, 85.8 % at 20 lines, 75.3 % at 80, 0 "
                "from 100 on; with 4 + 8188, 62.8 % at 200 and 0 from 400 on. Its data was never "
                "published: lines and questions here follow its description (23 tokens per line, a "
                "question after every ten, answers stay in the stream). How much of what is "
                "visible is found depends on the model, and this one is small."
            ),
            picture(f"recall_{key}", "recall against distance"),
        ]

    return write


def dialogue(key: str) -> Callable[[Rows], list[str]]:
    def write(rows: Rows) -> list[str]:
        lines = [
            (
                row["variant"],
                f"{row['tokens']:,}",
                percent(row["exact_match"]),
                percent(row["late_match"]),
            )
            for row in rows
        ]
        found = {name: row["late_match"] for name, row in by_variant(rows).items()}
        one_shot, dense = found["one-shot"], found["dense"]
        window = next(share for name, share in found.items() if name.startswith("0+"))
        streaming = next(share for name, share in found.items() if name[0] in "123456789")
        return [
            f"## {NAMES[key]}: {rows[0]['rounds']} questions in one stream (table 5)",
            command(rows),
            table(("visible", "longest stream", "exact match", "second half"), lines),
            paragraph(
                "Pairs of question and answer are concatenated to one stream; what the model says "
                "where an answer should come is right if the answer stands in it. One-shot asks "
                "each question in a stream of its own. Paper, ARC-Easy, Llama-2-7B-Chat, 1,024 "
                "tokens visible: one-shot 71.3 %, dense out of memory, window 3.6 %, streaming "
                "71.3 %. ARC is in no package that these experiments can fetch; the questions "
                "are about capitals, from the quiz of the BSD games, and the models small. In the "
                f"second half, streaming is right in {percent(streaming)}, one-shot in "
                f"{percent(one_shot)}, dense in {percent(dense)}, the plain window in "
                f"{percent(window)}. That streaming does at least as well as one-shot "
                f"{holds(streaming >= one_shot)}: earlier answers, of which it sees as many as "
                "its window holds, serve as examples that one-shot does not have. That the plain "
                f"window, which sees them too, gets less than half of what streaming gets "
                f"{holds(window < streaming / 2)}."
            ),
            picture(f"dialogue_{key}", "exact match so far, round by round"),
        ]

    return write
