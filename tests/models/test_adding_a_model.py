"""The family that docs/adding-a-model.md adds works as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from paged_stream.models import families
from paged_stream.models.formats.resolve import resolve_model
from paged_stream.models.loader import load_config
from paged_stream.models.registry import all_families
from tests import family_reference
from tests.engine.test_families import close, make_llm, run
from tests.family_reference import full_logits, published_logits, random_ids, tiny_model

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-model.md"
MODULE = f"{families.__name__}.starcoder2"
SINKS, WINDOW = 4, 20

VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {"tie_word_embeddings": True},
    "without_bias": {"use_bias": False},
    # Of the stream's 24 visible tokens, a layer sees the last 9, or all but two sinks, or all.
    "narrow": {"sliding_window": 9},
    "almost_as_wide": {"sliding_window": 22},
    "wider": {"sliding_window": 30},
}


def example() -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return code


@pytest.fixture
def starcoder2(tmp_path, monkeypatch):
    """Make discovery see the page's file, for the time of one test."""
    (tmp_path / "starcoder2.py").write_text(example())
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path)])
    all_families.cache_clear()
    yield
    all_families.cache_clear()
    sys.modules.pop(MODULE, None)
    vars(families).pop("starcoder2", None)


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A tiny model of a variant, and the folder that it was saved to."""

    def save(variant: str):
        settings = family_reference._LLAMA_LIKE | {"model_type": "starcoder2"} | VARIANTS[variant]
        monkeypatch.setitem(family_reference.VARIANTS, "starcoder2", settings)
        model = tiny_model("starcoder2")
        folder = tmp_path / variant
        model.save_pretrained(folder)
        return model, folder

    return save


@pytest.mark.parametrize("variant", VARIANTS)
def test_full_attention_equals_transformers(starcoder2, saved, variant):
    model, folder = saved(variant)
    prompts = [random_ids(model, length, seed=length) for length in (44, 3, 28)]
    llm = make_llm(folder, num_sink_tokens=0, window_size=48, block_size=8)
    for actual, ids in run(llm, prompts, [4, 20, 20]):
        close(actual, full_logits(model, ids[:-1]))


@pytest.mark.parametrize("chunk", [7, 64])
@pytest.mark.parametrize("variant", VARIANTS)
def test_streaming_equals_the_published_algorithm(starcoder2, saved, variant, chunk):
    model, folder = saved(variant)
    prompts = [random_ids(model, length, seed=length) for length in (90, 1, 35)]
    llm = make_llm(folder, num_sink_tokens=SINKS, window_size=WINDOW, chunk=chunk)
    for actual, ids in run(llm, prompts, [20, 40, 12]):
        close(actual, published_logits(model, ids[:-1], SINKS, WINDOW))


def test_without_the_file_the_family_is_refused(saved):
    _, folder = saved("tied")
    supported = sorted(name for family in all_families() for name in family.model_types)
    assert "llama" in supported and "starcoder2" not in supported
    with pytest.raises(ValueError) as error:
        load_config(resolve_model(str(folder)))
    message = f"'starcoder2' is not supported; supported: {', '.join(supported)}"
    assert message in str(error.value)


def test_the_example_is_short():
    assert len(example().splitlines()) <= 60
