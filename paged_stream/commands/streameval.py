"""The command ``paged-stream streameval``."""

from __future__ import annotations

import argparse
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

SINKS = settings_group("visible tokens", EngineConfig, only=("num_sink_tokens",))


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache",
        nargs="+",
        type=int,
        default=[1024],
        metavar="N",
        help="sinks and window together, one run for each (default: 1024)",
    )
    parser.add_argument(
        "--distances",
        nargs="+",
        type=int,
        default=[0, 10, 20, 40, 60, 80],
        metavar="LINES",
        help="how far back the line is that is asked for (default: 0 10 20 40 60 80)",
    )
    parser.add_argument("--questions", type=int, default=50, help="per cache and distance")
    parser.add_argument("--seed", type=int, default=0, help="of the lines (default: 0)")
    add_outputs(parser)


def run(args: argparse.Namespace) -> int:
    engine = ENGINE.read(args)
    from paged_stream.evaluation import plots, report
    from paged_stream.evaluation.perplexity import make_engine
    from paged_stream.evaluation.streameval import check_distances, measure_recall
    from paged_stream.evaluation.variants import Variant

    check_positive("questions", args.questions)
    for cache in args.cache:
        check_cache(args.num_sink_tokens, cache)
    check_distances(args.distances)
    check_outputs(args)
    rows: list[dict[str, Any]] = []
    for cache in args.cache:
        variant = Variant.streaming(args.num_sink_tokens, cache - args.num_sink_tokens)
        measured = measure_recall(
            make_engine(variant, 1, engine),
            variant.name,
            args.distances,
            questions=args.questions,
            seed=args.seed,
            show_progress=True,
        )
        rows += [shared_fields(engine) | {"cache": cache} | row for row in measured]
        if args.json is not None:
            report.write_json(args.json, rows)
    print(report.columns(_table(rows)))
    if args.plot is not None:
        plots.plot_recall(rows, args.plot)
    return 0


def _table(rows: list[dict[str, Any]]) -> list[list[str]]:
    head = ["sinks+window", "lines back", "recall %", "right", "of visible", "of gone"]
    return [head] + [
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


COMMAND = Command(
    name="streameval",
    description=(
        "Questions about a stream while it grows: recall against distance. What has left the "
        "window is not found."
    ),
    example="paged-stream streameval --cache 512 1024 --distances 10 20 40 --plot recall.png",
    groups=(SINKS, ENGINE),
    add_options=add_options,
    run=run,
)
