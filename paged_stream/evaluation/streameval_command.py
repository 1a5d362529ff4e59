"""The command ``paged-stream streameval``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from paged_stream.evaluation.command_options import (
    add_model_options,
    add_outputs,
    check_outputs,
    check_positive,
    engine_settings,
    shared_fields,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache",
        nargs="+",
        type=int,
        default=[1024],
        metavar="N",
        help="sinks and window together, one run for each (default: 1024)",
    )
    parser.add_argument("--num-sink-tokens", type=int, default=4, metavar="S")
    parser.add_argument(
        "--distances",
        nargs="+",
        type=int,
        default=[0, 10, 20, 40, 60, 80],
        metavar="LINES",
        help="how far back the line is that is asked for (default: 0 10 20 40 60 80)",
    )
    parser.add_argument("--questions", type=int, default=50, help="per cache and distance")
    parser.add_argument("--seed", type=int, default=0)
    group = parser.add_argument_group("a dialogue instead, with one cache")
    group.add_argument(
        "--dialogue",
        type=Path,
        metavar="FILE",
        help='JSON lines with "question", "answer" and, for an answer in a sentence, "reply"',
    )
    group.add_argument("--rounds", type=int, help="of the dialogue (default: all questions)")
    group.add_argument(
        "--answer-tokens", type=int, default=16, help="that the model may say, at most"
    )
    group.add_argument(
        "--modes",
        nargs="+",
        default=["one-shot", "dense", "window", "streaming"],
        metavar="MODE",
        help="of the dialogue: some of one-shot, dense, window, streaming (default: all)",
    )
    add_outputs(parser)
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    from paged_stream.evaluation.streameval import check_distances
    from paged_stream.evaluation.variants import check_sizes

    for name in ("questions", "rounds", "answer_tokens"):
        check_positive(name, getattr(args, name))
    for cache in args.cache:
        if cache <= args.num_sink_tokens:
            raise ValueError(
                f"cache must be more than num_sink_tokens={args.num_sink_tokens}, got {cache}"
            )
        check_sizes(args.num_sink_tokens, cache - args.num_sink_tokens)
    check_distances(args.distances)
    check_outputs(args)
    return _recall(args) if args.dialogue is None else _dialogue(args)


def _recall(args: argparse.Namespace) -> int:
    from paged_stream.evaluation import plots, report
    from paged_stream.evaluation.perplexity import make_engine
    from paged_stream.evaluation.streameval import measure_recall
    from paged_stream.evaluation.variants import Variant

    rows: list[dict[str, Any]] = []
    for cache in args.cache:
        variant = Variant.streaming(args.num_sink_tokens, cache - args.num_sink_tokens)
        measured = measure_recall(
            make_engine(variant, 1, engine_settings(args)),
            variant.name,
            args.distances,
            questions=args.questions,
            seed=args.seed,
            use_tqdm=sys.stderr.isatty(),
        )
        rows += [shared_fields(args) | {"cache": cache} | row for row in measured]
        if args.json is not None:
            report.write_json(args.json, rows)
    head = ["sinks+window", "lines back", "recall %", "right", "of visible", "of gone"]
    lines = [
        [
            row["variant"],
            str(row["distance"]),
            f"{100 * row['recall']:.1f}",
            f"{row['hits']}/{row['questions']}",
            f"{row['visible_hits']}/{row['visible']}",
            f"{row['gone_hits']}/{row['gone']}",
        ]
        for row in rows
    ]
    print(report.columns([head, *lines]))
    if args.plot is not None:
        plots.plot_recall(rows, args.plot)
    return 0


def _dialogue(args: argparse.Namespace) -> int:
    from paged_stream.evaluation import plots, report
    from paged_stream.evaluation.dialogue import longest, measure_dialogue, read_pairs
    from paged_stream.evaluation.perplexity import make_engine, tokenizer_of
    from paged_stream.evaluation.variants import modes

    if len(args.cache) != 1:
        raise ValueError(f"cache must be one size for a dialogue, got {args.cache}")
    sizes = args.num_sink_tokens, args.cache[0] - args.num_sink_tokens
    variants = [
        (name, modes(["dense" if name == "one-shot" else name], *sizes)[0]) for name in args.modes
    ]
    pairs = read_pairs(args.dialogue)[: args.rounds]
    num_tokens = longest(tokenizer_of(args.model).encode, pairs, args.answer_tokens)
    rows: list[dict[str, Any]] = []
    for name, variant in variants:
        one_shot = name == "one-shot"
        row = measure_dialogue(
            make_engine(variant, num_tokens, engine_settings(args)),
            name if one_shot else variant.name,
            pairs,
            answer_tokens=args.answer_tokens,
            one_shot=one_shot,
            use_tqdm=sys.stderr.isatty(),
        )
        rows.append(shared_fields(args) | {"cache": args.cache[0]} | row)
        if args.json is not None:
            report.write_json(args.json, rows)
    head = ["sinks+window", "rounds", "exact match %", "second half %", "tokens"]
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
