"""docs/evidence.md is written from result files; here from files with made-up figures."""

from __future__ import annotations

import math
import os

import pytest

from benchmarks.evidence import EXPERIMENTS, Experiment, is_done, run
from benchmarks.evidence_page import PAGE, render, write_page
from benchmarks.evidence_perplexity import sink_ratios
from benchmarks.harness import RESULTS, read_results, write_results


def span(start, stop, perplexity, *, seconds=1.0, rss=2**30):
    nll = (stop - start) * math.log(perplexity)
    count = stop - start
    return {
        "start": start,
        "stop": stop,
        "nll": nll,
        "count": count,
        "seconds": seconds,
        "rss": rss,
    }


def variant(name, perplexity, sinks=0, window=None, **fields):
    return {
        "command": "paged-stream perplexity a.txt",
        "variant": name,
        "num_sink_tokens": sinks,
        "window_size": window,
        "scored": 1000,
        "tokens": 1000,
        "beyond": 512,
        "perplexity": perplexity,
        "perplexity_beyond": perplexity,
        "perplexity_sampled": perplexity,
        "spans": [],
    } | fields


def figure(case, tokens, perplexity, figure):
    return {
        "command": "python -m benchmarks.sink_effect",
        "model": "smollm2-135m-instruct",
        "text": "emma",
        "case": case,
        "tokens": tokens,
        "perplexity": perplexity,
        "figure": figure,
        "difference_percent": 100 * (perplexity / figure - 1),
    }


MODES = [
    variant("dense", 30.0),
    variant("0+512", 60.0, 0, 512),
    variant("recompute 512", 40.0, 0, 512),
    variant("4+508", 40.4, 4, 508),
]
FIGURES = [
    figure("4+508", "0-32768", 32.0, 32.0),
    figure("0+512", "0-32768", 48.0, 40.0),
    figure("4+508, unclamped", "0-32768", 100.0, 100.0),
    figure("4+2044", "0-2048", 40.0, 40.0),  # nothing has left the window
    figure("0+2048", "0-2048", 40.0, 40.0),
]


def page(tmp_path, name, rows):
    write_results(name, rows, tmp_path)
    return render(read_results(tmp_path), "images")


def test_modes(tmp_path):
    text = page(tmp_path, "modes_smollm2", MODES)
    assert "| 4+508 | 1,000 | 40.40 | 40.40 | 40.40 |" in text
    flat = " ".join(text.split())
    assert "it differs from recomputation by +1.0 % on the same predictions" in flat
    assert "The claim that it is within 2 % holds." in flat
    assert "the plain window is 1.49 times that of streaming" in flat
    assert "    paged-stream perplexity a.txt\n" in text
    assert "(images/modes_smollm2.png)" in text
    assert "StreamEval" not in text  # of which there is no file


def test_a_claim_that_fails_is_said_to_fail(tmp_path):
    rows = [*MODES[:3], variant("4+508", 44.0, 4, 508)]
    flat = " ".join(page(tmp_path, "modes_smollm2", rows).split())
    assert "by +10.0 %" in flat and "within 2 % **does not hold**." in flat


def test_figures_and_ratios(tmp_path):
    flat = " ".join(page(tmp_path, "sink_effect_smollm2-135m-instruct", FIGURES).split())
    assert "4 of 5 agree with the engine's to 0.1 %; the largest difference is +20.00 %" in flat
    assert sink_ratios(FIGURES) == [("512 (emma, 32,768 tokens)", 1.5)]
    assert "512 (emma, 32,768 tokens) 1.50. The claim that each is at least 1.3 holds." in flat


def test_recall_past_the_window(tmp_path):
    row = {"command": "c", "variant": "4+508", "questions": 10, "visible": 10, "visible_hits": 6}
    near = row | {"distance": 0, "recall": 0.6, "hits": 6, "gone": 0, "gone_hits": 0}
    far = near | {"distance": 80, "recall": 0.0, "visible": 0, "visible_hits": 0, "gone": 10}
    text = page(tmp_path, "recall_smollm2", [near, far])
    assert "| 80 | 0.0 % |" in text
    flat = " ".join(text.split())
    assert "Of 10 questions about a line that had left the window, 0 were answered" in flat
    assert "recall is zero past the window holds" in flat
    again = page(tmp_path, "recall_smollm2", [near, far | {"gone_hits": 1}])
    assert "**does not hold**" in again


