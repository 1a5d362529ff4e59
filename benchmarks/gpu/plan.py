"""What a check of a GPU consists of: sections, their limits of time, and the calls that share them.

Only the standard library is needed to read this: what starts the sections must not fail with them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """One section.

    Args:
        seconds: that it may take.
        cases: functions in `benchmarks.gpu` that name its cases, in the order in which they run.
    """

    seconds: int
    cases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """Sections that run one after the other.

    Args:
        seconds: that all of them may take together.
        sections: cheap and safe ones first.
        left_out: sections that make room for the build, if the extension has to be built.
    """

    seconds: int
    sections: tuple[str, ...]
    left_out: tuple[str, ...] = ()


BUILD_SECONDS = 170
SECTIONS = {
    "ceilings": Plan(30, ("timing.ceiling_cases",)),
    "ops": Plan(80, ("checks.op_cases",)),
    "engine": Plan(70, ("engine_checks.engine_cases",)),
    "attention": Plan(50, ("attention.decode_cases",)),
    "profile": Plan(60, ("profile.profile_cases",)),
    "steps": Plan(110, ("steps.decode_cases",)),
    "ncu": Plan(45, ("ncu.ncu_cases",)),
    "sanitizer": Plan(90, ("sanitizer.sanitizer_cases",)),
    "prefill": Plan(60, ("attention.prefill_cases", "steps.prefill_cases")),
    "recompute": Plan(90, ("steps.recompute_cases",)),
}
CALLS = {
    "first": Call(
        440,
        ("ceilings", "ops", "engine", "attention", "profile", "steps", "ncu"),
        left_out=("profile", "steps", "ncu"),
    ),
    "second": Call(
        270,
        ("ceilings", "sanitizer", "prefill", "recompute"),
        left_out=("ceilings", "prefill", "recompute"),
    ),
    "all": Call(900, tuple(SECTIONS)),
}
