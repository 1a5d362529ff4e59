"""What do LoRA adapters cost a batch that decodes?

    python -m benchmarks.bench_adapters
    python -m benchmarks.bench_adapters --rank 64 --batch 32

A batch of requests without adapters, and the same batch with several of them, take turns in one
engine. The adapters are random, and change what PEFT changes by default (Q and V), or every
projection. What reading their matrices adds to reading the
weights, once per step, says how much is left at most.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.harness import add_results_option, alternate, parser, spread, write_results
from paged_stream import LLM, LoRARequest, SamplingParams
from paged_stream.models.model_config import ModelConfig

MODEL = "smollm2-135m-instruct"
TARGETS = {
    "Q and V": ("q_proj", "v_proj"),
    "all": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}


def shapes(config: ModelConfig) -> dict[str, tuple[str, int, int]]:
    """Of each projection of a Llama: the block that it is in, its inputs and its outputs."""
    hidden, inner, query, kv = (
        config.hidden_size,
        config.intermediate_size,
        config.query_size,
        config.kv_size,
    )
    attention = {
        "q_proj": (hidden, query),
        "k_proj": (hidden, kv),
        "v_proj": (hidden, kv),
        "o_proj": (query, hidden),
    }
    mlp = {"gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden)}
    return {name: ("self_attn", *sizes) for name, sizes in attention.items()} | {
        name: ("mlp", *sizes) for name, sizes in mlp.items()
    }


def write_adapter(folder: Path, config: ModelConfig, targets: Sequence[str], rank: int) -> int:
    """Write a random adapter as PEFT does; returns its number of parameters."""
    tensors = {}
    for layer in range(config.num_layers):
        for name in targets:
            block, inputs, outputs = shapes(config)[name]
            module = f"base_model.model.model.layers.{layer}.{block}.{name}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(rank, inputs) / inputs**0.5
            tensors[f"{module}.lora_B.weight"] = torch.randn(outputs, rank) / 10
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return sum(tensor.numel() for tensor in tensors.values())


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--batch", type=int, default=16)
    arguments.add_argument("--adapters", type=int, default=8)
    arguments.add_argument("--rank", type=int, default=16)
    arguments.add_argument("--tokens", type=int, default=64, help="of each request")
    arguments.add_argument("--repeats", type=int, default=7)
    add_results_option(arguments)
    args = arguments.parse_args()
    llm = LLM(MODEL, max_num_seqs=args.batch, enable_prefix_caching=False)
    prompts = [[n + 5, 17, 80, 3] for n in range(args.batch)]
    params = SamplingParams(temperature=0.0, max_tokens=args.tokens, ignore_eos=True)
    choices: dict[str, list[LoRARequest | None]] = {"none": [None] * args.batch}
    sizes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, targets in TARGETS.items():
            adapters: list[LoRARequest] = []
            for _ in range(args.adapters):
                number = len(sizes) * args.adapters + len(adapters) + 1
                path = Path(folder) / str(number)
                size = write_adapter(path, llm.model_config, targets, args.rank)
                adapters.append(LoRARequest(f"adapter-{number}", number, path))
                llm.add_lora(adapters[-1])
            sizes[kind] = size * args.adapters
            choices[kind] = [adapters[n % args.adapters] for n in range(args.batch)]
    seconds = alternate(
        {
            kind: partial(llm.generate, prompts, params, lora_request=given, use_tqdm=False)
            for kind, given in choices.items()
        },
        repeats=args.repeats,
    )
    num_tokens = args.batch * args.tokens
    bare = statistics.median(seconds["none"])
    weights = llm.model_config.num_parameters
    rows = []
    for kind, times in seconds.items():
        median = statistics.median(times)
        row = {
            "adapters": 0 if kind == "none" else args.adapters,
            "projections": kind,
            "rank": args.rank,
            "batch": args.batch,
            "tokens_per_second": num_tokens / median,
            "ratio": bare / median,
            "spread": spread(times),
            "parameters": sizes.get(kind, 0),
            "floor": weights / (weights + sizes.get(kind, 0)),
        }
        rows.append(row)
        print(
            f"{row['adapters']} adapters of rank {args.rank}, {kind:<8} "
            f"{row['tokens_per_second']:8.1f} tokens/s   {row['ratio']:.3f} of the rate without "
            f"(+-{100 * row['spread']:.0f} %); by the bytes to read {row['floor']:.3f}"
        )
    write_results("adapters", rows, args.results)


if __name__ == "__main__":
    main()
