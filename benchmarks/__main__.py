"""Runs the speed benchmarks one after the other: what ``make bench`` does.

`sink_effect`, which takes six minutes and measures perplexity, is run by itself.
"""

from __future__ import annotations

import runpy
import sys

for name in ("bench_decode", "bench_stream"):
    print(f"\n{name}", flush=True)
    sys.argv = [name]
    runpy.run_module(f"benchmarks.{name}", run_name="__main__")
