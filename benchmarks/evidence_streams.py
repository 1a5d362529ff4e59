"""Sections of docs/evidence.md about attention, training, and what streams remember."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.evidence_text import (
    NAMES,
    Rows,
    by_variant,
    claim,
    command,
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
            f"The text has {rows[0]['tokens']:,} tokens. Queries beyond "
            f"{rows[0]['first_query']:,} give the first 4 tokens a share of {mean:.3f} of their "
            f"attention, averaged over layers and heads (independent figure: "
            f"{MEAN_SHARES[key]:.3f}). In the layer that gives most, it is {max(per_layer):.2f}. "
        )
        if first:
            text += (
                f"In layers where it is above 0.1, at least {percent(min(first))} of it goes to "
                f"the first token alone{': the model has one sink' if min(first) > 0.9 else ''}. "
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
                text + "As in the paper, the lowest layers attend to what is near, and above them "
                "the first token is the bright column. That begins with layer 2 in Llama-2-7B, and "
                "later here."
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
            f"{size['batch_size']}) read the same slices of five novels. They are evaluated on the "
            f"first {size['eval_tokens']:,} tokens of the sixth. "
            + claim(
                "the trained sink token alone does as well as four sink tokens on the vanilla "
                f"model ({signed(one / four)})",
                one <= 1.01 * four,
            )
            + " Without any sink token, the perplexity of the model that was trained with one is "
            f"{found['sink token', 0] / one:.2f} times as high, and that of the vanilla model "
            f"{found['vanilla', 0] / four:.2f} times. The paper's models have 160 million "
            "parameters and were trained for 143,000 steps of 256. Attention settles on a sink "
            "as training goes on."
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
                f"answered. Of {seen:,} about a line that was visible, {right} were. "
                + claim("recall is zero past the window", hits == 0)
                + " Sink tokens are no memory. The paper has, for Llama-2-7B-32K-Instruct with "
                "4 + 2044, 85.8 % at 20 lines, 75.3 % at 80, and 0 from 100 on. With 4 + 8188 it "
                "has 62.8 % at 200 and 0 from 400 on. Its data was never published. Lines and "
                "questions here follow its description: 23 tokens per line, a question after "
                "every ten, and answers that stay in the stream. How much of what is visible is "
                "found depends on the model, and this one is small."
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
                "Pairs of question and answer follow each other in one stream. What the model says "
                "is right if the answer stands in it. One-shot asks each question in a stream of "
                "its own. The paper has, for ARC-Easy and Llama-2-7B-Chat with 1,024 tokens "
                "visible: one-shot 71.3 %, dense out of memory, window 3.6 %, streaming 71.3 %. "
                "ARC is in no package that these experiments can fetch. So the questions are about "
                "capitals, from the quiz of the BSD games, and the models are small. In the second "
                f"half, streaming is right in {percent(streaming)}, one-shot in "
                f"{percent(one_shot)}, dense in {percent(dense)}, and the plain window in "
                f"{percent(window)}. "
                + claim("streaming does at least as well as one-shot", streaming >= one_shot)
                + " It sees as many earlier answers as its window holds, and they serve as "
                "examples that one-shot does not have. "
                + claim(
                    "the plain window, which sees them too, gets less than half of what streaming "
                    "gets",
                    window < streaming / 2,
                )
            ),
            picture(f"dialogue_{key}", "exact match so far, round by round"),
        ]

    return write
