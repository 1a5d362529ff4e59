"""The command ``paged-stream attention-map``."""

from __future__ import annotations

import argparse

from paged_stream.commands.evaluation_options import (
    add_model_options,
    add_outputs,
    check_outputs,
    check_positive,
    engine_settings,
    shared_fields,
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
    parser.add_argument("--num-sink-tokens", type=int, default=4, metavar="S")
    add_outputs(parser)
    add_model_options(parser, has_cache=False)


def run(args: argparse.Namespace) -> int:
    from paged_stream.evaluation import plots, report
    from paged_stream.evaluation.attention_map import AttentionProbe
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
    ids = tokenizer_of(engine_settings(args)).encode(text)
    needed = max(args.share_length, args.length * args.samples)
    if len(ids) < needed:
        raise ValueError(f"{args.text} must have at least {needed} tokens, it has {len(ids)}")
    probe = AttentionProbe(
        args.model,
        dtype=args.dtype,
        quantization=args.quantization,
        cache_dir=args.cache_dir,
        num_threads=args.num_threads,
        show_progress=True,
    )
    layers = _drawn_layers(args.layers, probe.config.num_layers)
    _check_indices("heads", args.heads, probe.config.num_heads)
    shares = probe.sink_shares(
        ids[: args.share_length], num_sinks=args.num_sink_tokens, first_query=args.first_query
    )
    per_layer = shares.mean(dim=1)
    head = ["layer", *(f"token {i}" for i in range(args.num_sink_tokens)), "together"]
    lines = [
        [str(layer), *(f"{share:.3f}" for share in row.tolist()), f"{row.sum():.3f}"]
        for layer, row in enumerate(per_layer)
    ]
    mean = per_layer.mean(dim=0)
    lines.append(["mean", *(f"{share:.3f}" for share in mean.tolist()), f"{mean.sum():.3f}"])
    print(report.columns([head, *lines]))
    if args.json is not None:
        rows = [
            {"layer": layer, "shares": shares[layer].tolist(), "share": float(row.sum())}
            for layer, row in enumerate(per_layer)
        ]
        settings = {"tokens": args.share_length, "first_query": args.first_query}
        report.write_json(args.json, [shared_fields(args) | settings | row for row in rows])
    if args.plot is not None:
        length = args.length
        samples = [ids[i * length : (i + 1) * length] for i in range(args.samples)]
        logits = probe.average_logits(samples)[layers][:, args.heads]
        plots.plot_attention(logits, layers, args.heads, per_layer, args.plot)
    return 0


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
