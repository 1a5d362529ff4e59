"""Models come from a hub, here one on this machine, and stay in its library's cache."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from paged_stream.models.formats.hub import HubName, hub_name
from tests.models.checkpoints import load_decoder
from tests.models.gguf_files import write_gguf
from tests.models.loopback_hub import Hub, commit_of

NAME = "some-org/some-model"
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 2}
# A fetch that is over at once shows lines as one that takes minutes does.
PULL_WITH_LINES = (
    "-c",
    "import sys; from paged_stream.system import progress_bar as bar;"
    "bar.DELAY_SECONDS = bar.LINE_SECONDS = 0.0; from paged_stream import cli;"
    "sys.exit(cli.main(['models', 'pull', NAME]))",
)


@pytest.fixture
def hub():
    with Hub().running() as running:
        yield running


@pytest.fixture
def files(tiny_llama, save):
    folder = save(tiny_llama())
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def python(hub, tmp_path):
    """Run Python beside the hub."""

    def call(*words, **variables):
        homes = {"HF_HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "xdg")}
        own = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
        return subprocess.run(
            [sys.executable, *words],
            capture_output=True,
            text=True,
            env=own | homes | {"HF_ENDPOINT": hub.url} | variables,
        )

    return call


@pytest.fixture
def models(python):
    """Run ``paged-stream models`` beside the hub."""
    return lambda *words, **variables: python("-m", "paged_stream", "models", *words, **variables)


def pulled(result, *names):
    """The folder of a model that was fetched, after a look at what is in it."""
    assert result.returncode == 0, result.stderr
    place = result.stdout.strip()
    assert sorted(os.listdir(place)) == sorted(names)
    return place


def assert_refused(result, *parts):
    """It failed with one line, below those that say what is being done, and what the library did
    not find."""
    assert result.returncode == 2
    *others, last = result.stderr.splitlines()
    assert last.startswith("error: "), result.stderr
    said = ("fetching ", "converting ", "loading ", "No files matched ")
    assert all(line.startswith(said) for line in others), result.stderr
    for part in parts:
        assert part in last


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("org/name", HubName("org/name", None, None)),
        ("org/na.me@v1.0", HubName("org/na.me", None, "v1.0")),
        ("org/name@refs/pr/1", HubName("org/name", None, "refs/pr/1")),
        ("org/name/q/a-Q8_0.gguf", HubName("org/name", "q/a-Q8_0.gguf", None)),
        ("org/name/a.gguf@v1", HubName("org/name", "a.gguf", "v1")),
        ("org/name/model.safetensors", None),
        ("folder/model.gguf", None),
        ("./org/name", None),
        ("org/../name", None),
        ("name", None),
    ],
)
def test_names(name, means):
    assert hub_name(name) == means


def test_a_model_is_fetched_listed_and_removed(hub, models, python, files):
    again = ["model.fp16.safetensors", "consolidated.safetensors", "params.json"]
    others = [*again, "modeling.py", "pytorch_model.bin", "onnx/model.safetensors"]
    hub.repositories[NAME] = {"main": files | dict.fromkeys(others, b"x")}
    place = pulled(models("pull", NAME), *files)
    for name, content in files.items():
        with open(os.path.join(place, name), "rb") as file:
            assert file.read() == content
    hub.requests.clear()
    assert pulled(models("pull", NAME), *files) == place and not hub.files_asked_for()
    assert pulled(models("pull", NAME, HF_HUB_OFFLINE="1"), *files) == place
    assert python("-m", "paged_stream", "info", NAME, HF_HUB_OFFLINE="1").returncode == 0
    size = sum(len(content) for content in files.values()) / 1e9
    assert models("list").stdout == f"{size:8.2f} GB  {NAME}\n"
    assert f"removed with {NAME}" in models("rm", NAME).stdout
    assert models("list").stdout == "" and not os.path.exists(place)
    assert_refused(models("rm", NAME), f"'{NAME}' is no model in the cache")


def test_an_adapter_is_fetched_too(hub, python, files):
    adapter = {"adapter_config.json": b'{"peft_type": "IA3"}', "adapter_model.safetensors": b""}
    hub.repositories |= {NAME: {"main": files}, "some-org/adapter": {"main": adapter}}
    words = ("-m", "paged_stream", "generate", "x", "--model", NAME, "--merge-lora")
    assert_refused(python(*words, "some-org/adapter@main"), "peft_type must be LORA, got IA3")


def test_without_a_connection(hub, models):
    not_there = "and the model is not in its cache"
    offline = models("pull", NAME, HF_HUB_OFFLINE="1")
    assert_refused(offline, f"HF_HUB_OFFLINE is set {not_there}")
    assert not hub.requests
    nowhere = models("pull", NAME, HF_ENDPOINT="http://127.0.0.1:1")
    assert_refused(nowhere, f"the hub cannot be reached {not_there}")


def test_a_connection_that_breaks_off_goes_on_where_it_was(hub, models, files):
    weights = os.urandom(24 << 20)  # the library keeps what it has in pieces of 10 MiB
    small = {"config.json": files["config.json"]}
    hub.repositories[NAME] = {"main": small | {"model.safetensors": weights}}
    hub.cut_after = 15 << 20
    place = pulled(models("pull", NAME), "model.safetensors", "config.json")
    with open(os.path.join(place, "model.safetensors"), "rb") as file:
        assert file.read() == weights
    assert f"bytes={10 << 20}-" in [wanted for _, _, wanted in hub.requests]


def test_a_fetch_that_failed_goes_on_with_what_is_missing(hub, models, files):
    hub.repositories[NAME] = {"main": files}
    hub.broken = {"model.safetensors"}
    assert_refused(models("pull", NAME), "Server error '500")
    hub.broken.clear()
    hub.requests.clear()
    pulled(models("pull", NAME), *files)
    [asked_for] = hub.files_asked_for()
    assert asked_for.endswith("/model.safetensors")


def test_how_far_it_is_without_a_terminal(hub, python, files):
    small = {"config.json": files["config.json"]}
    weights = bytes(3_000_000 - len(files["config.json"]))
    hub.repositories[NAME] = {"main": small | {"model.safetensors": weights}}
    code, text = PULL_WITH_LINES
    result = python(code, text.replace("NAME", repr(NAME)))
    pulled(result, "model.safetensors", "config.json")
    assert "\r" not in result.stderr
    # What comes before the number, the library says; it differs from release to release.
    assert ": 100%, 3.00M/3.00MB [" in result.stderr.splitlines()[-1]


def test_a_revision(hub, models, files):
    other = files | {"generation_config.json": b"{}"}
    hub.repositories[NAME] = {"main": files, "v2": other}
    places = [pulled(models("pull", f"{NAME}@v2"), *other)]
    places.append(pulled(models("pull", f"{NAME}@{commit_of(NAME, 'v2')}"), *other))
    assert places[0] == places[1] != pulled(models("pull", NAME), *files)
    assert_refused(models("pull", f"{NAME}@v3"), f"model='{NAME}@v3'", "has no revision 'v3'")
    assert_refused(models("rm", f"{NAME}@v2"), "a model is removed with all its revisions")


def test_a_token(hub, models, files):
    hub.repositories[NAME], hub.token = {"main": files}, "secret"
    assert_refused(models("pull", NAME), f"there is no {NAME}, or not without HF_TOKEN")
    pulled(models("pull", NAME, HF_TOKEN="secret"), *files)


def test_a_model_for_some_only(hub, models, files):
    hub.repositories[NAME], hub.is_gated = {"main": files}, True
    assert_refused(models("pull", NAME), f"{NAME} is for those who have asked for it there")


@pytest.mark.parametrize("instead", ["model.fp16.safetensors", "pytorch_model.bin"])
def test_other_weights_are_fetched_where_there_is_nothing_else(hub, models, files, instead):
    files[instead] = files.pop("model.safetensors")
    hub.repositories[NAME] = {"main": files | {"training_args.bin": b"x"}}
    pulled(models("pull", NAME), *files)


def test_a_gguf_file_of_several(hub, models, tiny_llama, tmp_path):
    path = write_gguf(tiny_llama(**SHAPE), tmp_path / "tiny.gguf")
    files = {"q/tiny-Q8_0.gguf": path.read_bytes(), "q/tiny-q4_k_m.gguf": b"other"}
    hub.repositories[NAME] = {"main": files}
    result = models("pull", f"{NAME}/q/tiny-Q8_0.gguf")
    assert result.returncode == 0, result.stderr
    assert not any("q4_k_m" in path for path in hub.files_asked_for())
    with open(result.stdout.strip(), "rb") as file:
        assert file.read() == path.read_bytes()
    usual = f"pass one of its 2 GGUF files, such as '{NAME}/q/tiny-q4_k_m.gguf'"
    assert_refused(models("pull", NAME), "no weights in safetensors or pickles", usual)


@pytest.mark.parametrize("name", ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"])
def test_a_gguf_file_in_parts_is_fetched_whole(hub, models, name):
    parts = ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"]
    files = {part: part.encode() for part in [*parts, "b-00001-of-00002.gguf"]}
    hub.repositories[NAME] = {"main": files}
    assert_refused(models("pull", f"{NAME}/{name}"), "is not a GGUF file")
    assert sorted(path[-len(name) :] for path in hub.files_asked_for()) == parts


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("smolm2-135m-instruct", "smollm2-135m-instruct"),
        ("some-org/Some-Modle", NAME),
        ("som-org/some-model", NAME),
        (f"{NAME}/tiny-Q8.gguf@v1", f"{NAME}/tiny-Q8_0.gguf@v1"),
    ],
)
def test_a_name_that_is_nearly_right(hub, models, files, name, meant):
    repository = files | {"tiny-Q8_0.gguf": b""}
    others = {"some-org/other": {"main": files}, "another/some-model-2": {"main": files}}
    hub.repositories |= {NAME: {"main": repository, "v1": repository}} | others
    assert_refused(models("pull", name), f"did you mean '{meant}'?")


@pytest.mark.parametrize("name", ["some-org/some-modle", "some-model", "Some-Modl"])
def test_a_name_that_is_nearly_that_of_a_model_in_the_cache(hub, models, files, name):
    hub.repositories[NAME] = {"main": files}
    models("pull", NAME)
    assert_refused(models("pull", name, HF_HUB_OFFLINE="1"), f"did you mean '{NAME}'?")


def test_a_file_whose_name_is_nearly_right(tiny_llama, tmp_path):
    path = write_gguf(tiny_llama(**SHAPE), tmp_path / "tiny.gguf")
    with pytest.raises(ValueError, match=f"no such file; did you mean '{path}'"):
        load_decoder(tmp_path / "tny.gguf")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["list", NAME], "models list takes no names"),
        (["pull"], "models pull takes names of models"),
        (["rm"], "models rm takes names of models"),
        (["show"], "invalid choice: 'show'"),
    ],
)
def test_wrong_use(models, words, told):
    assert_refused(models(*words), told)
