"""The checks of single ops, as cases: those that cannot harm others first, attention last."""

from __future__ import annotations

from benchmarks.gpu import cache_checks, op_checks, sampling_checks
from benchmarks.gpu.sections import Case, Section


def op_cases(section: Section) -> list[Case]:
    return [
        Case(check.__name__.removeprefix("check_"), check)
        for check in (
            cache_checks.check_elementwise,
            cache_checks.check_rotary_table,
            sampling_checks.check_sampling,
            sampling_checks.check_advance,
            cache_checks.check_moves,
            cache_checks.check_rotary_and_cache,
            op_checks.check_attention,
        )
    ]
