"""A rehearsal of the first minutes on a GPU: `benchmarks/first_gpu.sh` from end to end, in a copy
of the working tree, with a fake device, fake tools, and the emulator in the driver's place."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import plan
from benchmarks.gpu.rows import NAME, Row, read_rows
from tests.cuda_emulator import emulator

ROOT = Path(__file__).parent.parent
LIBRARY = Path("paged_stream", "_C.abi3.so")
pytestmark = pytest.mark.cuda_check


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """What is taken along: the files of the repository and the library, but nothing else."""
    folder = tmp_path_factory.mktemp("first") / "tree"
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    shutil.copy(ROOT / LIBRARY, folder / LIBRARY)
    return folder


def rehearse(tree: Path, out: Path, call: str, *arguments: str, **variables: str) -> int:
    """Run the script as on a GPU, in miniature; its exit code. What it prints is shown."""
    fake = tree / "tests" / "fake_cuda"
    environment = {
        **os.environ,
        "FAKE_CUDA_DRIVER": str(emulator.build()),
        "PYTHONPATH": str(fake),
        "PATH": f"{fake / 'bin'}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "OUT": str(out),
        **variables,
    }
    command = ["bash", "benchmarks/first_gpu.sh", call, "--sizes", "tiny", "--patience", "1000"]
    done = subprocess.run([*command, *arguments], cwd=tree, env=environment, text=True)
    return done.returncode


def failures(rows: list[Row]) -> list[str]:
    return [row["name"] for row in rows if row.get("ok") is False]


def sections(rows: list[Row]) -> set[str]:
    """Those of which something was found."""
    return {row["section"] for row in rows if row.get("value") is not None or "ok" in row}


@pytest.mark.parametrize("call", ["first", "second"])
def test_every_section_comes_to_its_end(tree, tmp_path, call):
    """Nothing fails, and what is not installed on the machine is null, not absent."""
    code = rehearse(tree, tmp_path, call)
    rows = read_rows(tmp_path / NAME)
    assert failures(rows) == []
    assert sections(rows) == {"extension", *plan.CALLS[call].sections}
    skipped = [row for row in rows if "skipped" in row]
    assert all(row["value"] is None for row in skipped)
    assert {row["skipped"] for row in skipped} <= {"it is not installed"}
    assert code == (2 if skipped else 0)
    # No more than come back from a machine elsewhere, and the whole output.
    files = {path.name for path in tmp_path.rglob("*")}
    assert files <= {NAME, "gpu_check.png", "log.txt", "machine.txt", "ncu.txt"}
    assert "extension" in (tmp_path / "log.txt").read_text()


def test_a_kernel_that_fails_takes_nothing_else_with_it(tree, tmp_path):
    """The device breaks at one call of one op; later the process is killed at one of another."""
    out, marks = tmp_path / "out", [tmp_path / "broken", tmp_path / "killed"]
    failing = {
        "FAKE_CUDA_BREAKS": f"rotary_table:1:{marks[0]}",
        "FAKE_CUDA_KILLS": f"scatter_blocks:3:{marks[1]}",
    }
    code = rehearse(tree, out, "first", "--sections", "ops", **failing)
    rows = read_rows(out / NAME)
    assert all(mark.exists() for mark in marks) and code == 1
    assert failures(rows) == ["rotary_table", "gathered bfloat16"]
    cases = {row["case"] for row in rows if row.get("ok")}
    assert cases >= {"elementwise", "sampling", "moves", "rotary_and_cache", "attention"}


def test_a_library_that_does_not_load_is_built(tree, tmp_path):
    """Its time is taken from sections that matter less; they are null."""
    good, setup = (tree / LIBRARY).read_bytes(), (tree / "setup.py").read_text()
    copy = "import shutil, sys\nassert '--force' in sys.argv\n"
    copy += f"shutil.copy('good', {str(LIBRARY)!r})\n"
    try:
        (tree / "good").write_bytes(good)
        (tree / "setup.py").write_text(copy)
        (tree / LIBRARY).write_bytes(b"made for another machine")
        code = rehearse(tree, tmp_path, "first", "--sections", "ceilings", "steps")
    finally:
        (tree / LIBRARY).write_bytes(good)
        (tree / "setup.py").write_text(setup)
    rows = {row["name"]: row for row in read_rows(tmp_path / NAME)}
    assert code == 2 and rows["extension"]["was"] == "built"
    assert rows["copy bandwidth"]["value"] > 0 and rows["steps"]["value"] is None


def test_a_library_of_other_sources_is_not_used(tree, tmp_path):
    source, setup = tree / "csrc" / "registration.cpp", (tree / "setup.py").read_text()
    text = source.read_text()
    try:
        source.write_text(text + "// another\n")
        (tree / "setup.py").write_text("raise SystemExit('no compiler here')\n")
        code = rehearse(tree, tmp_path, "first", "--sections", "ceilings")
    finally:
        source.write_text(text)
        (tree / "setup.py").write_text(setup)
    rows = {row["name"]: row for row in read_rows(tmp_path / NAME)}
    assert code == 1 and "no compiler here" in rows["extension"]["error"]
    assert rows["ceilings"]["value"] is None


def test_the_command_is_explained(tree):
    done = subprocess.run(["benchmarks/first_gpu.sh"], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 1 and "first|second" in done.stderr
