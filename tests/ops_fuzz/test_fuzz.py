"""A short run of the fuzzer; ``python -m tests.ops_fuzz`` makes longer ones."""

from __future__ import annotations

import re

import pytest
import torch

from tests.ops_fuzz.sanitized import build_library, run_fuzzer, runtimes
from tests.ops_fuzz.valid_calls import MAKERS


def test_every_schema_is_called():
    schemas = [schema.name for schema in torch._C._jit_get_all_schemas()]
    assert {f"paged_stream::{name}" for name in MAKERS} == {
        name for name in schemas if name.startswith("paged_stream::")
    }


@pytest.mark.sanitizer_check
def test_no_call_breaks_memory_or_misleads():
    if not runtimes():
        pytest.skip("the compiler has no runtime of the address sanitizer")
    result = run_fuzzer(build_library(), "--seeds", "9", "10", "--examples", "100")
    assert result.returncode == 0, result.stderr[-6000:]
    assert int(re.findall(r"(\d+) refused", result.stdout)[-1]) > 100
