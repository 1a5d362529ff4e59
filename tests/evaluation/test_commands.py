"""The evaluation commands as a user runs them: tables, files, pictures, one-line errors."""

from __future__ import annotations

import csv
import json
import sys

import pytest

from paged_stream.cli import main

ENGINE = ["--dtype", "float32", "--kv-cache-memory-bytes", "4000000"]
SIZES = ["--num-sink-tokens", "4", "--window-size", "20"]
PNG = b"\x89PNG"


@pytest.fixture
def options(folder):
    return ["--model", str(folder), *ENGINE]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_perplexity_in_four_modes(text_file, tmp_path, options, capsys):
    files = [tmp_path / name for name in ("a.jsonl", "a.csv", "a.png")]
    outputs = ["--json", str(files[0]), "--csv", str(files[1]), "--plot", str(files[2])]
    arguments = ["perplexity", str(text_file), "--tokens", "100", "--recompute-every", "4"]
    assert main([*arguments, *SIZES, *outputs, *options]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:3] == ["sinks+window", "tokens", "perplexity"]
    assert [line[:12].strip() for line in table[1:]] == ["dense", "0+24", "recompute 24", "4+20"]
    rows = lines(files[0])
    assert [row["scored"] for row in rows] == [100, 100, 25, 100]
    assert all(row["tokens"] == 100 and row["beyond"] == 24 for row in rows)
    assert all(row["perplexity"] > 1 and row["perplexity_sampled"] > 1 for row in rows)
    with files[1].open() as file:
        curves = list(csv.DictReader(file))
    assert {row["variant"] for row in curves} == {row["variant"] for row in rows}
    assert sum(row["variant"] == "dense" for row in curves) == 25  # four predictions each
    assert files[2].read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("sinks", ["0+24", "1+23", "2+22", "4+20", "8+16"]),
        ("cache", ["4+8", "4+12"]),
        ("linebreak", ["0+24", "4+20", '4"\\n"+20']),
    ],
)
def test_ablations(text_file, tmp_path, options, capsys, kind, names):
    plot = tmp_path / "a.png"
    arguments = ["perplexity", str(text_file), "--ablation", kind, "--cache-sizes", "12", "16"]
    assert main([*arguments, *SIZES, "--tokens", "60", "--plot", str(plot), *options]) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table[1:]] == names
    assert plot.read_bytes().startswith(PNG)


def test_a_long_run_and_its_continuation(text_file, tmp_path, options, capsys):
    stream, plot = tmp_path / "run.stream", tmp_path / "run.png"
    arguments = ["perplexity", str(text_file), "--modes", "streaming", *SIZES, "--cycle"]
    arguments += ["--save-stream", str(stream), "--every", "50", *options]
    assert main([*arguments, "--tokens", "170"]) == 0
    assert "170" in capsys.readouterr().out
    assert main([*arguments, "--tokens", "330", "--resume", "--plot", str(plot)]) == 0
    assert "330" in capsys.readouterr().out
    stops = [line["stop"] for line in lines(tmp_path / "run.stream.jsonl")[1:]]
    assert stops == [50, 100, 150, 170, 200, 250, 300, 330]
    assert plot.read_bytes().startswith(PNG)


def test_recall(tmp_path, options, capsys):
    files = [tmp_path / "a.jsonl", tmp_path / "a.png"]
    arguments = ["streameval", "--cache", "200", "400", "--distances", "1", "12", "--questions"]
    outputs = ["--json", str(files[0]), "--plot", str(files[1])]
    assert main([*arguments, "2", *outputs, *options]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["4+196", "1"],
        ["4+196", "12"],
        ["4+396", "1"],
        ["4+396", "12"],
    ]
    assert [row["gone"] for row in lines(files[0])] == [0, 2, 0, 2]
    assert files[1].read_bytes().startswith(PNG)


