"""The sampling kernel draws the tokens that the CPU's op draws."""

from __future__ import annotations

import pytest
import torch

from paged_stream import ops
from tests.ops.test_sample_tokens import INF, Row, columns

ROWS = [
    Row(0.0),
    Row(0.8, 0.0, 50, 0.95, 7, 9),
    Row(1.3, 0.0, 0, 0.9, -8, 2**40),
    Row(1.0, 0.1, 0, 1.0, 2**63 - 1, 9),
    Row(2.0, 0.0, 700, 0.5, 10, 9),
    Row(1.0, 0.0, 0, 1.0, 11, 1),
    Row(0.7, 0.02, 3, 1e-9, 12, 3),
    Row(10.0, 0.0, 1, 1.0, 13, 4),
    Row(1e-5, 0.5, 10**6, 0.99, 14, 5),
]


def sample(
    emulator, logits: torch.Tensor, rows: list[Row], vocab: int | None = None, whole: bool = False
) -> list[int]:
    """Sample with small thread blocks, or with the device's if ``whole``."""
    tokens = torch.full((len(rows),), -7)
    sampling, positions = columns(rows)
    emulator.call(
        *("sample_tokens", logits, logits.shape[1], len(rows), vocab or logits.shape[1]),
        *(*sampling, positions, tokens, int(whole)),
    )
    return tokens.tolist()


def logits_of_every_kind(vocab: int, shift: int) -> torch.Tensor:
    """One row per row of ROWS: smooth, with ties, with barred tokens, and flat, in turn."""
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(len(ROWS), vocab, generator=generator) * 4
    kinds = (torch.arange(len(ROWS)) + shift) % 4
    logits[kinds == 1] = logits[kinds == 1].round()
    barred = torch.rand(logits.shape, generator=generator) < 0.9
    logits[barred & (kinds == 2)[:, None]] = -INF
    logits[kinds == 2, -1] = 1.0
    logits[kinds == 3] = -0.0
    return logits


@pytest.mark.parametrize("vocab, shift", [(1, 0), (33, 1), (700, 2), (700, 0), (20_000, 1)])
def test_draws_the_cpus_tokens(emulator, vocab, shift):
    logits = logits_of_every_kind(vocab, shift)
    expected = ops.sample_tokens(logits, *columns(ROWS)).tolist()
    assert sample(emulator, logits, ROWS) == expected


def test_many_seeds_of_a_small_distribution(emulator):
    """Draws agree at the boundaries of the cumulative distribution too."""
    logits = torch.tensor([[2.0, 2.0, 1.0, 1.0, 1.0, 0.0, -1.0, -INF, 2.0]]).repeat(10, 1)
    rows = [Row(1.0, 0.0, 6, 0.8, seed) for seed in range(10)]
    expected = ops.sample_tokens(logits, *columns(rows)).tolist()
    assert sample(emulator, logits, rows) == expected
    assert len(set(expected)) >= 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_without_a_distribution(emulator, temperature):
    logits = torch.randn(5, 2000, generator=torch.Generator().manual_seed(0))
    logits[0, [70, 1500]] = torch.nan
    logits[1, [70, 1500]] = INF
    logits[2] = -INF
    logits[3, 3:] = torch.nan
    rows = [Row(temperature, seed=3)] * 5
    expected = ops.sample_tokens(logits, *columns(rows)).tolist()
    assert sample(emulator, logits, rows) == expected
    assert expected[:4] == [ops.NO_TOKEN] * 4


def test_rows_may_be_strided(emulator):
    wide = torch.randn(2, 500, generator=torch.Generator().manual_seed(0))
    rows = [Row(seed=seed) for seed in range(2)]
    expected = ops.sample_tokens(wide[:, :300], *columns(rows)).tolist()
    assert sample(emulator, wide, rows, vocab=300, whole=True) == expected
