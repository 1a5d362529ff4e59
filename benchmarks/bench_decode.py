"""How fast does decoding go, next to transformers' ``generate`` and to what memory allows?

    python -m benchmarks.bench_decode --batch 1 16

Both engines get the same prompts, weights, precision and number of threads, and generate greedily.
The time of a run with one new token is taken off, which leaves the decode steps.
"""

from __future__ import annotations

import argparse
import random
import statistics

import torch
from transformers import AutoModelForCausalLM

from benchmarks.harness import alternate, read_bandwidth, record, spread
from paged_stream import LLM, SamplingParams
from paged_stream.models.loader import resolve_model


class Ours:
    def __init__(self, model: str, dtype: str, batch: int) -> None:
        self.llm = LLM(model, dtype=dtype, max_num_seqs=batch)

    def run(self, prompts: list[list[int]], new_tokens: int) -> None:
        params = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        assert all(len(output.outputs[0].token_ids) == new_tokens for output in outputs)


class Transformers:
    def __init__(self, model: str, dtype: str) -> None:
        folder = resolve_model(model).folder
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))

    @torch.inference_mode()
    def run(self, prompts: list[list[int]], new_tokens: int) -> None:
        ids = torch.tensor(prompts)
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            pad_token_id=0,
        )
        assert out.shape[1] == ids.shape[1] + new_tokens


def floor_seconds(ours: Ours, batch: int, context: int, bandwidth: float) -> float:
    """Least time of a step: every weight and every visible K and V is read once."""
    config = ours.llm.engine.model_config
    dtype = torch.bfloat16 if ours.llm.engine.config.dtype == "bfloat16" else torch.float32
    weights = config.num_parameters * dtype.itemsize
    kv = batch * context * config.kv_bytes_per_token(dtype)
    return (weights + kv) / bandwidth


def bench(args: argparse.Namespace, batch: int, theirs: Transformers) -> None:
    ours = Ours(args.model, args.dtype, batch)
    rng = random.Random(0)
    prompts = [[rng.randrange(1000, 40000) for _ in range(args.prompt)] for _ in range(batch)]
    candidates = {
        f"{name} {count}": lambda engine=engine, count=count: engine.run(prompts, count)
        for name, engine in (("ours", ours), ("transformers", theirs))
        for count in (1, args.new_tokens)
    }
    seconds = alternate(candidates, repeats=args.repeats)
    steps = args.new_tokens - 1
    bandwidth = read_bandwidth()
    rates = {}
    for name in ("ours", "transformers"):
        prefill = statistics.median(seconds[f"{name} 1"])
        runs = [(total - prefill) / steps for total in seconds[f"{name} {args.new_tokens}"]]
        rates[name] = batch / statistics.median(runs)
        least = floor_seconds(ours, batch, args.prompt + args.new_tokens // 2, bandwidth)
        fraction = least * rates[name] / batch
        print(
            f"batch {batch:>3}  {name:<13} {rates[name]:8.1f} tok/s  +-{100 * spread(runs):.0f} %  "
            f"{100 * fraction:5.1f} % of the bandwidth floor ({bandwidth / 1e9:.1f} GB/s)"
        )
        record(
            "decode",
            engine=name,
            model=args.model,
            dtype=args.dtype,
            batch=batch,
            prompt=args.prompt,
            new_tokens=args.new_tokens,
            tokens_per_second=rates[name],
            spread=spread(runs),
            bandwidth=bandwidth,
            floor_fraction=fraction,
        )
    print(f"batch {batch:>3}  ratio {rates['ours'] / rates['transformers']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    theirs = Transformers(args.model, args.dtype)
    for batch in args.batch:
        bench(args, batch, theirs)


if __name__ == "__main__":
    main()
