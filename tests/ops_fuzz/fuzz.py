"""Calls every op with altered arguments, in a process that has the sanitized op library.

What a sanitizer finds ends the process. Beyond that, whatever a call is given:

- A call that was not altered succeeds.
- An error is torch's own about the schema, the device or memory, or a fake kernel's about tensors
  without data, or starts with the name of the op that was called.
- An op that refuses its arguments leaves them as they were, unless it finds out while it computes.
- `lay_out_batch` accepts nothing but what it lays out as unbounded integers would.

A run of the program makes the cases of some seeds, the same ones each time. With ``--log`` it
writes each call to a file first: the one in the file at the end is the one that ended it.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from torch import Tensor

from tests.ops_fuzz.alterations import altered, tensors_of
from tests.ops_fuzz.layout_oracle import check_layout
from tests.ops_fuzz.valid_calls import MAKERS, OPS, Made

# torch's own errors: about the schema, about keys without an implementation, about memory.
FOREIGN = re.compile(
    r"paged_stream::|Could not run|can't allocate memory|not enough memory|overflow|"
    r"Sparse|sparse|bad_alloc|does not have storage"
)
# These find out while they compute that a block id is none of the cache's.
COMPUTES_FIRST = {"attention_layer", "decoder_layers"}


class Case:
    """A call with arguments that may be altered, and what to free after it."""

    def __init__(self, name: str, arguments: list, made: Made, *, is_valid: bool) -> None:
        self.name, self.arguments, self.made, self.is_valid = name, arguments, made, is_valid

    def __repr__(self) -> str:
        return self.name  # hypothesis prints ten of these; the log has the arguments


@st.composite
def cases(draw: Any) -> Case:
    torch.default_generator.manual_seed(0)
    made = Made()
    name = draw(st.sampled_from(sorted(MAKERS)))
    arguments = MAKERS[name](draw, made)
    num_altered = draw(st.sampled_from((0, 1, 1, 1, 2, 3)))
    for _ in range(num_altered):
        try:
            arguments = altered(draw, arguments)
        except (RuntimeError, TypeError, NotImplementedError):
            pass  # torch cannot alter this tensor so
    return Case(name, arguments, made, is_valid=num_altered == 0)


class Fuzzer:
    """Counts what it does."""

    def __init__(self, log: Path | None) -> None:
        self.log = log
        self.num_calls = self.num_refused = 0

    def run(self, case: Case) -> None:
        if self.log:
            self.log.write_text(f"{case}{describe(case.arguments)}\n")
        self.num_calls += 1
        try:
            self._call(case)
        finally:
            case.made.free()
            if case.name == "set_cpu_isa":
                OPS.set_cpu_isa(WIDEST)

    def _call(self, case: Case) -> None:
        name, arguments = case.name, case.arguments
        before = contents(arguments)
        try:
            result = getattr(OPS, name)(*arguments)
        except Exception as error:
            self.num_refused += 1
            self._check_error(case, str(error), contents(arguments) == before)
            return
        if name == "lay_out_batch" and not any(t.is_meta for t in tensors_of(arguments)):
            check_layout(*arguments, *result)
        if name.startswith("lay_out_") and isinstance(result, int):
            case.made.free_later(name.removeprefix("lay_out_"), result)

    def _check_error(self, case: Case, message: str, is_unchanged: bool) -> None:
        name, first_line = case.name, message.split("\n")[0]
        # The calls of an example are all drawn first, and one may free the layer of another.
        is_freed = "must be a handle from" in first_line
        assert is_freed or not case.is_valid, f"{name}: a valid call was refused: {first_line}"
        is_named = f", {name}: " in first_line
        is_traced = any(tensor.is_meta for tensor in tensors_of(case.arguments))
        assert is_named or is_traced or FOREIGN.search(message), f"{name}: {message}"
        assert is_unchanged or not is_named or name in COMPUTES_FIRST, f"{name} wrote, then refused"


WIDEST = OPS.cpu_isa()


def contents(arguments: list) -> list[bytes]:
    """The bytes of all memory that the arguments have."""
    dense = [t for t in tensors_of(arguments) if not t.is_meta and t.layout == torch.strided]
    whole = [torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage()) for t in dense]
    return [memory.numpy().tobytes() for memory in whole]


def describe(value: Any) -> str:
    """The value for a reader: tensors by what alterations change."""
    if isinstance(value, list):
        return f"({', '.join(map(describe, value))})"
    if not isinstance(value, Tensor):
        return repr(value)
    head = f"{value.dtype} {list(value.shape)} {value.device} {value.layout}"
    if value.is_meta or value.layout != torch.strided:
        return f"<{head}>"
    is_short = 0 < value.numel() <= 32 and not value.dtype.is_floating_point
    numbers = f" {value.tolist()}" if is_short else ""
    return f"<{head} strides {value.stride()} at {value.data_ptr():#x}{numbers}>"


def run(seed: int, examples: int, calls: int, fuzzer: Fuzzer) -> None:
    """Make the cases of a seed."""

    @seeded(seed)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(cases(), min_size=calls, max_size=calls))
    def make(drawn: list[Case]) -> None:
        for case in drawn:
            fuzzer.run(case)

    make()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs=2, default=(0, 1), help="first and end")
    parser.add_argument("--examples", type=int, default=100, help="per seed")
    parser.add_argument("--calls", type=int, default=10, help="per example")
    parser.add_argument("--log", type=Path, help="where to write each call before it is made")
    options = parser.parse_args()
    torch.set_num_threads(2)
    fuzzer = Fuzzer(options.log)
    for seed in range(*options.seeds):
        run(seed, options.examples, options.calls, fuzzer)
        print(f"seed {seed}: {fuzzer.num_calls} calls, {fuzzer.num_refused} refused", flush=True)
