"""Does a sink token that was trained as one replace the accidental ones?

    python -m benchmarks.train_sink_token                    # two cores: less than an hour
    python -m benchmarks.train_sink_token --size large       # a GPU
    python -m benchmarks.train_sink_token --size quick       # only whether it runs: a minute or two

Table 3 of the StreamingLLM paper at a small scale. Two Llamas of one shape see the same slices of
five novels in the same order: one as they are, one with a learnable sink token in front of each.
Both are exported and score the sixth novel through this engine, with 0, 1, 2 and 4 sink tokens and
a cache of half the trained length. Training goes on from its last checkpoint when it is started
again, and a model that is finished is not trained again.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.harness import QUICK_RESULTS, RESULTS, add_results_option, parser, write_results
from benchmarks.texts import NOVELS, austen, cache_folder
from paged_stream.evaluation.perplexity import measure
from paged_stream.evaluation.variants import Variant

HELD_OUT = "persuasion"
SINK = "<sink>"
SINK_COUNTS = (0, 1, 2, 4)
CHECKPOINT_EVERY = 100
KINDS = ("vanilla", "sink token")


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large the models are and how long they learn; ``context`` counts tokens per sample."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    context: int
    batch_size: int
    steps: int
    learning_rate: float
    eval_tokens: int


SIZES = {
    "quick": Size(
        vocab_size=512,
        hidden_size=64,
        num_layers=2,
        num_heads=2,
        context=64,
        batch_size=8,
        steps=40,
        learning_rate=3e-3,
        eval_tokens=1024,
    ),
    "small": Size(
        vocab_size=1024,
        hidden_size=192,
        num_layers=6,
        num_heads=6,
        context=128,
        batch_size=32,
        steps=2000,
        learning_rate=3e-3,
        eval_tokens=32768,
    ),
    "large": Size(
        vocab_size=4096,
        hidden_size=512,
        num_layers=12,
        num_heads=8,
        context=512,
        batch_size=64,
        steps=8000,
        learning_rate=1e-3,
        eval_tokens=65536,
    ),
}


def train_tokenizer(size: Size, folder: Path) -> Tokenizer:
    """A byte-level BPE of the training novels; the sink token is its number 0."""
    path = folder / "tokenizer.json"
    if path.exists():
        return Tokenizer.from_file(str(path))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size.vocab_size,
        special_tokens=[SINK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((austen(name) for name in training_novels()), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return tokenizer


def training_novels() -> list[str]:
    return [name for name in NOVELS if name != HELD_OUT]


def make_model(size: Size, seed: int) -> LlamaForCausalLM:
    """Both kinds begin with the same weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=size.vocab_size,
        hidden_size=size.hidden_size,
        intermediate_size=8 * size.hidden_size // 3 // 32 * 32,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        num_key_value_heads=size.num_heads,
        max_position_embeddings=size.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


