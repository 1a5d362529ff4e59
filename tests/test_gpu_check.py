"""The check of a GPU, gone through in miniature on the CPU: its own logic must not fail there."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu.sections import TINY, Section, read_rows, tables
from benchmarks.gpu.steps import measure_shapes
from benchmarks.plots import plot_gpu


@pytest.fixture
def patient(monkeypatch):
    """Sections may take as long as a busy machine takes."""
    monkeypatch.setattr(gpu_check, "TOTAL_SECONDS", 1e6)
    monkeypatch.setattr(gpu_check, "SECTIONS", dict.fromkeys(gpu_check.SECTIONS, 1e6))


@pytest.mark.parametrize("name", list(gpu_check.WORKS))
def test_a_section_holds_on_the_cpu(tmp_path, name, patient):
    assert gpu_check.main(["--only", name, "--device", "cpu", "--out", str(tmp_path)]) == 0
    rows = read_rows(tmp_path / "gpu_check.jsonl")
    assert rows and all(row["section"] == name for row in rows)
    assert not any("no time is left" in row.get("skipped", "") for row in rows)


def test_sections_run_in_processes_of_their_own(tmp_path, capfd, patient):
    arguments = ["--sections", "build", "sanitizer", "--device", "cpu", "--out", str(tmp_path)]
    assert gpu_check.main(arguments) == 0
    assert "all sections hold" in capfd.readouterr().out


def test_what_was_measured_is_plotted(tmp_path):
    """Also if no section came so far."""
    section = Section("steps", torch.device("cpu"), TINY, 1e6, tmp_path / "rows.jsonl")
    plot_gpu([], tmp_path)
    measure_shapes(section)
    rows = read_rows(section.path)
    assert {row["cache"] for row in rows if "cache" in row} == set(TINY.caches)
    assert [row["streams"] for row in rows if "streams" in row] == [1, 2, 4]
    plot_gpu(rows, tmp_path)
    assert (tmp_path / "gpu_check.png").stat().st_size > 0


def make_section(path, seconds: float = 1e6) -> Section:
    return Section("some", torch.device("cpu"), TINY, seconds, path / "rows.jsonl")


def test_what_fails_is_recorded_and_the_rest_goes_on(tmp_path):
    section = make_section(tmp_path)

    def fail(divisor: int) -> float:
        return 1 / divisor

    assert section.attempt("first", fail, 0) is None
    assert section.attempt("second", fail, 2) == 0.5
    section.record("speed", value=0.5, unit="s", share=0.25, of="ceiling", wanted="80%")
    section.record("equality", ok=True)
    assert section.num_failures == 1
    text = "\n".join(tables(read_rows(section.path)))
    assert "some: 1 of 2 hold" in text and "ZeroDivisionError" in text
    assert "25.0% of ceiling (wanted 80%)" in text and "equality" not in text


def test_what_has_no_time_left_is_left_out(tmp_path):
    section = make_section(tmp_path, seconds=-1.0)
    assert section.attempt("late", pytest.fail, "it was to be left out") is None
    assert read_rows(section.path)[0]["skipped"] == "no time is left for it"


def test_a_section_that_breaks_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "start_section", lambda args, name, folder, seconds: False)
    arguments = ["--sections", "ceilings", "ops", "--device", "cpu", "--out", str(tmp_path)]
    assert gpu_check.main(arguments) == 1
