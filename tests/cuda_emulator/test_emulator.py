"""The emulated device finds planted defects, and runs their correct twins."""

from __future__ import annotations

import pytest
import torch

from tests.cuda_emulator.emulator import EmulatorError


def numbers(count: int, dtype=torch.int32) -> torch.Tensor:
    return torch.arange(3, 3 + count).to(dtype)


@pytest.mark.parametrize("threads", [64, 256])
def test_a_missing_barrier(emulator, threads):
    given, out = numbers(threads), numbers(threads)
    emulator.call("reverse", threads, given, out, 1)
    assert out.tolist() == given.flip(0).tolist()
    with pytest.raises(EmulatorError, match="depend on"):
        emulator.call("reverse", threads, given, out, 0)


def test_reading_what_nobody_wrote(emulator):
    given, out = numbers(32, torch.float32), torch.zeros(32)
    emulator.call("maximum", given, out, 32)
    assert (out == given.max()).all()
    with pytest.raises(EmulatorError, match="what shared memory held before"):
        emulator.call("maximum", given, out, 31)


def test_a_missing_wait(emulator):
    given = numbers(2 * 32 * 4).reshape(64, 4)
    out = torch.zeros_like(given)
    emulator.call("copy", given, out, 2)
    expected = given.clone()
    expected[3::4] = 0
    assert torch.equal(out, expected[torch.arange(64) ^ 1])
    for awaited in (0, 1):
        with pytest.raises(EmulatorError, match="what shared memory held before"):
            emulator.call("copy", given, out, awaited)


@pytest.mark.parametrize("in_shared", [0, 1])
def test_out_of_bounds(emulator, in_shared):
    given, out = numbers(64), numbers(64)
    emulator.call("index", given, out, 0, in_shared)
    assert out.tolist() == (2 * given).tolist()
    with pytest.raises(EmulatorError, match="heap-buffer-overflow"):
        emulator.call("index", given, out, 1, in_shared)
    emulator.call("index", given, out, 0, in_shared)  # in a new process


@pytest.mark.parametrize("lanes", [16, 31])
def test_lanes_that_never_come(emulator, lanes):
    given, out = numbers(64), numbers(64)
    emulator.call("sum_by_shuffles", given, out, 32)
    assert out.tolist() == [sum(given[:32])] * 32 + [sum(given[32:])] * 32
    with pytest.raises(EmulatorError, match=rf"diverge.*lanes.*{lanes} of 32 are there"):
        emulator.call("sum_by_shuffles", given, out, lanes)


def test_threads_that_wait_in_different_places(emulator):
    out = numbers(64)
    emulator.call("sync_in_branches", out[:32].clone(), 32)
    with pytest.raises(EmulatorError, match="diverge.*others of its warp or block"):
        emulator.call("sync_in_branches", out, 64)


@pytest.mark.parametrize("threads", [0, 48, 2048])
def test_launches_that_a_device_refuses(emulator, threads):
    with pytest.raises(EmulatorError, match="launch refused"):
        emulator.call("sync_in_branches", numbers(2048), threads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("b_is_transposed", [0, 1])
def test_products_of_matrices(emulator, dtype, b_is_transposed):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(16, 16, generator=generator).to(dtype)
    b = torch.randn(16, 8, generator=generator).to(dtype)
    out = torch.full((16, 8), torch.nan)
    given = b.t().contiguous() if b_is_transposed else b
    emulator.call("product", a, given, out, b_is_transposed, int(dtype == torch.bfloat16))
    torch.testing.assert_close(out, (a.double() @ b.double() + 1).float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "dtype"), [(0, torch.bfloat16), (1, torch.float16), (2, torch.float8_e4m3fn)]
)
def test_conversions_round_as_torch_does(emulator, kind, dtype):
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (20_000,), generator=generator).to(torch.int32)
    near = torch.randn(20_000, generator=generator) * 2.0 ** torch.randint(
        -20, 20, (20_000,), generator=generator
    )
    # All float16 values, which include the midpoints of the smaller dtypes.
    exact = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16).float()
    given = torch.cat([bits.view(torch.float32), near, exact, torch.tensor([torch.inf, 0.0, -0.0])])
    out = torch.empty_like(given)
    emulator.call("convert", given, out, len(given), kind)
    limit = 448 if dtype == torch.float8_e4m3fn else torch.inf
    expected = given.clamp(-limit, limit).to(dtype).float()
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
    same_sign = out.signbit() == expected.signbit()
    assert (same_sign | given.isnan()).all()