def batch_of(text: torch.Tensor, size: Size, step: int, seed: int, kind: str) -> torch.Tensor:
    """Samples [batch_size, context] of one step: the same slices for both kinds, but that the last
    token makes place for the sink token."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    starts = torch.randint(len(text) - size.context, (size.batch_size, 1), generator=generator)
    samples = text[starts + torch.arange(size.context)]
    if kind == "vanilla":
        return samples
    sink = torch.zeros(size.batch_size, 1, dtype=samples.dtype)
    return torch.cat((sink, samples[:, :-1]), dim=1)


def learning_rate(size: Size, step: int) -> float:
    """Linear warm-up over a twentieth of the steps, then a cosine down to a tenth."""
    warm_up = max(1, size.steps // 20)
    if step < warm_up:
        return size.learning_rate * (step + 1) / warm_up
    progress = (step - warm_up) / max(1, size.steps - warm_up)
    return size.learning_rate * (0.55 + 0.45 * math.cos(math.pi * progress))


def train(size: Size, kind: str, text: torch.Tensor, folder: Path, seed: int) -> LlamaForCausalLM:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = torch.nn.Module.to(make_model(size, seed), device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=size.learning_rate, betas=(0.9, 0.95), weight_decay=0.1
    )
    checkpoint = folder / "checkpoint.pt"
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    with tqdm(total=size.steps, initial=first, unit="step", desc=kind, disable=None) as bar:
        for step in range(first, size.steps):
            ids = batch_of(text, size, step, seed, kind).to(device)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(size, step)
            with torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda"):
                loss = model(input_ids=ids, labels=ids).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            bar.update()
            if (step + 1) % CHECKPOINT_EVERY == 0:
                bar.set_postfix_str(f"loss {loss.item():.3f}")
                save_checkpoint(checkpoint, model, optimizer, step + 1)
    checkpoint.unlink(missing_ok=True)
    return model.cpu().eval()


def save_checkpoint(path: Path, model, optimizer, step: int) -> None:
    part = path.with_suffix(".part")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state, part)
    part.replace(path)


def export(model: LlamaForCausalLM, tokenizer: Tokenizer, kind: str, folder: Path) -> None:
    """A folder as the engine loads it; the tokenizer puts the sink token first where it belongs."""
    if kind == "sink token":
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{SINK} $A", special_tokens=[(SINK, 0)]
        )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    model.save_pretrained(folder)


def trained_model(size: Size, kind: str, root: Path, seed: int) -> Path:
    """The folder of the trained model of one kind; trains it if it is not there."""
    folder = root / kind.replace(" ", "_")
    if (folder / "model.safetensors").exists():
        return folder
    tokenizer = train_tokenizer(size, root)
    text = [i for name in training_novels() for i in tokenizer.encode(austen(name)).ids]
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    model = train(size, kind, torch.tensor(text), folder, seed)
    print(f"{kind}: {len(text):,} tokens of text, trained {time.perf_counter() - started:.0f} s")
    export(model, tokenizer, kind, folder)
    return folder


def evaluate(size: Size, kind: str, folder: Path) -> list[dict]:
    cache = size.context // 2
    rows = []
    for sinks in SINK_COUNTS:
        variant = Variant.streaming(sinks, cache - sinks)
        score = measure(
            variant,
            [austen(HELD_OUT)],
            engine={"model": str(folder), "dtype": "float32"},
            num_tokens=size.eval_tokens,
        )
        rows.append(
            {"kind": kind, "sinks": sinks, "cache": cache, "perplexity": score.perplexity()}
        )
    return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--size", choices=SIZES, default="small")
    arguments.add_argument("--steps", type=int, help="instead of the size's own")
    arguments.add_argument("--seed", type=int, default=0)
    add_results_option(arguments)
    args = arguments.parse_args()
    if args.size == "quick" and args.results == RESULTS:
        args.results = QUICK_RESULTS
    settings = asdict(SIZES[args.size])
    if args.steps is not None:
        settings["steps"] = args.steps
    size = Size(**settings)
    root = cache_folder().parent / "sink_token" / f"{args.size}-{size.steps}-{args.seed}"
    rows = []
    for kind in KINDS:
        rows += evaluate(size, kind, trained_model(size, kind, root, args.seed))
    print(
        f"{'perplexity of ' + HELD_OUT:<28}"
        + "".join(f"{f'{s}+{r}':>10}" for s, r in columns(rows))
    )
    for kind in KINDS:
        figures = [row["perplexity"] for row in rows if row["kind"] == kind]
        print(f"{kind:<28}" + "".join(f"{figure:>10.3f}" for figure in figures))
    shared = {"size": args.size, "seed": args.seed} | settings
    write_results("train_sink_token", [shared | row for row in rows], args.results)


def columns(rows: list[dict]) -> list[tuple[int, int]]:
    first = rows[0]["kind"]
    return [(row["sinks"], row["cache"] - row["sinks"]) for row in rows if row["kind"] == first]


if __name__ == "__main__":
    main()