def test_dialogue(tmp_path, options, capsys):
    questions, files = tmp_path / "q.jsonl", [tmp_path / "a.jsonl", tmp_path / "a.png"]
    questions.write_text('{"question": "what is it?", "answer": "nothing"}\n' * 3)
    arguments = ["dialogue", str(questions), "--rounds", "2", "--cache", "200"]
    outputs = ["--answer-tokens", "4", "--json", str(files[0]), "--plot", str(files[1])]
    assert main([*arguments, *outputs, *options]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert names == ["one-shot", "dense", "0+200", "4+196"]
    assert [row["rounds"] for row in lines(files[0])] == [2, 2, 2, 2]
    assert files[1].read_bytes().startswith(PNG)


def test_attention_map(text_file, tmp_path, options, capsys):
    files = [tmp_path / "a.jsonl", tmp_path / "a.png"]
    arguments = ["attention-map", str(text_file), "--length", "8", "--samples", "4", "--heads", "0"]
    shares = ["5", "--share-length", "60", "--first-query", "30", "--num-sink-tokens", "2"]
    outputs = ["--json", str(files[0]), "--plot", str(files[1])]
    assert main([*arguments, *shares, *outputs, *options[:4]]) == 0  # it has no cache
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert table[0] == ["layer", "token", "0", "token", "1", "together"]
    rows = lines(files[0])
    assert [row["layer"] for row in rows] == [0, 1]  # two layers
    assert float(table[1][-1]) == pytest.approx(rows[0]["share"], abs=1e-3)
    assert files[1].read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["perplexity", "nowhere.txt"], "nowhere.txt"),
        (["perplexity", "TEXT", "--tokens", "0"], "tokens must be >= 1, got 0"),
        (["perplexity", "TEXT", "--modes", "x"], "modes must be some of dense"),
        (["perplexity", "TEXT", "--ablation", "x"], "ablation must be one of sinks"),
        (["perplexity", "TEXT", "--window-size", "0"], "--window-size must be >= 1, got 0"),
        (["perplexity", "TEXT", "--num-sink-tokens", "-1"], "--num-sink-tokens must be >= 0"),
        (["perplexity", "TEXT", "--cycle"], "save_stream must be given"),
        (["perplexity", "TEXT", "--save-stream", "a"], "save_stream runs one variant"),
        (["perplexity", "TEXT", "--plot", "no/a.png"], "plot: there is no folder"),
        (["perplexity", "TEXT", "--plot", "a.txt"], "plot must end in one of"),
        (["perplexity", "TEXT", "--model", "nowhere"], "model='nowhere' is no folder"),
        (["perplexity", "EMPTY"], "is empty"),
        (["perplexity", "BINARY"], "is not UTF-8 text: byte 0xff at offset 0"),
        (["streameval", "--cache", "4"], "cache must be more than num_sink_tokens=4, got 4"),
        (["streameval", "--distances", "99999"], "distances must be at least 0"),
        (["streameval", "--questions", "0"], "questions must be >= 1"),
        (["dialogue", "TEXT"], "line 1: expected"),
        (["dialogue", "EMPTY"], "has no questions"),
        (["dialogue", "BINARY"], "is not UTF-8 text: byte 0xff at offset 0"),
        (["dialogue", "TEXT", "--rounds", "0"], "rounds must be >= 1"),
        (["dialogue", "TEXT", "--cache", "4"], "cache must be more than num_sink_tokens=4, got 4"),
        (["attention-map", "TEXT"], "must have at least 4096 tokens, it has 150"),
        (["attention-map", "TEXT", "--first-query", "9999"], "first_query must be in"),
    ],
)
def test_errors_are_one_line_and_exit_2(text_file, tmp_path, options, capsys, arguments, message):
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    paths = {"TEXT": text_file, "EMPTY": tmp_path / "empty", "BINARY": tmp_path / "binary"}
    arguments = [str(paths.get(argument, argument)) for argument in arguments]
    if "--model" not in arguments:
        arguments += options[:4] if arguments[0] == "attention-map" else options
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


def test_a_plot_without_matplotlib(text_file, options, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["perplexity", str(text_file), "--plot", "a.png", *options]) == 2
    assert "plots need matplotlib; install it with" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["perplexity", "streameval", "dialogue", "attention-map"])
def test_help_shows_an_example(capsys, command):
    with pytest.raises(SystemExit) as exit_info:
        main([command, "--help"])
    assert exit_info.value.code == 0
    out = capsys.readouterr().out
    assert f"example:\n  paged-stream {command}" in out
    assert "--num-threads" in out and "--config FILE" in out and "PAGED_STREAM_" in out
