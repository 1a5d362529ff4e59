"""Lists what each kernel takes of each GPU, and holds it to the GPU's limits.

Usage: kernel_resources.py CUOBJDUMP TABLE OBJECT...

Each object holds programs for every GPU. The table, as CSV, has a row per kernel: the bytes of
dynamic shared memory that a launch asks for, where the kernel's name tells them, and the registers
of a thread on each GPU. Fails if a kernel has local memory, static shared memory or a stack that is
not expected, or is over a limit.
"""

from __future__ import annotations

import csv
import re
import subprocess
import sys

# Bytes of shared memory that a thread block may have, by GPU (CUDA C++ Programming Guide,
# "Technical Specifications per Compute Capability").
SHARED_BYTES = {
    "sm_80": 163 << 10,
    "sm_86": 99 << 10,
    "sm_89": 99 << 10,
    "sm_90a": 227 << 10,
    "sm_100": 227 << 10,
    "sm_120": 99 << 10,
}
REGISTERS = 255  # of a thread; __launch_bounds__ keeps those of a block within the file
STACKS = {"rotary_table_kernel": 40}  # bytes: sincos of large angles, in double, needs them
RESERVED = 1024  # bytes of shared memory that the system takes of each thread block

Resources = dict[str, int]


def read(cuobjdump: str, objects: list[str]) -> dict[str, dict[str, Resources]]:
    """What cuobjdump prints, by kernel and GPU."""
    found: dict[str, dict[str, Resources]] = {}
    for path in objects:
        command = [cuobjdump, "--dump-resource-usage", path]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        _, *parts = re.split(r"^arch = (\w+)$", text, flags=re.MULTILINE)
        for gpu, part in zip(parts[::2], parts[1::2], strict=True):
            for symbol, usage in re.findall(r"Function (\w+):\s+(.*)", part):
                numbers = re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)
                found.setdefault(symbol, {})[gpu] = {key: int(value) for key, value in numbers}
    return found


def readable(symbols: list[str]) -> dict[str, str]:
    """The kernels' names with their template arguments, without namespaces and parameters."""
    text = subprocess.run(
        ["c++filt", *symbols], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    names = {}
    for symbol, name in zip(symbols, text, strict=True):
        name = re.sub(r"paged_stream::|\(anonymous namespace\)::|^void ", "", name)
        names[symbol] = re.sub(r"\((?:int|bool)\)", "", name[: name.rindex("(")])
    return names


def problems(kernel: str, shared: int, used: dict[str, Resources]) -> list[str]:
    """What of it is over a limit, or missing."""
    found = [f"{kernel}: not there for {gpu}" for gpu in SHARED_BYTES if gpu not in used]
    for gpu, has in used.items():
        if shared > SHARED_BYTES[gpu]:
            found.append(
                f"{kernel}: {shared} bytes of shared memory of {SHARED_BYTES[gpu]} on {gpu}"
            )
        is_over = has["REG"] > REGISTERS or has["STACK"] > STACKS.get(kernel, 0)
        if is_over or has["SHARED"] > RESERVED or has["LOCAL"]:
            found.append(f"{kernel}: {has} on {gpu}")
    return found


def main(cuobjdump: str, table: str, *objects: str) -> int:
    found = read(cuobjdump, list(objects))
    names = readable(list(found))
    rows, errors = [], []
    for symbol in sorted(found, key=names.__getitem__):
        # attend_splits and attend_chunks have their bytes of shared memory as the last argument.
        match = re.fullmatch(r"(attend_\w+<.*), (\d+)>", names[symbol])
        name, shared = (match[1] + ">", match[2]) if match else (names[symbol], "")
        errors += problems(name, int(shared or 0), found[symbol])
        registers = [found[symbol].get(gpu, {}).get("REG", "") for gpu in SHARED_BYTES]
        rows.append([name, shared, *registers])
    with open(table, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["kernel", "dynamic shared memory, bytes", *SHARED_BYTES])
        writer.writerows(rows)
    print(f"{len(rows)} kernels, in {table}", *errors, sep="\n")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
