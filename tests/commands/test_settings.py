"""Settings from a file and from the environment: what counts, and what is refused."""

from __future__ import annotations

import argparse
import json

import pytest

from paged_stream.cli import main
from paged_stream.commands.options import add_engine_options, add_sampling_options
from paged_stream.commands.settings import (
    apply_settings,
    engine_settings,
    read_environment,
    sampling_params,
)
from paged_stream.config import EngineConfig
from paged_stream.scheduler.sampling_params import SamplingParams


def parse(arguments, config=None, environ=()):
    parser = argparse.ArgumentParser()
    add_engine_options(parser)
    add_sampling_options(parser, max_tokens=256, temperature=0.8)
    apply_settings(parser, config, dict(environ))
    return parser.parse_args(arguments)


def test_options_before_variables_before_the_file_before_defaults(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("window_size: 1\nnum_sink_tokens: 1\nblock_size: 1\nmax_num_seqs: 9\n")
    environ = {"PAGED_STREAM_WINDOW_SIZE": "2", "PAGED_STREAM_NUM_SINK_TOKENS": "2"}
    args = parse(["--window-size", "3"], path, environ)
    settings = engine_settings(args)
    assert settings["window_size"] == 3
    assert settings["num_sink_tokens"] == 2
    assert settings["block_size"] == 1
    assert settings["max_num_seqs"] == 9  # no option of its own
    assert settings["tensor_parallel_size"] == 1
    assert "max_num_batched_tokens" not in settings and "model" not in settings
    assert "block_size" not in engine_settings(args, without=("block_size",))


def test_yaml_and_json_say_the_same(tmp_path):
    content = {"model": "m", "window_size": 8, "quantization": None, "stop": ["a"], "top_k": 5}
    paths = [tmp_path / "a.json", tmp_path / "a.yaml"]
    paths[0].write_text(json.dumps(content, indent="\t"))
    paths[1].write_text("model: m\nwindow-size: 8\nquantization: null\nstop: [a]\ntop_k: 5\n")
    for path in paths:
        args = parse([], path)
        assert args.model == "m" and engine_settings(args)["quantization"] is None
        params = sampling_params(args)
        assert (params.stop, params.top_k, params.max_tokens) == (("a",), 5, 256)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("MODEL", "123", "123"),
        ("QUANTIZATION", "none", None),
        ("WINDOW_SIZE", "1024", 1024),
        ("MAX_TOKENS", "none", None),
        ("TEMPERATURE", "1e-3", 1e-3),
        ("CUDA_GRAPHS", "False", False),
        ("STOP_TOKEN_IDS", "[1, 2]", [1, 2]),
        ("STOP", "3", "3"),
    ],
)
def test_variables_have_the_type_of_their_field(name, text, value):
    settings = read_environment({f"PAGED_STREAM_{name}": text, "PATH": "x"})
    assert settings == {name.lower(): value}
    assert type(settings[name.lower()]) is type(value)


def test_every_field_can_be_set():
    names = {*EngineConfig.__dataclass_fields__, *SamplingParams.__dataclass_fields__}
    environ = {f"PAGED_STREAM_{name.upper()}": "none" for name in names}
    assert read_environment(environ) == dict.fromkeys(names)


def test_a_variable_that_is_almost_a_setting_is_warned_of(caplog):
    environ = {"PAGED_STREAM_WINDOWSIZE": "1", "PAGED_STREAM_SERVICE_PORT": "tcp://10.0.0.1"}
    assert read_environment(environ) == {}
    (record,) = caplog.records
    assert "PAGED_STREAM_WINDOWSIZE is no setting; did you mean window_size?" in record.message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("windowsize: 3", "there is no setting 'windowsize'; did you mean window_size?"),
        ("colour: red", "there is no setting 'colour'\n"),
        ("window_size: wide", "window_size must be int or None, got 'wide'"),
        ("window_size: 0", "window_size must be >= 1, got 0"),
        ("- window_size", "must have names and values"),
        ("a: [", "settings.yaml: while parsing"),
    ],
)
def test_a_file_that_is_wrong(tmp_path, folder, capsys, content, message):
    path = tmp_path / "settings.yaml"
    path.write_text(content)
    assert main(["generate", "x", "--model", str(folder), "--config", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


def test_wrong_sources(tmp_path, capsys, monkeypatch):
    assert main(["info", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err
    path = tmp_path / "settings.json"
    path.write_text("{")
    assert main(["info", "--config", str(path)]) == 2
    assert f"error: {path}: Expecting" in capsys.readouterr().err
    monkeypatch.setenv("PAGED_STREAM_WINDOW_SIZE", "wide")
    assert main(["info"]) == 2
    assert "PAGED_STREAM_WINDOW_SIZE must be int or None, got 'wide'" in capsys.readouterr().err


def test_commands_take_settings_from_outside(folder, tmp_path, text_file, monkeypatch, capsys):
    path = tmp_path / "settings.yaml"
    path.write_text("window_size: 24\nkv_cache_memory_bytes: 4000000\ntemperature: 0.5\n")
    monkeypatch.setenv("PAGED_STREAM_MODEL", str(folder))
    monkeypatch.setenv("PAGED_STREAM_DTYPE", "float32")
    assert main(["info", "--config", str(path)]) == 0
    assert "4 sink tokens + a window of 24" in capsys.readouterr().out
    # Evaluations have sinks, windows and company of their own.
    path.write_text("window_size: 20\nmax_num_seqs: 4\nmax_num_batched_tokens: 16\nseed: 3\n")
    arguments = ["perplexity", str(text_file), "--tokens", "60", "--modes", "streaming", "dense"]
    assert main([*arguments, "--config", str(path), "--num-threads", "1"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["4+20", "dense"]
    assert "4+20: 100%, 60/60 tok" in err and "\r" not in err
