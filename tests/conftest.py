"""A tiny model on disk, with and without a tokenizer, engines on it, and one Ray for all tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

# Before torch is loaded: its threads spin by default while they wait for each other. Beside a busy
# process, the one waited for does not run then, and a forward pass of a reference takes minutes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from paged_stream import EngineConfig, LLMEngine
from tests.reference import tiny_llama

# Examples may take as long as a busy machine takes, and may share the fixtures of their test.
settings.register_profile(
    "tests",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("tests")

# A shell starts what runs in the background with Ctrl-C ignored, and processes that a test starts
# would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

VOCAB = 97
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def save_tokenizer(folder) -> None:
    """Letters, digits and some punctuation, one token each; ``</s>`` ends."""
    letters = [chr(code) for code in range(32, 32 + VOCAB - 2)]
    vocab = {"</s>": 0, "<unk>": 1} | {letter: i + 2 for i, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", chat_template=TEMPLATE
    )
    fast.save_pretrained(folder)


# Seconds in which Ray must do something or be taken for dead: a busy machine takes its time.
RAY_LIMITS = (
    "RAY_raylet_start_wait_time_s",
    "RAY_worker_register_timeout_seconds",
    "RAY_gcs_server_request_timeout_seconds",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S",
)


@pytest.fixture(scope="session")
def ray():
    """Ray with two processors, for all tests of this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name in RAY_LIMITS:
            patch.setenv(name, "600")
        patch.setenv("RAY_worker_niceness", "0")  # 15 leaves them nothing beside a busy neighbour
        patch.delenv("RAY_ADDRESS", raising=False)
        ray = pytest.importorskip("ray")
        ray.init(
            address="local",
            num_cpus=2,
            object_store_memory=200 << 20,
            include_dashboard=False,
            log_to_driver=False,
        )
        yield ray
        ray.shutdown()


@pytest.fixture(scope="session")
def bare_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bare")
    tiny_llama(0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_llama(0, eos_token_id=0).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture
def install(tmp_path_factory):
    """Makes an environment with some packages; returns its Python."""

    def make(packages):
        environment = tmp_path_factory.mktemp("environment")
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        python = environment / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        return python

    return make


@pytest.fixture
def make_engine(folder):
    def make(model=folder, **settings):
        defaults = {
            "num_sink_tokens": 4,
            "window_size": 24,
            "block_size": 8,
            "max_num_seqs": 8,
            "max_num_batched_tokens": 32,
            "dtype": "float32",
            "kv_cache_memory_bytes": 4 << 20,
        }
        return LLMEngine(EngineConfig(model=str(model), **(defaults | settings)))

    return make
