"""The check of a GPU on a fake one: its own logic must not fail on the first real one."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu import extension, plan
from benchmarks.gpu.place import RESTART, Place
from benchmarks.gpu.processes import LATE, capture, watch
from benchmarks.gpu.rows import NAME, exit_code, plan_row, read_rows, tables, write_row
from benchmarks.gpu.sections import SIZES, Case, Section
from benchmarks.plots import plot_gpu


@pytest.fixture
def usable(monkeypatch):
    """A device that this process may ask how it is."""
    state = SimpleNamespace(is_broken=False)

    def synchronize(*device: object) -> None:
        if state.is_broken:
            raise RuntimeError("CUDA error")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    return state


def make_section(folder: Path, seconds: float = 1e6, after: Place | None = None) -> Section:
    return Section("some", torch.device("cpu"), SIZES["tiny"], seconds, folder, after)


def names(folder: Path) -> list[str]:
    return [row["name"] for row in read_rows(folder / NAME)]


def test_what_fails_is_recorded_and_the_rest_goes_on(tmp_path, usable):
    section, results = make_section(tmp_path), []

    def steps(section: Section) -> None:
        results.append(section.attempt("first", lambda: 1 / 0))
        results.append(section.attempt("second", lambda: 0.5))
        section.record("speed", value=0.5, unit="s", share=0.25, of="ceiling", wanted="80%")

    section.run([Case("steps", steps), Case("rest", lambda s: s.record("equality", ok=True))])
    assert results == [None, 0.5]
    rows = read_rows(section.path)
    assert exit_code(rows) == 1
    text = "\n".join(tables(rows))
    assert "some: 1 of 2 hold" in text and "ZeroDivisionError" in text
    assert "25.0% of ceiling (wanted 80%)" in text and "equality" not in text


def test_what_has_no_time_left_is_null(tmp_path, usable):
    section = make_section(tmp_path, seconds=-1.0)
    section.run([Case("late", lambda section: pytest.fail("it was to be left out"))])
    (row,) = read_rows(section.path)
    assert row["value"] is None and row["skipped"] == "no time is left for it"
    assert exit_code([row]) == 2


def test_what_was_not_reached_is_null(tmp_path, usable):
    """Also if the process is gone in the midst of a case."""
    path = tmp_path / NAME
    for name in ("some", "other"):
        write_row(path, plan_row(name, None))

    def end(section: Section) -> None:
        section.record("before", value=1.0, unit="s")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_section(tmp_path).run([Case("one", end), Case("two", end)])
    rows = {row["name"]: row["value"] for row in read_rows(path)}
    assert rows == {"before": 1.0, "two": None, "other": None}


def test_a_broken_device_is_left_and_another_process_goes_on_behind(tmp_path, usable):
    done: list[str] = []

    def steps(section: Section) -> None:
        for name in "abc":
            section.attempt(name, work, section, name)

    def work(section: Section, name: str) -> None:
        done.append(name)
        if name == "b" and not usable.is_broken:
            usable.is_broken = True
            raise RuntimeError("CUDA error")
        section.record(name, ok=True)

    cases = [Case("steps", steps), Case("more", lambda section: section.record("more", ok=True))]
    with pytest.raises(SystemExit) as ended:
        make_section(tmp_path).run(cases)
    assert ended.value.code == RESTART
    place = Place.read(tmp_path, "some")
    assert place is not None and (place.case_name, place.name) == ("steps", "b")
    usable.is_broken = False
    make_section(tmp_path, after=place).run(cases)
    assert done == ["a", "b", "c"] and names(tmp_path) == ["a", "b", "c", "more"]
    assert Place.read(tmp_path, "some") is None


def test_a_case_that_fails_before_its_first_step_is_not_begun_again(tmp_path, usable):
    place = Place(section="some", case=0, case_name="bad", step=0, name="bad")
    cases = [Case("bad", lambda section: pytest.fail("again")), Case("good", lambda s: None)]
    make_section(tmp_path, after=place).run(cases)


def test_steps_are_not_made_of_steps(tmp_path, usable):
    section = make_section(tmp_path)
    section.attempt("outer", lambda: section.attempt("inner", lambda: 1))
    (row,) = read_rows(section.path)
    assert "AssertionError" in row["error"]


def test_a_process_ends_with_all_that_it_started(tmp_path):
    """The inner one holds a pipe open: reading it to its end waits for that one, too."""
    inner = "import time; print('began', flush=True); time.sleep(1e6)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    code, output = capture([sys.executable, "-c", outer], 5)
    assert code == LATE and "did not end" in output
    assert watch([sys.executable, "-c", "raise SystemExit(7)"], 60) == 7


@pytest.mark.parametrize("codes", [[LATE], [-9, 0], [RESTART, RESTART, 0]])
def test_a_section_is_begun_again_until_it_ends(tmp_path, monkeypatch, codes):
    commands = []

    def run(command, seconds):
        commands.append(command)
        step = len(commands)
        Place(section="ops", case=0, case_name="c", step=step, name=f"s{step}").write(tmp_path)
        return codes[len(commands) - 1]

    monkeypatch.setattr(gpu_check, "watch", run)
    args = gpu_check.parse(["--out", str(tmp_path)])
    gpu_check.supervise(args, "ops", time.monotonic() + 1000)
    assert len(commands) == len(codes)
    assert ["--goes-on" in command for command in commands] == [False] + [True] * (len(codes) - 1)
    failures = [code for code in codes if code not in (0, RESTART)]
    assert names(tmp_path) == ["s1"] * len(failures)


@pytest.mark.parametrize(("name", "seconds"), [("first", 450), ("second", 280)])
def test_sections_fit_the_time_of_their_call(name, seconds):
    """With a build, too, for which some of them are left out. The rest is for what comes before."""
    call = plan.CALLS[name]
    needed = {section: plan.SECTIONS[section].seconds for section in call.sections}
    with_build = sum(needed[section] for section in needed.keys() - set(call.left_out))
    assert call.seconds <= seconds - 10
    assert sum(needed.values()) <= call.seconds + 10
    assert with_build + plan.BUILD_SECONDS <= call.seconds


@pytest.mark.parametrize(
    ("problems", "built"), [([None], False), (["bad", None], True), (["bad", "bad"], None)]
)
def test_a_library_is_built_only_if_there_is_no_good_one(tmp_path, monkeypatch, problems, built):
    builds = []
    monkeypatch.setattr(extension, "_problem", lambda seconds: problems.pop(0))
    monkeypatch.setattr(extension, "_build", builds.append)
    assert extension.prepare_extension(tmp_path / NAME, 1e9, 1.0) is built
    assert bool(builds) == (built is not False)
    (row,) = read_rows(tmp_path / NAME)
    assert row["ok"] == (built is not None)


def test_what_was_measured_is_plotted(tmp_path):
    """Also if no section came so far."""
    for field in ("streams", "cache"):
        rows: list[dict] = [{"shape": "tiny", field: n, "value": 2.0 * n} for n in (1, 4)]
        plot_gpu([], tmp_path)
        (tmp_path / "gpu_check.png").unlink()
        plot_gpu(rows, tmp_path)
        assert (tmp_path / "gpu_check.png").stat().st_size > 0
