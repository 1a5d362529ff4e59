"""The command ``paged-stream attention-map``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from paged_stream.commands.command import Command
from paged_stream.commands.evaluation_options import (
    add_outputs,
    check_outputs,
    check_positive,
    shared_fields,
)
from paged_stream.commands.options import engine_group, settings_group
from paged_stream.config import EngineConfig

if TYPE_CHECKING:
    import torch

SINKS = settings_group("visible tokens", EngineConfig, only=("num_sink_tokens",))
# There is no cache, and no step of an engine.
MODEL = engine_group(
    only=("model", "tokenizer", "cache_dir", "dtype", "quantization", "num_threads")
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", metavar="TEXT", help="a UTF-8 file")
    parser.add_argument("--length", type=int, default=16, help="tokens per sample of the maps")
    parser.add_argument("--samples", type=int, default=256, help="that the maps are averaged over")
    parser.add_argument("--layers", nargs="+", type=int, help="to draw (default: six of them)")
    parser.add_argument("--heads", nargs="+", type=int, default=[0], help="to draw (default: 0)")
    parser.add_argument(
        "--share-length", type=int, default=2048, help="tokens of the text for the shares"
    )
    parser.add_argument(
        "--first-query", type=int, default=512, help="shares are averaged from this position on"
    )
    add_outputs(parser)


def run(args: argparse.Namespace) -> int:
    from paged_stream.evaluation import plots, report
    from paged_stream.evaluation.attention_map import AttentionProbe

    model = MODEL.read(args)
    ids = _token_ids(args, model)
    probe = AttentionProbe(**model, show_progress=True)
    layers = _drawn_layers(args.layers, probe.config.num_layers)
    _check_indices("heads", args.heads, probe.config.num_heads)
    shares = probe.sink_shares(
        ids[: args.share_length], num_sinks=args.num_sink_tokens, first_query=args.first_query
    )
    per_layer = shares.mean(dim=1)
    print(report.columns(_table(per_layer)))
    if args.json is not None:
        settings = {"tokens": args.share_length, "first_query": args.first_query}
        rows = [
            {"layer": layer, "shares": shares[layer].tolist(), "share": float(row.sum())}
            for layer, row in enumerate(per_layer)
        ]
        report.write_json(args.json, [shared_fields(model) | settings | row for row in rows])
    if args.plot is not None:
        length = args.length
        samples = [ids[i * length : (i + 1) * length] for i in range(args.samples)]
        logits = probe.average_logits(samples)[layers][:, args.heads]
        drawn = logits, layers, args.heads, per_layer
        plots.plot_attention(*drawn, args.plot, model=str(model["model"]))
    return 0


def _token_ids(args: argparse.Namespace, model: dict[str, Any]) -> list[int]:
    """The tokens of the text; raises ValueError if options are out of range or they are too few."""
    from paged_stream.evaluation.corpus import read_texts
    from paged_stream.evaluation.perplexity import tokenizer_of

    for name in ("length", "samples", "share_length", "num_sink_tokens"):
        check_positive(name, getattr(args, name))
    if not 0 <= args.first_query < args.share_length:
        raise ValueError(
            f"first_query must be in [0, share_length={args.share_length}), got {args.first_query}"
        )
    check_outputs(args)
    (text,) = read_texts([args.text])
    ids = tokenizer_of(model).encode(text)
    needed = max(args.share_length, args.length * args.samples)
    if len(ids) < needed:
        raise ValueError(f"{args.text} must have at least {needed} tokens, it has {len(ids)}")
    return ids


def _table(per_layer: torch.Tensor) -> list[list[str]]:
    """The share of each first token, [layers, tokens], a row per layer and one for their mean."""
    head = ["layer", *(f"token {i}" for i in range(per_layer.shape[1])), "together"]
    names = [*map(str, range(per_layer.shape[0])), "mean"]
    shares = [*per_layer, per_layer.mean(dim=0)]
    return [head] + [
        [name, *(f"{share:.3f}" for share in row.tolist()), f"{row.sum():.3f}"]
        for name, row in zip(names, shares, strict=True)
    ]


def _drawn_layers(asked: list[int] | None, num_layers: int) -> list[int]:
    if asked is None:
        # The first two, where attention is local, and some of the others, as in the paper.
        return sorted(
            {min(i, num_layers - 1) for i in (0, 1)}
            | {round(k * (num_layers - 1) / 4) for k in range(1, 5)}
        )
    _check_indices("layers", asked, num_layers)
    return asked


def _check_indices(name: str, indices: list[int], count: int) -> None:
    for index in indices:
        if not 0 <= index < count:
            raise ValueError(f"{name} must be in [0, {count}), got {index}")


COMMAND = Command(
    name="attention-map",
    description=(
        "How attention is spread: average logits per layer and head, and the share of the first "
        "tokens."
    ),
    example="paged-stream attention-map book.txt --plot map.png",
    arguments="TEXT",
    groups=(SINKS, MODEL),
    add_options=add_options,
    run=run,
)
