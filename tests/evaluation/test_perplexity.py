"""The four modes against the dense oracle, and continued runs against uninterrupted ones."""

from __future__ import annotations

import json
import math

import pytest
import torch

from paged_stream.evaluation import long_run
from paged_stream.evaluation.corpus import Corpus
from paged_stream.evaluation.long_run import measure_long
from paged_stream.evaluation.perplexity import Score, Scorer, Span, measure, tokenizer_of
from paged_stream.evaluation.variants import Variant, ablation, modes
from tests.reference import dense_logits, tiny_llama, token_logprobs


@pytest.fixture(scope="module")
def model():
    return tiny_llama(0, eos_token_id=0)


@pytest.fixture
def ids(engine, text):
    return tokenizer_of(engine).encode(text)


def nlls(score: Score) -> torch.Tensor:
    """Of a run with one prediction per span."""
    assert all(span.stop == span.start + 1 for span in score.spans)
    return torch.tensor([span.nll for span in score.spans], dtype=torch.float64)


def oracle(model, ids, sinks: int, window: int | None) -> torch.Tensor:
    return -token_logprobs(dense_logits(model, ids, sinks, window), ids)


@pytest.mark.parametrize(("sinks", "window"), [(4, 20), (0, 24), (1, 7)])
def test_streaming_equals_the_oracle(engine, model, text, ids, sinks, window):
    score = measure(
        Variant.streaming(sinks, window), [text], engine=engine, num_tokens=None, every=1
    )
    assert torch.allclose(nlls(score), oracle(model, ids, sinks, window), atol=1e-4, rtol=0)


def test_chunks_equal_token_by_token(engine, text):
    variant = Variant.streaming(4, 20)
    chunked = measure(variant, [text], engine=engine, num_tokens=None, every=40)
    single = measure(
        variant, [text], engine=engine | {"max_num_batched_tokens": 1}, num_tokens=None, every=40
    )
    assert [span.stop for span in chunked.spans] == [40, 80, 120, 149]
    for one, other in zip(chunked.spans, single.spans, strict=True):
        assert one.nll / one.count == pytest.approx(other.nll / other.count, abs=1e-4)


def test_dense_equals_transformers(engine, model, text, ids):
    score = measure(Variant.dense(), [text], engine=engine, num_tokens=None, every=1)
    with torch.no_grad():
        expected = -token_logprobs(model(torch.tensor([ids])).logits[0], ids)
    assert torch.allclose(nlls(score), expected.double(), atol=1e-4, rtol=0)


def test_dense_goes_beyond_the_trained_length(engine, text):
    long_text = text * 4
    score = measure(Variant.dense(), [long_text], engine=engine, num_tokens=None, every=599)
    expected = oracle(tiny_llama(0), tokenizer_of(engine).encode(long_text), 0, None)
    assert score.num_predictions == 599  # the model was trained for 512
    assert score.perplexity() == pytest.approx(math.exp(expected.mean()), rel=1e-4)


def test_recomputation_is_a_text_of_its_own_per_prediction(engine, model, text, ids):
    every, cache = 5, 24
    score = measure(
        Variant.recomputed(cache),
        [text],
        engine=engine,
        num_tokens=None,
        every=1,
        sample_every=every,
    )
    for index, span in enumerate(score.spans):
        if index % every:
            assert span.count == 0
            continue
        visible = ids[max(0, index - cache + 1) : index + 1]
        logits = dense_logits(model, visible, 0, None)
        expected = -torch.log_softmax(logits[-1], -1)[ids[index + 1]].item()
        assert span.count == span.sampled_count == 1
        assert span.nll == pytest.approx(expected, abs=1e-4)


def test_line_breaks_take_the_place_of_the_first_tokens(engine, model, text, ids):
    variant = Variant.line_breaks(4, 20)
    score = measure(variant, [text], engine=engine, num_tokens=None, every=1)
    (line_break,) = tokenizer_of(engine).encode("\n")
    expected = oracle(model, [line_break] * 4 + ids[4:], 4, 20)
    assert [span.count for span in score.spans[:4]] == [0, 0, 0, 1]
    assert torch.allclose(nlls(score)[3:], expected[3:], atol=1e-4, rtol=0)


def test_samples_are_the_same_predictions_in_every_mode(engine, text):
    score = measure(
        Variant.streaming(4, 20), [text], engine=engine, num_tokens=100, every=1, sample_every=8
    )
    assert [span.start for span in score.spans if span.sampled_count] == list(range(0, 100, 8))
    picked = [span.nll for span in score.spans if span.start % 8 == 0]
    assert score.sampled_perplexity() == pytest.approx(math.exp(sum(picked) / len(picked)))


def test_spans_end_at_multiples_whatever_the_step():
    scorer = Scorer(Variant.streaming(0, 1), every=10)
    fed: list[int] = []

    def predict(piece):
        fed.append(len(piece))
        return [-1.0] * len(piece)

    scorer.run(predict, iter(range(25)), 4)
    assert fed == [4, 4, 2, 4, 4, 2, 4, 1]
    assert [(span.start, span.stop) for span in scorer.score.spans] == [(0, 10), (10, 20), (20, 25)]
    assert scorer.score.perplexity() == pytest.approx(math.e)
    assert scorer.score.perplexity(start=20, stop=25) == pytest.approx(math.e)
    assert scorer.score.perplexity(start=25) is None