@pytest.mark.parametrize(("last", "verdict"), [(20.1, "holds"), (25.0, "**does not hold**")])
def test_long_haul_compares_passes_over_the_same_text(tmp_path, last, verdict):
    spans = [span(k * 500, (k + 1) * 500, 20.0 if k < 4 else last) for k in range(6)]
    row = variant("4+508", 20.0, 4, 508, tokens=3000, text_tokens=1000, spans=spans)
    text = page(tmp_path, "long_haul", [row])
    assert "| 0 to 1,000 | 20.00 | +0.0 % |" in text
    assert f"perplexity is flat to 1 % {verdict}" in " ".join(text.split())


def test_sink_token(tmp_path):
    size = {"num_layers": 2, "hidden_size": 64, "context": 64, "steps": 40, "batch_size": 8}
    size |= {"cache": 32, "eval_tokens": 1024, "command": "c"}
    perplexities = {"vanilla": (50, 30, 20, 20), "sink token": (90, 20, 20, 20)}
    rows = [
        size | {"kind": kind, "sinks": sinks, "perplexity": value}
        for kind, values in perplexities.items()
        for sinks, value in zip((0, 1, 2, 4), values, strict=True)
    ]
    text = page(tmp_path, "train_sink_token", rows)
    assert "| sink token | 90.00 | 20.00 | 20.00 | 20.00 |" in text
    flat = " ".join(text.split())
    assert "four sink tokens on the vanilla model (+0.0 %) holds." in flat
    assert "4.50 times as high, and that of the vanilla model 2.50 times" in flat


def test_the_page_is_the_same_when_written_again(tmp_path):
    write_results("modes_smollm2", MODES, tmp_path / "results")
    path = tmp_path / "docs" / "evidence.md"
    write_page(tmp_path / "results", path)
    first = path.read_text()
    write_page(tmp_path / "results", path)
    assert path.read_text() == first and "(../results/modes_smollm2.png)" in first
    assert all(len(line) <= 100 for line in first.splitlines() if not line.startswith(("|", " ")))


def test_the_page_says_what_the_results_say(tmp_path):
    page = tmp_path / "docs" / "evidence.md"
    write_page(RESULTS, page)
    written = page.read_text().replace(
        os.path.relpath(RESULTS, page.parent), "../benchmarks/results"
    )
    assert PAGE.read_text() == written, "run `python -m benchmarks.evidence --page`"


def test_an_experiment_is_done_when_its_command_has_results(tmp_path):
    experiment = EXPERIMENTS[0]
    assert not is_done(experiment, tmp_path, quick=False)
    row = {"command": experiment.shown(quick=False)}
    write_results(experiment.name, [row], tmp_path)
    assert is_done(experiment, tmp_path, quick=False)
    assert not is_done(experiment, tmp_path, quick=True)
    write_results(experiment.name, [{"perplexity": 1.0}], tmp_path)  # by another command
    assert not is_done(experiment, tmp_path, quick=False)


def test_every_experiment_has_its_section(tmp_path):
    from benchmarks.evidence_page import SECTIONS

    assert {name for name, _ in SECTIONS} == {experiment.name for experiment in EXPERIMENTS}


@pytest.mark.slow
def test_an_experiment_runs_its_command_and_goes_on_with_a_long_one(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    text = tmp_path / "text.txt"
    text.write_text("some words to read. " * 10)
    experiment = Experiment(
        name="long_haul",
        command=f"paged-stream perplexity {text} --modes streaming --window-size 20 --every 50 "
        f"--cycle --model {folder} --kv-cache-memory-bytes 4000000 --tokens 120",
        quick="--tokens 420",
        tokens=1,
        is_long=True,
    )
    results = tmp_path / "results"
    assert run(experiment, results, quick=False) and is_done(experiment, results, quick=False)
    (row,) = read_results(results)["long_haul"]
    assert (row["tokens"], row["text_tokens"]) == (120, 200)
    assert run(experiment, results, quick=True)  # with more tokens: from the saved stream
    (row,) = read_results(results)["long_haul"]
    assert row["tokens"] == 420 and row["machine"]
    assert [span["stop"] for span in row["spans"]][:4] == [50, 100, 120, 150]
    assert (results / "long_haul.png").stat().st_size > 1000
    assert "One stream of 420 tokens" in render(read_results(results), "images")
    broken = Experiment(name="x", command="paged-stream perplexity nowhere", quick="", tokens=1)
    assert not run(broken, results, quick=False)
