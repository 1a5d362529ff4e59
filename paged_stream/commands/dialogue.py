"""The command ``paged-stream dialogue``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from paged_stream.commands.command import Command
from paged_stream.commands.evaluation_options import (
    ENGINE,
    add_outputs,
    check_cache,
    check_outputs,
    check_positive,
    shared_fields,
)
from paged_stream.commands.options import settings_group
from paged_stream.config import EngineConfig

_ONE_SHOT = "one-shot"
_MODES = (_ONE_SHOT, "dense", "window", "streaming")


SINKS = settings_group("visible tokens", EngineConfig, only=("num_sink_tokens",))


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
    parser.add_argument("--rounds", type=int, metavar="N", help="default: all of the file")
    parser.add_argument(
        "--answer-tokens",
        type=int,
        default=16,
        metavar="N",
        help="that the model may say to a question (default: 16)",
    )
    add_outputs(parser)


def run(args: argparse.Namespace) -> int:
    engine = ENGINE.read(args)
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
    encode = tokenizer_of(engine).encode
    lengths = [longest(encode, pair, args.answer_tokens) for pair in pairs]
    rows: list[dict[str, Any]] = []
    for name, variant in variants.items():
        one_shot = name == _ONE_SHOT
        row = measure_dialogue(
            make_engine(variant, (max if one_shot else sum)(lengths), engine),
            name if one_shot else variant.name,
            pairs,
            answer_tokens=args.answer_tokens,
            one_shot=one_shot,
            show_progress=True,
        )
        rows.append(shared_fields(engine) | {"cache": args.cache} | row)
        if args.json is not None:
            report.write_json(args.json, rows)
    print(report.columns(_table(rows)))
    if args.plot is not None:
        plots.plot_rounds(rows, args.plot)
    return 0


def _table(rows: list[dict[str, Any]]) -> list[list[str]]:
    head = ["sinks+window", "rounds", "exact match %", "second half %", "longest stream"]
    return [head] + [
        [
            row["variant"],
            str(row["rounds"]),
            f"{100 * row['exact_match']:.1f}",
            f"{100 * row['late_match']:.1f}",
            f"{row['tokens']:,}",
        ]
        for row in rows
    ]


COMMAND = Command(
    name="dialogue",
    description=(
        "Questions with known answers one after the other in one stream, by exact match; one-shot "
        "asks each in a stream of its own."
    ),
    example="paged-stream dialogue questions.jsonl --cache 1024 --plot dialogue.png",
    arguments="FILE",
    groups=(SINKS, ENGINE),
    add_options=add_options,
    run=run,
)
