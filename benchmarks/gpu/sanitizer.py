"""Every kernel under compute-sanitizer, in a process without torch: a device's memory checker looks
at each access, and its race checker at each pair of them."""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu.driver import build_driver
from benchmarks.gpu.sections import Case, Section
from tests.cuda_emulator import (
    test_advance_decode,
    test_attention,
    test_cache_rows,
    test_row_kernels,
    test_sampling,
)
from tests.cuda_emulator.emulator import Emulator
from tests.ops.batches import make_batch

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
INT8, FP8 = torch.int8, torch.float8_e4m3fn
TOOLS = ("memcheck", "racecheck")
_UNABLE = ("Device not supported", "error 999", "Unable to", "not supported on this")
Work = Callable[[Emulator], None]


def _attention(kernels: Emulator, *, dtype: torch.dtype, cache_dtype: torch.dtype | None) -> None:
    """One token and a chunk, splits that are merged, and a head_dim that is filled up."""
    for head_dim, sequences in (
        (64, [(4, 700, 5000, 1), (5, 20, 40, 18)]),
        (40, [(0, 50, 77, 0), (20, 30, 12, 12)]),
    ):
        batch = make_batch(
            test_attention.of(*sequences),
            num_kv_heads=1,
            head_dim=head_dim,
            dtype=dtype,
            cache_dtype=cache_dtype,
        )
        test_attention.check(kernels, batch)


def _cache_rows(kernels: Emulator) -> None:
    for dtype, cache_dtype in ((F32, F32), (BF16, INT8), (F16, FP8)):
        test_cache_rows.test_rotary_and_cache(kernels, dtype, cache_dtype, 80, 20)


def _moves(kernels: Emulator) -> None:
    for dtype in (F32, BF16, INT8, FP8):
        test_cache_rows.test_gather_scatter_and_reindex(kernels, dtype, 64, 64, True, False)
    test_cache_rows.test_copy_blocks(kernels, 68)


def _rows(kernels: Emulator) -> None:
    for dtype, kind, step in test_row_kernels.KINDS:
        for size in (50, 2048):
            test_row_kernels.test_add_rms_norm(kernels, dtype, kind, step, size, True)
        test_row_kernels.test_silu_and_mul(kernels, dtype, kind, step, 50)
    test_row_kernels.test_rotary_table(kernels)


def _sampling(kernels: Emulator) -> None:
    test_sampling.test_draws_the_cpus_tokens(kernels, 700, 2)
    test_sampling.test_rows_may_be_strided(kernels)


KERNELS: dict[str, Work] = {
    "norm, activation, rotary table": _rows,
    "advance_decode": test_advance_decode.test_leaves_what_the_cpus_op_leaves,
    "sample_tokens": _sampling,
    "gather, scatter, reindex, copy": _moves,
    "rotary_and_cache": _cache_rows,
    "attention bfloat16": partial(_attention, dtype=BF16, cache_dtype=None),
    "attention float16": partial(_attention, dtype=F16, cache_dtype=None),
    "attention float32": partial(_attention, dtype=F32, cache_dtype=None),
    "attention bfloat16, int8 cache": partial(_attention, dtype=BF16, cache_dtype=INT8),
    "attention bfloat16, fp8 cache": partial(_attention, dtype=BF16, cache_dtype=FP8),
}


def sanitizer_cases(section: Section) -> list[Case]:
    cases = [Case("driver", _prepare)]
    for tool in TOOLS:
        for name, work in KERNELS.items():
            case = f"{tool}: {name}"
            cases.append(Case(case, partial(_look, name=case, tool=tool, work=work)))
    return cases


def _prepare(section: Section) -> None:
    """Find or compile the program that runs the kernels, and run one of them as it is."""
    driver = _driver(section)
    kernels = Emulator(driver)
    try:
        test_row_kernels.test_rotary_table(kernels)
    finally:
        kernels.close()
    section.record("driver: a kernel runs without torch", ok=True)


def _driver(section: Section) -> Path:
    major, minor = torch.cuda.get_device_capability(section.device)
    return build_driver(f"{major}.{minor}{'a' * (major >= 9)}")


def _look(section: Section, *, name: str, tool: str, work: Work) -> None:
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        section.skip(name, "compute-sanitizer is not installed")
        return
    with tempfile.TemporaryDirectory() as folder:
        log, script = Path(folder, "log"), Path(folder, "kernels")
        command = [program, "--tool", tool, "--print-limit", "20", "--log-file", str(log)]
        command.append(str(_driver(section)))
        script.write_text(f"#!/bin/sh\nexec {shlex.join(command)}\n")
        script.chmod(0o755)
        kernels, problem = Emulator(script), None
        try:
            work(kernels)
        except Exception as error:  # what the tool says of it matters more
            problem = f"{type(error).__name__}: {error}"
        finally:
            kernels.close()
        text = log.read_text(errors="replace") if log.exists() else ""
    if any(words in text for words in _UNABLE):
        section.skip(name, f"the tool cannot run on this device: {text[-200:]}")
        return
    found = re.findall(r"SUMMARY: (\d+) ", text)
    is_clean = bool(found) and all(number == "0" for number in found)
    detail = {} if is_clean and problem is None else {"error": problem, "detail": text[-3000:]}
    section.record(name, ok=is_clean and problem is None, **detail)
