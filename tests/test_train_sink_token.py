"""The sink-token experiment, as far as it can be checked without learning anything."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks import train_sink_token
from benchmarks.train_sink_token import SINK, SIZES, batch_of, export, make_model, train
from paged_stream import LLM

SIZE = replace(SIZES["quick"], vocab_size=97, context=16, batch_size=2, steps=4)
TEXT = torch.randint(1, 97, (200,), generator=torch.Generator().manual_seed(0))


def test_both_kinds_see_the_same_slices():
    vanilla = batch_of(TEXT, SIZE, 3, 0, "vanilla")
    sink = batch_of(TEXT, SIZE, 3, 0, "sink token")
    assert vanilla.shape == sink.shape == (2, 16)
    assert (sink[:, 0] == 0).all() and torch.equal(sink[:, 1:], vanilla[:, :-1])
    assert not torch.equal(vanilla, batch_of(TEXT, SIZE, 4, 0, "vanilla"))


def test_a_continued_training_equals_one_without_a_break(tmp_path, monkeypatch):
    monkeypatch.setattr(train_sink_token, "CHECKPOINT_EVERY", 2)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    expected = train(SIZE, "sink token", TEXT, whole, 0).state_dict()
    batches = train_sink_token.batch_of

    def killed(text, size, step, *rest):
        if step == 3:
            raise KeyboardInterrupt
        return batches(text, size, step, *rest)

    monkeypatch.setattr(train_sink_token, "batch_of", killed)
    with pytest.raises(KeyboardInterrupt):
        train(SIZE, "sink token", TEXT, broken, 0)
    monkeypatch.setattr(train_sink_token, "batch_of", batches)
    actual = train(SIZE, "sink token", TEXT, broken, 0).state_dict()
    assert all(torch.equal(actual[name], value) for name, value in expected.items())
    fresh = make_model(SIZE, 0).state_dict()
    assert any(not torch.equal(fresh[name], value) for name, value in expected.items())


@pytest.mark.parametrize(("kind", "first"), [("vanilla", []), ("sink token", [0])])
def test_the_engine_puts_the_sink_token_first(tmp_path, kind, first):
    vocab = {SINK: 0} | {chr(32 + i): i for i in range(1, 97)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    export(make_model(SIZE, 0), tokenizer, kind, tmp_path)
    llm = LLM(str(tmp_path), dtype="float32", window_size=8, kv_cache_memory_bytes=1 << 20)
    assert llm.encode("abc") == [*first, 65, 66, 67]
    assert llm.encode("abc", continues=True) == [65, 66, 67]
