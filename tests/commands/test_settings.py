"""Settings from the command line, the environment and a file: what counts, what is refused."""

from __future__ import annotations

import json
import shlex

import pytest

from paged_stream.cli import main, make_parser
from paged_stream.commands.all_commands import COMMANDS
from paged_stream.commands.options import flag, settings_group
from paged_stream.commands.settings import CLASSES, complete, known_settings, read_environment
from paged_stream.config import EngineConfig
from paged_stream.scheduler.fields import Bytes, Integer, Number, Switch
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.scheduler.settings import settings_of
from paged_stream.scheduler.word_fields import Choice, Integers

PARSER = make_parser()
# What each command leaves out of its classes because it decides it itself, or has no use for it.
DECIDED = {
    "generate": dict.fromkeys(["seed", "max_num_seqs", "lora_modules"], EngineConfig),
    "chat": dict.fromkeys(["seed", "max_num_seqs", "lora_modules"], EngineConfig),
    "info": {"lora_modules": EngineConfig},
    "batch": {"seed": EngineConfig},
}
# A value of each field that is not its default, as text.
OTHERS = {
    "otlp_traces_endpoint": "http://localhost:4318/v1/traces",
    "structured_outputs": '{"regex": "a+"}',
    "model": "some-model",
    "device": "cuda:1",
    "input": "corpus",
    "output": "/out",
    "prompt_template": "{{ text }}",
    "logit_bias": '{"7": -1.5}',
    "rename": "text=body",
    "lora_modules": "mine=some-folder",
    "speculative_config": '{"method": "ngram"}',
    "max_errors": "1%",
}


def parse(line, config=None, environ=()):
    """The namespace that a command gets."""
    arguments = shlex.split(line) + (["--config", str(config)] if config else [])
    args = PARSER.parse_args(arguments)
    complete(args, args.command.groups, dict(environ))
    return args


def other_text(setting):
    """Text that stands for another value than the default."""
    kind = setting.kind
    if setting.name in OTHERS:
        return OTHERS[setting.name]
    if isinstance(kind, Choice):
        return next(choice for choice in kind.choices if choice != setting.default)
    if isinstance(kind, Switch):
        return "false" if setting.default else "true"
    if isinstance(kind, Bytes):
        return "3MiB"
    if isinstance(kind, Integer | Integers):
        return "7"
    return "0.5" if isinstance(kind, Number) else "words"


def bad_text(setting):
    """Text that a field refuses, or ``None`` if it takes all."""
    for text in ("", "-5", "/etc/passwd"):
        try:
            setting.kind.check("x", setting.kind.parse(text))
        except ValueError:
            return text
    return None


def shown():
    """Every command, and each setting that it takes."""
    for command in COMMANDS:
        required = command.name == "batch"
        line = f"{command.name} {'--input in --output out' if required else ''}"
        line += {"perplexity": "text", "attention-map": "text", "dialogue": "file"}.get(
            command.name, ""
        )
        for group in command.groups:
            for name in group.settings:
                yield pytest.param(line, group, name, id=f"{command.name}-{group.title}-{name}")


def on_the_command_line(group, setting, text):
    if setting.name == group.positional:
        return f"{text!r}"
    if isinstance(setting.kind, Switch):
        return flag(setting.name if text == "true" else "no_" + setting.name)
    return f"{flag(setting.name)} {shlex.quote(text)}"


@pytest.mark.parametrize(("line", "group", "name"), list(shown()))
def test_every_setting_is_reached_from_everywhere(line, group, name, tmp_path):
    setting, path = group.settings[name], tmp_path / "settings.yaml"
    text = other_text(setting)
    expected = setting.kind.check(name, setting.kind.parse(text))
    assert expected != setting.default
    path.write_text(json.dumps({name: text}))
    environ = {f"PAGED_STREAM_{name.upper()}": text}
    # The required options of a batch go before what this test is about.
    bare = line if name not in ("input", "output") else "batch --input in"
    if name == "input":
        bare = "batch --output out"
    given = f"{bare} {on_the_command_line(group, setting, text)}"
    for args in (parse(given), parse(bare, environ=environ), parse(bare, path)):
        assert getattr(args, name) == expected
        assert group.read(args)[name] == expected


@pytest.mark.parametrize(("line", "group", "name"), list(shown()))
def test_a_bad_value_is_named_with_its_place(line, group, name, tmp_path):
    setting, path = group.settings[name], tmp_path / "settings.yaml"
    bare = {"input": "batch --output out", "output": "batch --input in"}.get(name, line)
    text = bad_text(setting)
    assert text is not None
    path.write_text(json.dumps({name: text}))
    variable = f"PAGED_STREAM_{name.upper()}"
    places = {variable: ((bare,), {"environ": {variable: text}})}
    places[f"{path}: {name}"] = ((bare, path), {})
    if not isinstance(setting.kind, Switch):
        option = "" if name == group.positional else f"{flag(name)}="
        places[group.label(name)] = ((f"{bare} {option}{shlex.quote(text)}",), {})
    for place, (arguments, how) in places.items():
        with pytest.raises(ValueError) as error:
            parse(*arguments, **how)
        assert str(error.value).startswith(f"{place} must be "), error.value
        assert ", got " in str(error.value)


