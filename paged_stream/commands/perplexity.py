"""The command ``paged-stream perplexity``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from paged_stream.commands.evaluation_options import (
    add_model_options,
    add_outputs,
    check_outputs,
    check_positive,
    engine_settings,
    shared_fields,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="UTF-8 files, read in this order")
    parser.add_argument("--tokens", type=int, help="predictions to score (default: all)")
    parser.add_argument(
        "--modes",
        nargs="+",
        default=["dense", "window", "recompute", "streaming"],
        metavar="MODE",
        help="some of dense, window, recompute, streaming (default: all)",
    )
    parser.add_argument(
        "--ablation", help="instead of modes: sinks (0, 1, 2, 4, 8 of them), cache or linebreak"
    )
    parser.add_argument("--num-sink-tokens", type=int, default=4, metavar="S")
    parser.add_argument(
        "--window-size",
        type=int,
        default=1020,
        metavar="W",
        help="the query's own token included, so the paper's 4+1020 is 1021 (default: %(default)s)",
    )
    parser.add_argument(
        "--cache-sizes",
        nargs="+",
        type=int,
        default=[256, 512, 1024, 2048, 4096],
        metavar="N",
        help="of --ablation cache: sinks and window together (default: 256 to 4096)",
    )
    parser.add_argument(
        "--recompute-every",
        type=int,
        default=64,
        metavar="N",
        help="recompute the window for every N-th prediction only (default: %(default)s); the "
        "column `sampled` compares the variants at these",
    )
    parser.add_argument("--every", type=int, help="predictions per point of a curve")
    group = parser.add_argument_group("one long run of a single streaming variant")
    group.add_argument("--cycle", action="store_true", help="begin the texts anew at their end")
    group.add_argument(
        "--save-stream",
        type=Path,
        metavar="FILE",
        help="save the stream after every point, its results as JSON lines in FILE.jsonl",
    )
    group.add_argument("--resume", action="store_true", help="go on with the saved stream")
    add_outputs(parser, curves=True)
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    from paged_stream.evaluation import plots, report
    from paged_stream.evaluation.corpus import read_texts
    from paged_stream.evaluation.perplexity import measure
    from paged_stream.evaluation.variants import ablation, modes

    for name in ("tokens", "every", "recompute_every"):
        check_positive(name, getattr(args, name))
    sizes = args.num_sink_tokens, args.window_size
    if args.ablation is None:
        variants = modes(args.modes, *sizes)
    else:
        variants = ablation(args.ablation, *sizes, cache_sizes=args.cache_sizes)
    check_outputs(args)
    texts = read_texts(args.texts)
    if args.save_stream is not None or args.resume or args.cycle:
        return _long_run(args, variants, texts)
    recomputes = any(variant.recompute for variant in variants)
    rows = []
    scores = []
    for variant in variants:
        scores.append(
            measure(
                variant,
                texts,
                engine=engine_settings(args),
                num_tokens=args.tokens,
                every=args.every,
                sample_every=args.recompute_every if recomputes else None,
                show_progress=True,
            )
        )
        rows = [shared_fields(args) | row for row in report.summarize(scores)]
        if args.json is not None:
            report.write_json(args.json, rows)  # survives a Ctrl-C
    print(report.table(rows))
    if args.csv is not None:
        report.write_curves(args.csv, rows)
    if args.plot is not None:
        draw = plots.plot_curves if args.ablation is None else plots.plot_ablation
        draw(rows, args.plot)
    return 0


def _long_run(args: argparse.Namespace, variants: list[Any], texts: list[str]) -> int:
    from paged_stream.evaluation import plots, report
    from paged_stream.evaluation.long_run import measure_long

    if args.save_stream is None:
        raise ValueError("save_stream must be given with cycle and resume")
    if len(variants) != 1:
        names = ", ".join(variant.name for variant in variants)
        raise ValueError(f"save_stream runs one variant, such as --modes streaming, got {names}")
    score = measure_long(
        variants[0],
        texts,
        engine=engine_settings(args),
        num_tokens=args.tokens,
        every=args.every or 16_384,
        cycle=args.cycle,
        save_stream=args.save_stream,
        resume=args.resume,
        show_progress=True,
    )
    rows = [shared_fields(args) | row for row in report.summarize([score])]
    print(report.table(rows))
    if args.json is not None:
        report.write_json(args.json, rows)
    if args.csv is not None:
        report.write_curves(args.csv, rows)
    if args.plot is not None:
        plots.plot_long(rows[0], args.plot)
    return 0
