"""An engine whose KV cache is int8: exact up to the rounding of each K and V, which is once."""

from __future__ import annotations

import pytest
import torch

from paged_stream import LLM, SamplingParams, ops
from tests.reference import dense_logits, random_ids, tiny_llama, token_logprobs

WHOLE_VOCAB = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, logprobs=97)


class Recorder:
    """Reads back what each layer writes; K and V of one sequence, in the order of its tokens.

    An oracle that rounded for itself would sometimes round a near tie the other way, which shows.
    So the oracle reads what the engine has stored, once that is known to be K and V, rounded.
    """

    def __init__(self, monkeypatch) -> None:
        self.rows: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}  # by layer
        self._run = ops.decoder_layers
        monkeypatch.setattr(ops, "decoder_layers", self._record)

    def _record(self, *arguments) -> torch.Tensor:
        result = self._run(*arguments)
        k_caches, v_caches, batch = arguments[4:7]
        for layer, caches in enumerate(zip(k_caches, v_caches, strict=True)):
            self.rows.setdefault(layer, []).append(ops.gather_blocks(*caches, batch.slot_mapping))
        return result

    def store(self, layer: int, key: torch.Tensor, value: torch.Tensor):
        """K and V as stored, for `dense_logits`, which has the exact ones of the same history."""
        stored = []
        for rows, exact in zip(zip(*self.rows[layer], strict=True), (key, value), strict=True):
            whole = torch.cat(rows).transpose(0, 1)  # [kv_heads, T, row_size]
            assert whole.dtype == torch.int8
            scale = whole[..., -4:].contiguous().view(torch.float32).double()
            largest = exact.abs().amax(-1, keepdim=True)
            torch.testing.assert_close(scale * 127, largest, atol=1e-4, rtol=0)
            stored.append(whole[..., :-4] * scale)
            assert ((stored[-1] - exact).abs() <= scale / 2 + 1e-4).all()
        return stored


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize(
    "shape, sinks, window, block_size",
    [
        ({}, 4, 20, 16),
        ({"num_attention_heads": 4, "head_dim": 40, "vocab_size": 61}, 19, 6, 8),
        ({"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64}, 0, 30, 8),
        ({"num_key_value_heads": 6, "head_dim": 8}, 3, 1, 8),
        ({}, 0, None, 16),
    ],
)
def test_scores_equal_the_oracle_over_what_is_stored(
    tmp_path, monkeypatch, shape, sinks, window, block_size, chunk
):
    model = tiny_llama(0, **shape)
    model.save_pretrained(tmp_path)
    llm = LLM(
        str(tmp_path),
        num_sink_tokens=sinks,
        window_size=window,
        block_size=block_size,
        max_num_batched_tokens=chunk,
        max_num_seqs=1,
        dtype="float32",
        kv_cache_dtype="int8",
        kv_cache_memory_bytes=4 << 20,
    )
    ids = random_ids(model, 90)
    recorder = Recorder(monkeypatch)
    scores = llm.score([*ids, 0], use_tqdm=False)  # K and V of the last one are not computed
    scores = torch.tensor(scores[1:-1]).double()
    window = llm.sink_window.window_size
    logits = dense_logits(model, ids, sinks, window, store=recorder.store)
    torch.testing.assert_close(scores, token_logprobs(logits, ids), atol=1e-4, rtol=0)
    error = (scores - token_logprobs(dense_logits(model, ids, sinks, window), ids)).abs()
    assert 1e-4 < error.max() < 0.1  # rounded it is, but not by much


def turn(stream, params=WHOLE_VOCAB):
    deltas = list(stream.generate(params))
    tokens = [token for delta in deltas for token in delta.delta_token_ids]
    return tokens, [dict(entry.top) for delta in deltas for entry in delta.logprobs]


def ids(count: int, start: int = 0) -> list[int]:
    return [(start + 7 * i * i + i) % 95 + 2 for i in range(count)]


@pytest.fixture(params=["float32", "bfloat16"])
def engine(make_engine, request):
    return make_engine(dtype=request.param, kv_cache_dtype="int8")


def test_forks_and_parked_streams_go_on_to_the_bit(engine):
    """Blocks are copied when they are written to, tokens leave the cache and come back."""
    stream = engine.open_stream()
    stream.append(ids(45))
    turn(stream)
    fork, parked = stream.fork(), stream.fork()
    for round_ in range(3):
        for each in (stream, fork, parked):
            each.append(ids(5, round_))
        parked.park()
        assert parked.stats().location == "host"
        first = turn(stream)
        assert turn(fork) == first
        assert turn(parked) == first
    engine.core.scheduler.check_integrity()


def test_shared_prefixes_go_on_to_the_bit(make_engine):
    engine = make_engine(kv_cache_dtype="int8", window_size=60)
    answers = []
    for _ in range(2):
        stream = engine.open_stream()
        stream.append(ids(50))
        answers.append(turn(stream)[0])
        stream.close()
    assert engine.stats().num_prefix_hits > 0
    assert answers[0] == answers[1]


def test_edits_keep_close_to_a_float_cache(make_engine):
    """A cut turns keys that are rounded already and rounds them again; the rest is as ever."""
    results = []
    for kv_cache_dtype in ("auto", "int8"):
        stream = make_engine(kv_cache_dtype=kv_cache_dtype).open_stream()
        stream.append(ids(60))
        logprobs = []
        for start in range(4):
            position = stream.position
            stream.cut(position - 10, position - 8)
            stream.rewind(stream.position - 1)
            stream.append(ids(4, start))
            logprobs += turn(stream, SamplingParams(max_tokens=1, logprobs=97, temperature=0))[1]
        results.append(torch.tensor([[row[i] for i in range(97)] for row in logprobs]))
    error = (results[0] - results[1]).abs()
    assert 0 < error.mean() < 0.02


def test_streams_take_less_memory(make_engine):
    """16 elements take 20 bytes with their scale, where float32 takes 64."""
    counts, sizes = [], []
    for kv_cache_dtype in ("auto", "int8"):
        engine = make_engine(kv_cache_dtype=kv_cache_dtype, kv_cache_memory_bytes=64 * 8 * 512)
        stream = engine.open_stream()
        stream.append(ids(60))
        turn(stream)
        counts.append(engine.stats().num_blocks)
        sizes.append([stream.stats().kv_bytes, engine.stats().kv_bytes])
        stream.park()
        sizes[-1].append(engine.stats().parked_host_bytes)
    assert counts == [64, 64 * 64 // 20]
    assert [16 * small for small in sizes[1]] == [5 * large for large in sizes[0]]