def test_every_field_is_on_the_command_line_of_the_commands_that_use_its_class():
    """But for what these commands decide themselves, and what only Python and HTTP have."""
    whole = {"generate", "chat", "batch", "serve", "info"}
    for command in COMMANDS:
        for group in command.groups if command.name in whole else ():
            every = {n for n, each in settings_of(group.cls).items() if each.on_command_line}
            decided = DECIDED.get(command.name, {})
            left_out = {name for name, cls in decided.items() if cls is group.cls}
            assert every - group.settings.keys() == left_out
    for cls in CLASSES:
        hidden = {n for n, each in settings_of(cls).items() if not each.on_command_line}
        in_python = {"n", "logprobs", "prompt_logprobs", "detokenize", "logits_processors"}
        assert hidden == (in_python if cls is SamplingParams else set())
    used = {name for command in COMMANDS for group in command.groups for name in group.settings}
    assert used == set(known_settings())


def test_options_before_variables_before_the_file_before_defaults(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("window_size: 1\nnum_sink_tokens: 1\nblock_size: 1\n")
    environ = {"PAGED_STREAM_WINDOW_SIZE": "2", "PAGED_STREAM_NUM_SINK_TOKENS": "2"}
    args = parse("info --window-size 3", path, environ)
    assert (args.window_size, args.num_sink_tokens, args.block_size) == (3, 2, 1)
    assert args.max_num_batched_tokens == 512


def test_yaml_and_json_say_the_same(tmp_path):
    content = {"model": "m", "window_size": 8, "quantization": None, "stop": ["a"], "top_k": 5}
    paths = [tmp_path / "a.json", tmp_path / "a.yaml"]
    paths[0].write_text(json.dumps(content, indent="\t"))
    paths[1].write_text("model: m\nwindow-size: 8\nquantization: null\nstop: [a]\ntop_k: 5\n")
    for path in paths:
        args = parse("generate", path)
        assert (args.model, args.quantization, args.window_size) == ("m", None, 8)
        assert (args.stop, args.top_k, args.max_tokens) == (("a",), 5, 256)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("MODEL", "123", "123"),
        ("QUANTIZATION", "none", None),
        ("WINDOW_SIZE", "1024", 1024),
        ("MAX_TOKENS", "none", None),
        ("TEMPERATURE", "1e-3", 1e-3),
        ("CUDA_GRAPHS", "False", False),
        ("STOP_TOKEN_IDS", "[1, 2]", (1, 2)),
        ("STOP_TOKEN_IDS", "5", (5,)),
        ("STOP", "3", ("3",)),
        ("STOP", '["a", "b"]', ("a", "b")),
        ("STOP", "none", ("none",)),
    ],
)
def test_variables_have_the_type_of_their_field(name, text, value):
    args = parse("generate", environ={f"PAGED_STREAM_{name}": text, "PATH": "x"})
    assert getattr(args, name.lower()) == value


def test_lists_on_the_command_line():
    args = parse("generate --stop a --stop 'b c' --stop-token-ids 3 prompt --stop-token-ids 4")
    assert (args.stop, args.stop_token_ids, args.prompt) == (("a", "b c"), (3, 4), "prompt")
    assert parse("batch --input a b --input c --output d").input == ("a", "b", "c")


def test_what_a_command_has_no_use_for_is_left_alone(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("temperature: hot\nport: 80\nwindow_size: 24\n")
    args = parse("info", path)
    assert args.window_size == 24 and not hasattr(args, "temperature")


def test_what_must_be_given(capsys):
    assert main(["batch", "--input", "x"]) == 2
    assert capsys.readouterr().err == "error: --output must be given, a folder or URI\n"


def test_groups_leave_fields_out_and_have_defaults_of_their_own():
    group = settings_group(
        "some", EngineConfig, without=("seed",), defaults={"block_size": 8, "model": "m"}
    )
    assert "seed" not in group.settings and group.settings["block_size"].default == 8
    assert group.settings["cuda_graphs"].default is True
    assert list(settings_group("some", EngineConfig, only=("seed",)).settings) == ["seed"]


def test_addresses_of_a_cluster_are_no_settings(caplog):
    environ = {"PAGED_STREAM_PORT": "tcp://10.0.0.1:80", "PAGED_STREAM_PORT_80_TCP": "tcp://x"}
    assert read_environment(environ) == {} and not caplog.records
    assert read_environment({"PAGED_STREAM_PORT": "80"}) == {"port": ("PAGED_STREAM_PORT", "80")}


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
        ("max_model_len: 8", "there is no setting 'max_model_len': texts may be of any length"),
        ("n: 3", "there is no setting 'n'\n"),
        ("window_size: wide", "settings.yaml: window_size must be an int or None, got 'wide'"),
        ("window_size: 0", "settings.yaml: window_size must be >= 1, got 0"),
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
    assert "PAGED_STREAM_WINDOW_SIZE must be an int or None, got 'wide'" in capsys.readouterr().err


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
