"""Fuzzes a service at length: ``python -m tests.http_fuzz --cases 20000``.

Prints the answers by status, the faults, and what the service's process holds now and then.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

import psutil

from tests.conftest import save_tokenizer, tiny_llama
from tests.http_fuzz.fuzz import fuzz
from tests.serve.services import serve_engine

AT_ONCE = 1000
# A request that does not go on is ended soon, and streams of one kind of request leave others room.
SERVICE = {"request_seconds": 2, "max_streams": 100}


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz a service over HTTP.")
    parser.add_argument("--cases", type=int, default=20_000, help="requests to send")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    options = parser.parse_args()
    statuses: Counter[int] = Counter()
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        tiny_llama(0, eos_token_id=0).save_pretrained(folder)
        save_tokenizer(Path(folder))
        with serve_engine(folder, state_dir=tempfile.mkdtemp(dir=folder), **SERVICE) as base:
            [child] = psutil.Process().children()
            for first in range(options.first, options.first + options.cases, AT_ONCE):
                found = fuzz(base, range(first, first + AT_ONCE))
                statuses += found.statuses
                faults += len(found.faults)
                for number, fault in found.faults:
                    print(f"request {number}: {fault}", flush=True)
                print(
                    f"{statuses.total()} requests, {faults} faults, "
                    f"{child.memory_info().rss >> 20} MiB, {child.num_threads()} threads, "
                    f"{child.num_fds()} files; {dict(sorted(statuses.items()))}",
                    flush=True,
                )
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