def test_a_perplexity_too_large_for_a_float_is_infinite():
    score = Score(variant=Variant.dense(), spans=[Span(start=0, stop=1, nll=1e6, count=1)])
    assert score.perplexity() == math.inf


def test_texts_are_continued_and_cycled(engine, text):
    corpus = Corpus([text[:50], text[50:]], tokenizer_of(engine), cycle=True)
    whole = tokenizer_of(engine).encode(text)
    assert list(corpus.token_ids(100, 400)) == (whole * 3)[100:400]
    assert corpus.num_predictions(400) == 400
    with pytest.raises(ValueError, match="tokens must be given with cycle"):
        corpus.num_predictions(None)


# Runs that are continued


def run(engine, text, path, tokens, **settings):
    return measure_long(
        Variant.streaming(4, 20),
        [text],
        engine=engine,
        num_tokens=tokens,
        every=32,
        cycle=True,
        save_stream=path,
        **settings,
    )


def values(score: Score) -> list[tuple[int, int, float, int]]:
    return [(span.start, span.stop, span.nll, span.count) for span in score.spans]


def test_a_resumed_run_equals_an_uninterrupted_one(engine, text, tmp_path):
    whole = run(engine, text, tmp_path / "a", 300)
    run(engine, text, tmp_path / "b", 100)  # ends within a span
    run(engine, text, tmp_path / "b", 200, resume=True)
    resumed = run(engine, text, tmp_path / "b", 300, resume=True)
    assert resumed.num_predictions == 300
    assert resumed.perplexity() == pytest.approx(whole.perplexity(), rel=1e-6)
    lines = (tmp_path / "b.jsonl").read_text().splitlines()
    assert [json.loads(line)["stop"] for line in lines[1:]] == [span.stop for span in resumed.spans]


@pytest.mark.parametrize("moment", ["line", "stream"])
def test_a_run_that_is_killed_goes_on_from_its_stream(engine, text, tmp_path, monkeypatch, moment):
    whole = run(engine, text, tmp_path / "a", 300)
    save = long_run.Checkpoint.save

    def killed(checkpoint, stream, span):
        if span.stop == 160:
            if moment == "line":  # written, but its stream was not
                monkeypatch.setattr(type(stream), "save", lambda *args: None)
                save(checkpoint, stream, span)
                monkeypatch.undo()
            raise KeyboardInterrupt
        save(checkpoint, stream, span)

    monkeypatch.setattr(long_run.Checkpoint, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        run(engine, text, tmp_path / "b", 300)
    monkeypatch.undo()
    resumed = run(engine, text, tmp_path / "b", 300, resume=True)
    for one, other in zip(values(resumed), values(whole), strict=True):
        assert one == pytest.approx(other, rel=1e-6)


def test_only_the_same_run_is_continued(engine, text, tmp_path):
    path = tmp_path / "a"
    with pytest.raises(ValueError, match="resume: there is no"):
        run(engine, text, path, 40, resume=True)
    run(engine, text, path, 40)
    with pytest.raises(ValueError, match="exists; continue that run with resume"):
        run(engine, text, path, 40)
    with pytest.raises(ValueError, match="was started with texts="):
        run(engine, text + "x", path, 80, resume=True)
    (tmp_path / "a.jsonl").write_text("{}\nno json\n")
    with pytest.raises(ValueError, match="is missing or damaged"):
        run(engine, text, path, 80, resume=True)
    with pytest.raises(ValueError, match="needs a stream with a window, and dense has none"):
        measure_long(
            Variant.dense(), [text], engine=engine, num_tokens=9, every=9, save_stream=path
        )


# What is compared


def test_modes_share_a_cache_size():
    names = ["dense", "window", "recompute", "streaming"]
    variants = modes(names, 4, 1020)
    assert [variant.name for variant in variants] == ["dense", "0+1024", "recompute 1024", "4+1020"]
    assert {variant.cache_size for variant in variants} == {None, 1024}
    with pytest.raises(ValueError, match="modes must be some of dense, window"):
        modes(["sparse"], 4, 8)
    with pytest.raises(ValueError, match="window_size must be >= 1"):
        modes(names, 4, 0)


def test_ablations_are_the_papers():
    def of(kind):
        return [variant.name for variant in ablation(kind, 4, 1020)]

    assert of("sinks") == ["0+1024", "1+1023", "2+1022", "4+1020", "8+1016"]
    assert of("cache") == ["4+252", "4+508", "4+1020", "4+2044", "4+4092"]
    assert of("linebreak") == ["0+1024", "4+1020", '4"\\n"+1020']
    with pytest.raises(ValueError, match="ablation must be one of"):
        of("heads")
    with pytest.raises(ValueError, match="must be more than 8"):
        ablation("sinks", 4, 4)
    with pytest.raises(ValueError, match="cache_sizes must be more than num_sink_tokens=4, got 4"):
        ablation("cache", 4, 1, cache_sizes=[4])
