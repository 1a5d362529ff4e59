"""Activations are torch's, and a row's bits are its own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from paged_stream.layers.mlp import ACTIVATIONS

ORACLES = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


@pytest.fixture
def threads():
    """Sets their number, for a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4, 8192), (3, 100), (7, 6912), (2, 36864), (5, 3001)])
@pytest.mark.parametrize("name", ORACLES)
def test_rows_alone_and_in_company(threads, name, shape, dtype):
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(shape[0], 2 * shape[1], generator=generator).mul_(3).to(dtype)
    hidden = both.chunk(2, dim=-1)[0]  # as a gated block has it
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(ACTIVATIONS[name](hidden))
        results.append(torch.cat([ACTIVATIONS[name](row[None]) for row in hidden]))
    assert all(torch.equal(result, results[0]) for result in results)
    torch.testing.assert_close(results[0], ORACLES[name](hidden))
