"""Drawing tokens and going on from them, on a device and by the CPU's kernels on the same input."""

from __future__ import annotations

import torch

from benchmarks.gpu import models
from benchmarks.gpu.sections import Section
from paged_stream import ops
from paged_stream.worker.decode_loop import (
    DecodeBatch,
    join_tensors,
    move_batch,
    prepare_decode,
    split_tensors,
)

_KINDS = {
    "greedy": {"temperature": 0.0},
    "plain": {"temperature": 1.0},
    "hot": {"temperature": 3.0, "top_p": 0.95},
    "top_k": {"temperature": 0.8, "top_k": 40},
    "top_p": {"temperature": 0.8, "top_p": 0.9},
    "min_p": {"temperature": 1.2, "min_p": 0.05},
    "all": {"temperature": 0.7, "top_p": 0.9, "top_k": 50, "min_p": 0.01},
}


def check_sampling(section: Section) -> None:
    """Tokens of each kind alone and of all kinds in one batch are the CPU's."""
    for vocab in (97, 32_000) if section.sizes.repeats <= 2 else (97, 32_000, 49_152, 128_256):
        for name, kind in _KINDS.items():
            _compare(section, f"sample_tokens {name}, vocabulary {vocab}", vocab, [kind] * 16)
        mixed = list(_KINDS.values()) * 5
        _compare(section, f"sample_tokens mixed, vocabulary {vocab}", vocab, mixed)
    logits = torch.randn(4, 1000)
    logits[0, 17] = logits[0, 900] = 9.0  # the first of equal ones
    logits[1] = -torch.inf
    logits[2, 5] = torch.nan
    logits[3, 7] = torch.inf
    _compare(section, "sample_tokens of odd logits", 1000, [_KINDS["greedy"]] * 4, logits)


def _compare(
    section: Section,
    label: str,
    vocab: int,
    kinds: list[dict],
    logits: torch.Tensor | None = None,
) -> None:
    count = len(kinds)
    logits = 3 * torch.randn(count, vocab) if logits is None else logits
    temperature, min_p, top_p = (
        torch.tensor([kind.get(name, neutral) for kind in kinds], dtype=torch.float64)
        for name, neutral in {"temperature": 0.0, "min_p": 0.0, "top_p": 1.0}.items()
    )
    top_k = torch.tensor([int(kind.get("top_k", 0)) for kind in kinds])
    sampling = ops.SamplingTensors(temperature, min_p, top_k, top_p, 7 * torch.arange(count) - 3)
    positions = 13 * torch.arange(count) + 1000

    def run() -> None:
        expected = ops.sample_tokens(logits.clone(), sampling, positions)
        moved = ops.SamplingTensors(*(tensor.to(section.device) for tensor in sampling))
        on_device = logits.to(section.device), moved, positions.to(section.device)
        actual = ops.sample_tokens(*on_device).cpu()
        wrong = int((actual != expected).sum())
        section.record(label, ok=wrong == 0, wrong=f"{wrong} of {count}")

    section.attempt(label, run)


def check_advance(section: Section) -> None:
    """Several steps of rows that stop, wrap round their rings or begin to lose tokens."""
    num_steps, vocab = 5, 7  # so few tokens that some are stop tokens
    for position in (0, 33, 4_000_000):
        step = models.step_of(24, 40, position, num_steps=num_steps)
        batch = prepare_decode(step, models.BLOCK_SIZE)
        tensors = split_tensors(batch)
        stops = torch.randint(-1, vocab, (24, 2))
        tensors = [stops if tensor is batch.stop_token_ids else tensor for tensor in tensors]
        batch.num_left.random_(0, num_steps + 1)
        expected = join_tensors(batch, tensors)
        actual = move_batch(
            join_tensors(expected, [tensor.clone() for tensor in tensors]), section.device
        )
        for _ in range(num_steps):
            sampled = torch.randint(0, vocab, (24,))
            _advance(expected, sampled)
            _advance(actual, sampled.to(section.device))
        pairs = zip(split_tensors(actual), split_tensors(expected), strict=True)
        wrong = sum(not torch.equal(one.cpu(), other) for one, other in pairs)
        section.record(f"advance_decode from position {position:,}", ok=wrong == 0, wrong=wrong)


def _advance(batch: DecodeBatch, sampled: torch.Tensor) -> None:
    ops.advance_decode(
        sampled,
        batch.generated,
        batch.num_generated,
        batch.num_left,
        batch.stop_token_ids,
        batch.input,
        batch.block_size,
    )
