"""The command ``paged-stream dialogue``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from paged_stream.commands.evaluation_options import (
    add_model_options,
    add_outputs,
    check_cache,
    check_outputs,
    check_positive,
    engine_settings,
    shared_fields,
)

_ONE_SHOT = "one-shot"
_MODES = (_ONE_SHOT, "dense", "window", "streaming")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "pairs",
        type=Path,
        metavar="FILE",
        help='JSON lines with "question", "answer" and, for an answer in a sentence, "reply"',
    )
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=_MODES,
        default=_MODES,
        metavar="MODE",
        help=f"some of {', '.join(_MODES)} (default: all)",
    )
    parser.add_argument(
        "--cache",
        type=int,
        default=1024,
        metavar="N",
        help="sinks and window together (default: 1024)",
    )
    parser.add_argument("--num-sink-tokens", type=int, default=4, metavar="S")
    parser.add_argument("--rounds", type=int, metavar="N", help="default: all of the file")
    parser.add_argument(
        "--answer-tokens",
        type=int,
        default=16,
        metavar="N",
        help="that the model may say to a question (default: 16)",
    )
    add_outputs(parser)
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    from paged_stream.evaluation import plots, report
    from paged_stream.evaluation.dialogue import longest, measure_dialogue, read_pairs
    from paged_stream.evaluation.perplexity import make_engine, tokenizer_of
    from paged_stream.evaluation.variants import Variant, modes

    for name in ("rounds", "answer_tokens"):
        check_positive(name, getattr(args, name))
    check_cache(args.num_sink_tokens, args.cache)
    sizes = args.num_sink_tokens, args.cache - args.num_sink_tokens
    variants = {
        name: Variant.dense() if name == _ONE_SHOT else modes([name], *sizes)[0]
        for name in args.modes
    }
    check_outputs(args)
    pairs = read_pairs(args.pairs)[: args.rounds]
    encode = tokenizer_of(engine_settings(args)).encode
    lengths = [longest(encode, pair, args.answer_tokens) for pair in pairs]
    rows: list[dict[str, Any]] = []
    for name, variant in variants.items():
        one_shot = name == _ONE_SHOT
        row = measure_dialogue(
            make_engine(variant, (max if one_shot else sum)(lengths), engine_settings(args)),
            name if one_shot else variant.name,
            pairs,
            answer_tokens=args.answer_tokens,
            one_shot=one_shot,
            show_progress=True,
        )
        rows.append(shared_fields(args) | {"cache": args.cache} | row)
        if args.json is not None:
            report.write_json(args.json, rows)
    head = ["sinks+window", "rounds", "exact match %", "second half %", "longest stream"]
    lines = [
        [
            row["variant"],
            str(row["rounds"]),
            f"{100 * row['exact_match']:.1f}",
            f"{100 * row['late_match']:.1f}",
            f"{row['tokens']:,}",
        ]
        for row in rows
    ]
    print(report.columns([head, *lines]))
    if args.plot is not None:
        plots.plot_rounds(rows, args.plot)
    return 0
