"""The sampler, which sorts nothing, against the plain algorithm, which sorts everything."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paged_stream import ops

INF = float("inf")


@dataclass(frozen=True)
class Row:
    temperature: float = 1.0
    min_p: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    position: int = 0


def sample(logits: torch.Tensor, rows: list[Row]) -> list[int]:
    return ops.sample_tokens(logits, *columns(rows)).tolist()


def columns(rows: list[Row]) -> tuple[ops.SamplingTensors, torch.Tensor]:
    """What the op takes beside logits, from one `Row` per row of them."""

    def column(field: str, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([getattr(row, field) for row in rows], dtype=dtype)

    sampling = ops.SamplingTensors(
        temperature=column("temperature", torch.float64),
        min_p=column("min_p", torch.float64),
        top_k=column("top_k", torch.int64),
        top_p=column("top_p", torch.float64),
        seeds=column("seed", torch.int64),
    )
    return sampling, column("position", torch.int64)


def mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value ^ value >> 31


def kept_weights(logits: torch.Tensor, row: Row) -> torch.Tensor:
    """float64 weights, 0 for tokens that are dropped."""
    scaled = (logits.double() - logits.max().double()) * (1.0 / row.temperature)
    weights = scaled.exp()
    weights[scaled < torch.tensor(row.min_p, dtype=torch.float64).log()] = 0
    if 0 < row.top_k < len(logits):
        weights[logits < logits.sort(descending=True).values[row.top_k - 1]] = 0
    if row.top_p < 1:
        order = logits.sort(descending=True, stable=True).indices
        likeliest = weights[order]
        before = likeliest.cumsum(0) - likeliest
        weights[order[before >= row.top_p * likeliest.sum()]] = 0
    return weights


def expected(logits: torch.Tensor, row: Row) -> int:
    if not logits.max().isfinite():
        return ops.NO_TOKEN
    if row.temperature == 0:
        return int(logits.argmax())
    cumulative = kept_weights(logits, row).cumsum(0)
    uniform = (mix(mix(row.seed % 2**64) ^ row.position) >> 11) * 2.0**-53
    point = (uniform * cumulative[-1]).clamp(max=torch.nextafter(cumulative[-1], torch.zeros(())))
    return int(torch.searchsorted(cumulative, point, right=True))


@st.composite
def distributions(draw):
    """[N, vocab]: smooth ones, ones full of ties, ones with barred tokens."""
    vocab = draw(st.sampled_from([1, 2, 15, 16, 17, 63, 64, 65, 129, 700, 2000]))
    shape = (draw(st.integers(1, 4)), vocab)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    logits = torch.randn(shape, generator=generator) * draw(st.sampled_from([0.0, 0.1, 1, 4, 30]))
    if draw(st.booleans()):
        logits = logits.round() + draw(st.sampled_from([-0.0, 3.0]))
    logits[torch.rand(shape, generator=generator) < draw(st.sampled_from([0, 0, 0.3, 0.99]))] = -INF
    return logits


ROWS = st.builds(
    Row,
    temperature=st.sampled_from([0.0, 1e-5, 0.1, 0.8, 1.0, 1.7, 10.0]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 0.5, 1.0]),
    top_k=st.sampled_from([-1, 0, 0, 1, 2, 5, 50, 300, 1999, 2000, 10**6]),
    top_p=st.sampled_from([1.0, 1.0, 0.95, 0.75, 0.5, 0.1, 1e-9]),
    seed=st.integers(-(2**63), 2**63 - 1),
    position=st.integers(0, 2**40),
)


@settings(max_examples=400)
@given(logits=distributions(), data=st.data())
def test_equals_the_sorted_algorithm(isa, logits, data):
    rows = [data.draw(ROWS) for _ in logits]
    assert sample(logits, rows) == [expected(*pair) for pair in zip(logits, rows, strict=True)]


@pytest.mark.parametrize(
    "row",
    [
        Row(temperature=0.7, top_k=40, top_p=0.9),
        Row(top_p=0.5, min_p=0.01),
        Row(temperature=2.0, top_p=0.8),
        Row(top_k=5),
    ],
)
def test_every_kept_token_comes_up_and_no_other(isa, row):
    logits = torch.randn(300, generator=torch.Generator().manual_seed(0)).mul(3).round()
    count = 20_000
    rows = [Row(**{**row.__dict__, "seed": seed}) for seed in range(count)]
    seen = torch.tensor(sample(logits.expand(count, -1), rows)).bincount(minlength=300)
    weights = kept_weights(logits, row)
    assert not seen[weights == 0].any()
    assert (seen / count - weights / weights.sum()).abs().max() < 0.02


def test_neighbours_and_threads_do_not_matter(isa):
    logits = torch.randn(5, 3000, generator=torch.Generator().manual_seed(0)) * 2
    rows = [
        Row(0.0),
        Row(0.8, 0.0, 50, 0.95, 7, 9),
        Row(1.3, 0.0, 0, 0.9, 8, 9),
        Row(1.0, 0.1, 0, 1.0, 9, 9),
        Row(2.0, 0.0, 700, 1.0, 10, 9),
    ]
    alone = [sample(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]
    assert sample(logits, rows) == alone
    torch.set_num_threads(4)
    assert sample(logits, rows) == alone
    # On one row the vocabulary is shared; there has to be enough of it.
    wide = torch.randn(1, 70_001, generator=torch.Generator().manual_seed(1))
    for row in rows:
        assert sample(wide, [row]) == [expected(wide[0], row)]


@pytest.mark.parametrize("odd", [torch.nan, INF])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_without_a_distribution(isa, odd, temperature):
    logits = torch.randn(3, 200, generator=torch.Generator().manual_seed(0))
    logits[0, [70, 150]] = odd
    logits[1, [199]] = -odd  # -inf is merely impossible
    logits[2] = -INF
    rows = [Row(temperature)] * 3
    assert sample(logits, rows) == [expected(*pair) for pair in zip(logits, rows, strict=True)]
    assert sample(logits, rows)[0] == sample(logits, rows)[2] == ops.NO_TOKEN


def test_rows_may_be_strided(isa):
    wide = torch.randn(4, 500, generator=torch.Generator().manual_seed(0))
    rows = [Row(seed=seed) for seed in range(4)]
    assert sample(wide[:, :300], rows) == sample(wide[:, :300].contiguous(), rows)
    assert ops.sample_tokens(wide[:0], *columns([])).shape == (0,)


@pytest.mark.parametrize("temperature", [-1.0, 1e-6, 1e31, torch.nan])
def test_bad_temperature(temperature):
    with pytest.raises(RuntimeError, match=r"temperature must be 0 or in \[1e-5, 1e30\], got"):
        sample(torch.zeros(1, 5), [Row(temperature)])


@pytest.mark.parametrize(
    "name, value",
    [
        *(("min_p", value) for value in (-0.1, 1.1, torch.nan)),
        *(("top_p", value) for value in (0.0, -1.0, 1.1, torch.nan)),
    ],
)
def test_probabilities_out_of_range(name, value):
    with pytest.raises(RuntimeError, match=rf"sample_tokens: {name} must be in .*, got "):
        sample(torch.zeros(1, 5), [Row(**{name: value})])


def test_a_vocabulary_has_tokens():
    with pytest.raises(RuntimeError, match=r"vocab must be in \[1, 2\^31\), got 0"):
        sample(torch.zeros(1, 0), [Row()])


def test_a_parameter_per_row():
    with pytest.raises(RuntimeError, match=r"temperature must have shape \[N\] = \[2\], got \[1\]"):
        sample(torch.zeros(2, 5), [Row()])


@pytest.mark.parametrize("name", ops.SamplingTensors._fields)
def test_parameters_are_in_the_order_that_kernels_read_them_in(name):
    sampling, positions = columns([Row()])
    wrong = sampling._replace(**{name: getattr(sampling, name).float()})
    with pytest.raises(RuntimeError, match=f"{name} must be (Double|Long), got Float"):
        ops.sample_tokens(torch.zeros(1, 5), wrong, positions)
