"""``paged-stream batch``: options, and what the user sees of a run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

DESCRIPTION = (
    "Run a model over a corpus of any size, on one machine or a Ray cluster. Output is committed "
    "shard by shard; after any crash, --resume goes on without losing or repeating a row."
)
EXAMPLE = (
    "paged-stream batch --input questions.jsonl --output answers --max-tokens 100\n"
    "  paged-stream batch --input books/ --output scores --task score --window-size 2044"
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what a batch takes beside the options of engine and sampling."""
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="PATH",
        help="JSON lines, Parquet or text: files, folders, URIs such as s3://bucket/folder",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--task", default="generate", help="generate, score or chat")
    parser.add_argument(
        "--prompt-column", metavar="NAME", help="default: prompt, text or messages, by task"
    )
    parser.add_argument(
        "--prompt-template", metavar="JINJA", help='such as "Summarise: {{ text }}"'
    )
    parser.add_argument("--replicas", type=int, metavar="N", help="default: one per GPU or node")
    parser.add_argument("--format", default="parquet", help="parquet or jsonl")
    parser.add_argument("--resume", action="store_true", help="go on with the run in DIR")
    parser.add_argument(
        "--dry-run", action="store_true", help="read 5 rows, print the plan, run nothing"
    )
    parser.add_argument("--shard-bytes", metavar="BYTES", help="input per commit, such as 4MiB")
    parser.add_argument("--max-num-seqs", type=int, metavar="N", help="rows at a time per replica")


def run(args: argparse.Namespace, engine: Mapping[str, Any], sampling_params: Any) -> int:
    """Run a batch, or tell what it would do.

    Raises:
        ValueError: settings or inputs that must change.
        ImportError: Ray is not installed.
    """
    from paged_stream.system.ray_extra import import_ray

    import_ray("data")  # says so before anything is looked at
    from paged_stream.batch.batch_config import BatchConfig
    from paged_stream.batch.run import describe_batch, run_batch

    config = BatchConfig(
        inputs=args.input,
        output=args.output,
        model=args.model,
        task=args.task,
        prompt_column=args.prompt_column,
        prompt_template=args.prompt_template,
        sampling_params=sampling_params,
        engine=engine,
        format=args.format,
        replicas=args.replicas,
        shard_bytes=args.shard_bytes,
        resume=args.resume,
    )
    if args.dry_run:
        print(describe_batch(config))
        return 0
    try:
        summary = run_batch(config)
    except KeyboardInterrupt:
        print("\ninterrupted; --resume goes on with what is left", file=sys.stderr)
        return 130
    print(summary.table())
    return 0
