"""A saved stream goes on as if it had never left; a file that is not whole is refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
from fractions import Fraction

import pytest
import torch
from safetensors.torch import save_file

from paged_stream import SamplingParams
from paged_stream.engine import stream_file
from paged_stream.engine.outputs import DeltaQueue
from paged_stream.engine.stream_rules import turn_seed
from paged_stream.models.kv_file import read_header, read_tokens, to_pieces
from paged_stream.models.kv_tokens import KVTokens
from paged_stream.scheduler.sequence import MAX_TOKENS
from tests.reference import tiny_llama

WHOLE_VOCAB = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, logprobs=97)
RANDOM = SamplingParams(temperature=1.0, max_tokens=20, ignore_eos=True)


def run(stream, params=WHOLE_VOCAB):
    """Tokens and, if asked for, log-probabilities by token of one turn."""
    deltas = list(stream.generate(params))
    logprobs = [dict(entry.top) for delta in deltas for entry in delta.logprobs or ()]
    return [token for delta in deltas for token in delta.delta_token_ids], logprobs


def agree(results, expected) -> None:
    assert results[0] == expected[0]
    for one, other in zip(results[1], expected[1], strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def ids(count: int, start: int = 0) -> list[int]:
    return [(start + 7 * i * i + i) % 95 + 2 for i in range(count)]


def lived_stream(engine, **settings):
    """A stream with a past: turns, a cut and a rewind."""
    stream = engine.open_stream(**settings)
    stream.append(ids(60))
    run(stream, RANDOM)
    stream.append(ids(9, 5))
    position = stream.position
    stream.cut(position - 12, position - 9)
    run(stream, RANDOM)
    stream.rewind(stream.position - 3)
    stream.append(ids(3, 50))
    return stream


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("is_parked", [False, True])
def test_the_continuation_is_the_same_to_the_bit(
    make_engine, tmp_path, dtype, kv_cache_dtype, is_parked
):
    first, second = (make_engine(dtype=dtype, kv_cache_dtype=kv_cache_dtype) for _ in range(2))
    stream = lived_stream(first)
    if is_parked:
        stream.park()
    stream.save(tmp_path / "a.stream")
    loaded = second.load_stream(tmp_path / "a.stream")
    assert loaded.position == stream.position
    for turn in range(3):
        for either in (stream, loaded):
            either.append(ids(5 + turn, turn))
        assert run(loaded) == run(stream)
        assert run(loaded, RANDOM) == run(stream, RANDOM)  # their seeds go on as well
    assert loaded.stats().window_start == stream.stats().window_start


def test_a_parked_stream_whose_turn_was_given_up(make_engine, tmp_path):
    """Its last token was to be read once more, so one fewer counts as computed than is parked."""
    first, second = make_engine(), make_engine()
    stream = lived_stream(first)
    stream.rewind(stream.position - 2)
    stream.park()
    stream.inner.start_turn(RANDOM, DeltaQueue())
    stream.end_turn()
    assert stream.stats().location == "host"
    stream.save(tmp_path / "a.stream")
    loaded = second.load_stream(tmp_path / "a.stream")
    assert run(loaded) == run(stream)


@pytest.mark.parametrize("block_size", [1, 5, 16])
def test_another_block_size_gives_the_same_logits(make_engine, tmp_path, block_size):
    stream = lived_stream(make_engine())
    stream.save(tmp_path / "a.stream")
    loaded = make_engine(block_size=block_size).load_stream(tmp_path / "a.stream")
    agree(run(loaded), run(stream))


def test_saving_changes_nothing(make_engine, tmp_path):
    engine = make_engine(enable_prefix_caching=False)
    saved, other = lived_stream(engine), lived_stream(make_engine(enable_prefix_caching=False))
    saved.save(tmp_path / "a.stream")
    saved.save(tmp_path / "a.stream")
    assert run(saved, RANDOM) == run(other, RANDOM)


def test_short_streams(make_engine, tmp_path):
    """Empty ones, one with a token that waits, one without anything in its window."""
    engine, path = make_engine(), tmp_path / "a.stream"
    for num_tokens in (0, 1, 2, 5):
        stream = engine.open_stream()
        if num_tokens:
            stream.append(ids(num_tokens))
        stream.save(path)
        loaded = engine.load_stream(path)
        assert loaded.position == num_tokens
        for either in (stream, loaded):
            either.append(ids(4, 3))
        agree(run(loaded), run(stream))
    for settings in ({"num_sink_tokens": 0, "window_size": 1}, {"window_size": 1}):
        stream = engine.open_stream(**settings)
        stream.append(ids(9))
        stream.park()
        stream.save(path)
        agree(run(engine.load_stream(path)), run(stream))


def test_turns_draw_the_same_numbers_for_ever():
    """A saved stream has the seed of its turns; releases to come must go on as this one would."""
    seeds = [turn_seed(0, 0), turn_seed(5, 1), turn_seed(5, 3)]
    assert seeds == [0, 2177342782468422682, 6532028347405268036]


def test_chat_goes_on(make_engine, tmp_path):
    first, second = make_engine(), make_engine()
    system = [{"role": "system", "content": "be brief"}]
    stream = first.open_stream(pin=system)
    stream.save(tmp_path / "pinned.stream")
    loaded = second.load_stream(tmp_path / "pinned.stream")
    for turn in ("hello", "and then"):
        answers = [[d.delta_token_ids for d in s.chat(turn, WHOLE_VOCAB)] for s in (stream, loaded)]
        assert answers[0] == answers[1]
        stream.save(tmp_path / "turn.stream")
        loaded = second.load_stream(tmp_path / "turn.stream")
        conversation = loaded.inner.conversation
        assert conversation.pinned == system and conversation == stream.inner.conversation


def test_saving_while_generating_is_refused(make_engine, tmp_path):
    stream = lived_stream(make_engine())
    running = stream.generate(RANDOM)
    next(running)
    with pytest.raises(ValueError, match="the stream is generating"):
        stream.save(tmp_path / "a.stream")
    assert not os.listdir(tmp_path)
    running.close()
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        stream.save(tmp_path / "a.stream")


@pytest.mark.parametrize("name", ["replace", "write", "fsync"])
def test_an_interrupted_write_leaves_the_old_file(make_engine, tmp_path, monkeypatch, name):
    engine, path = make_engine(), tmp_path / "a.stream"
    stream = lived_stream(engine)
    stream.save(path)
    before = path.read_bytes()
    stream.append(ids(20))

    def fail(*args):
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail)
        with pytest.raises(OSError, match="no space left"):
            stream.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.stream"]
    with pytest.raises(OSError):
        stream.save(tmp_path / "missing" / "a.stream")
    assert run(stream)[0]  # and the stream goes on


# Files that are refused


def refuse(engine, path, message: str) -> None:
    before = engine.stats().num_streams
    with pytest.raises(ValueError, match=message) as caught:
        engine.load_stream(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500
    assert engine.stats().num_streams == before
    engine.core.scheduler.check_integrity()


@pytest.fixture
def engine(make_engine):
    return make_engine()


@pytest.fixture
def saved_path(engine, tmp_path):
    path = tmp_path / "a.stream"
    lived_stream(engine).save(path)
    return path


@pytest.mark.parametrize("share", [0.0, 1e-4, 1e-3, 0.01, 0.1, 0.5, 0.99, 0.9999])
def test_a_truncated_file(engine, saved_path, share):
    content = saved_path.read_bytes()
    saved_path.write_bytes(content[: int(share * len(content))])
    refuse(engine, saved_path, "truncated or no stream file|is damaged: it ends within")


def test_a_file_with_another_bit(engine, saved_path):
    content = bytearray(saved_path.read_bytes())
    for position in range(8, len(content), len(content) // 50):
        content[position] ^= 4
        saved_path.write_bytes(content)
        refuse(engine, saved_path, "truncated or no stream file|is damaged|is no stream|version")
        content[position] ^= 4


def test_files_of_other_kinds(engine, tmp_path):
    path = tmp_path / "random"
    path.write_bytes(torch.randint(256, (5000,), dtype=torch.uint8).numpy().tobytes())
    refuse(engine, path, "truncated or no stream file")
    path.write_text("{}" * 1000)
    refuse(engine, path, "truncated or no stream file")
    refuse(engine, tmp_path / "nothing", "there is no file")
    refuse(engine, tmp_path, "is no regular file")
    os.mkfifo(tmp_path / "fifo")
    refuse(engine, tmp_path / "fifo", "is no regular file")
    (tmp_path / "device").symlink_to("/dev/zero")
    refuse(engine, tmp_path / "device", "is no regular file")
    save_file({"key": torch.zeros(2, 3)}, path)
    refuse(engine, path, "is no stream saved by paged_stream")
    save_file({"key": torch.zeros(2)}, path, {"format": "pt"})
    refuse(engine, path, "is no stream saved by paged_stream")
    save_file(
        {"key": torch.zeros(2)},
        path,
        {"format": stream_file.FORMAT, "version": str(stream_file.VERSION)},
    )
    refuse(engine, path, "is damaged: its header does not have the checksum")


def rewrite(path, *, metadata=None, header=None, state=None, tensors=None) -> None:
    """Write the file again with some things changed, and with checksums of that."""
    buffer = bytearray(path.read_bytes())
    old = read_header(buffer)
    tokens = read_tokens(buffer, old)
    stream = json.loads(old.metadata["stream"])
    stream.update(header or {})
    stream["state"].update(state or {})
    texts = old.metadata | {"stream": json.dumps(stream)} | (metadata or {})
    changed = tokens._asdict() | (tensors(tokens._asdict()) if tensors else {})
    pieces = to_pieces(KVTokens(**changed), texts)
    path.write_bytes(b"".join(pieces))


def test_rewriting_as_it_is_changes_nothing(engine, saved_path):
    rewrite(saved_path)
    engine.load_stream(saved_path).close()


@pytest.mark.parametrize(
    "metadata, message",
    [
        ({"version": "6", "release": "7.8.9"}, r"version 6, .* reads version 5; .*\(7.8.9\)"),
        ({"version": "2\n" * 9999}, "has format version 2"),
        ({"format": "other"}, "is no stream"),
        ({"stream": "{"}, "is damaged"),
        ({"stream": "[]"}, "is damaged"),
        ({"stream": "{}"}, "is damaged"),
        ({"stream": "3"}, "is damaged"),
        ({"stream": "[" * 100_000}, "is damaged"),
        ({"stream": '{"state": {"sink_window": {"' + "x" * 9999 + '": 1}}}'}, "is damaged"),
    ],
)
def test_edited_metadata(engine, saved_path, metadata, message):
    rewrite(saved_path, metadata=metadata)
    refuse(engine, saved_path, message)


@pytest.mark.parametrize(
    "header",
    [
        {"seed": "7"},
        {"seed": None},
        {"num_turns": -1},
        {"num_turns": 1.5},
        {"fingerprint": 5},
        {"tokens": 5},
        {"more": 5},
    ],
)
def test_edited_header(engine, saved_path, header):
    rewrite(saved_path, header=header)
    refuse(engine, saved_path, "is damaged")


EXCHANGE = {"messages": [], "text": "", "start": 3, "end": 5, "answer": "", "continues": False}


@pytest.mark.parametrize(
    "changes",
    [
        {"pinned": "text"},
        {"pinned": ["text"]},
        {"pinned": [{"role": "system", "content": 5}]},
        {"pinned": [{"role": "system", "content": ["text"]}]},
        {"pinned": [{"role": None, "content": "text"}]},
        {"pinned": [{"content": "text"}]},
        {"before": 1},
        {"has_forgotten": 1},
        {"writing": None},
        {"writing": {"tools": "text"}},
        {"writing": {"add_generation_prompt": True}},
        {"exchanges": None},
        {"exchanges": [3]},
        {"exchanges": [EXCHANGE | {"more": 1}]},
        {"exchanges": [EXCHANGE | {"messages": ["text"]}]},
        {"exchanges": [EXCHANGE | {"text": None}]},
        {"exchanges": [EXCHANGE | {"answer": 1}]},
        {"exchanges": [EXCHANGE | {"continues": 1}]},
        {"exchanges": [EXCHANGE | {"start": 6}]},
        {"exchanges": [EXCHANGE | {"start": -1}]},
        {"exchanges": [EXCHANGE | {"start": 3.0}]},
        {"exchanges": [EXCHANGE, EXCHANGE]},
        {"exchanges": [EXCHANGE | {"end": 10**6}]},
        {"more": 5},
    ],
)
def test_edited_conversation(engine, saved_path, changes):
    whole = {"pinned": [], "writing": {}, "before": "", "exchanges": [], "has_forgotten": False}
    for good in ({}, {"exchanges": [EXCHANGE, EXCHANGE | {"start": 5}]}):
        rewrite(saved_path, header={"conversation": whole | good})
        engine.load_stream(saved_path).close()
    rewrite(saved_path, header={"conversation": whole | changes})
    refuse(engine, saved_path, "is damaged")


@pytest.mark.parametrize(
    "state, message",
    [
        ({"num_computed_tokens": 0}, "is damaged"),
        ({"num_computed_tokens": 10**6}, "is damaged"),
        ({"num_computed_tokens": -1}, "is damaged"),
        ({"num_computed_tokens": 80.0}, "is damaged"),
        ({"tail_start": 0}, "is damaged"),
        ({"cuts": [0]}, "is damaged"),
        ({"cuts": [10**6]}, "is damaged"),
        ({"cuts": ["a"]}, "is damaged"),
        ({"tail_start": 10**6}, "is damaged"),
        ({"tail_start": -5}, "is damaged"),
        ({"tail_ids": []}, "is damaged"),
        ({"tail_ids": 5}, "is damaged"),
        ({"sink_ids": None}, "is damaged"),
        ({"sink_ids": {"1": 1}}, "is damaged"),
        ({"cuts": "text"}, "is damaged"),
        ({"sink_window": "text"}, "is damaged"),
        ({"sink_window": None}, "is damaged"),
        ({"tail_ids": ["a"] * 40}, "is damaged"),
        ({"sink_ids": [1, 2, 3]}, "is damaged"),
        ({"sink_ids": [1, 2, 3, 97]}, "token ids that the model does not have"),
        ({"sink_ids": [1, 2, 3, -1]}, "token ids that the model does not have"),
        ({"sink_ids": [1, 2, 3, 2**40]}, "token ids that the model does not have"),
        *(
            (
                {"tail_start": size - 40, "num_computed_tokens": size, "num_prompt_tokens": size},
                "is damaged",
            )
            for size in (MAX_TOKENS + 1, 2**62, 2**63 - 200, 2**63, 2**80)
        ),
        ({"num_prompt_tokens": None}, "is damaged"),
        ({"num_prompt_tokens": -2}, "is damaged"),
        ({"sink_window": {}}, "is damaged"),
        ({"sink_window": {"num_sink_tokens": 4, "window_size": 0}}, "is damaged"),
        ({"sink_window": {"num_sink_tokens": 4, "window_size": 9}}, "is damaged"),
        ({"sink_window": {"num_sink_tokens": 4, "window_size": None}}, "is damaged"),
        (
            {"sink_window": {"num_sink_tokens": 4, "window_size": 24, "window_floor": 2}},
            "is damaged",
        ),
        (
            {"sink_window": {"num_sink_tokens": 4, "window_size": 24, "window_floor": 10**6}},
            "is damaged",
        ),
    ],
)
def test_edited_state(engine, saved_path, state, message):
    rewrite(saved_path, state=state)
    refuse(engine, saved_path, message)


@pytest.mark.parametrize(
    "tensors, message",
    [
        (lambda t: {"key": t["key"][:, 1:].clone()}, "is damaged"),
        (lambda t: {n: x[:, 1:].clone() for n, x in t.items()}, "is damaged"),
        (lambda t: {n: x[:1].clone() for n, x in t.items()}, "the stream has K and V of"),
        (lambda t: {n: x[:, :, :1].clone() for n, x in t.items()}, "the stream has K and V of"),
        (lambda t: {n: x[..., :8].clone() for n, x in t.items()}, "the stream has K and V of"),
        (lambda t: {n: x.bfloat16() for n, x in t.items()}, "the stream has K and V of"),
        (lambda t: {n: x.flatten() for n, x in t.items()}, "is damaged"),
        (lambda t: {n: torch.zeros(()) for n in t}, "is damaged"),
        (lambda t: {"value": t["value"].bfloat16()}, "the stream has K and V of"),
    ],
)
def test_edited_tensors(engine, saved_path, tensors, message):
    rewrite(saved_path, tensors=tensors)
    refuse(engine, saved_path, message)


def test_old_versions_are_refused_by_their_number(engine, saved_path):
    buffer = bytearray(saved_path.read_bytes())
    header = read_header(buffer)
    texts = {"format": "paged_stream.stream", "version": "3", "stream": header.metadata["stream"]}
    save_file(read_tokens(buffer, header)._asdict(), saved_path, texts)
    refuse(engine, saved_path, r"has format version 3, .* reads version 5; .*before 0\.1\.0")


def moved_to(path, position: int) -> None:
    """Let the stream stand at another position, all of whose window is as it was."""
    state = json.loads(read_header(bytearray(path.read_bytes())).metadata["stream"])["state"]
    by = position - state["tail_start"] - len(state["tail_ids"])
    window = state["sink_window"]
    moved = {name: state[name] + by for name in ("num_computed_tokens", "tail_start")}
    moved["num_prompt_tokens"] = position
    moved["cuts"] = [cut + by for cut in state["cuts"]]
    moved["sink_window"] = window | {"window_floor": window["window_floor"] + by}
    rewrite(path, state=moved)


def test_no_stream_goes_where_angles_are_not_exact(engine, saved_path):
    moved_to(saved_path, MAX_TOKENS + 1)
    refuse(engine, saved_path, f"has {MAX_TOKENS + 1} tokens; a stream can have {MAX_TOKENS}")
    moved_to(saved_path, MAX_TOKENS - 5)
    with engine.load_stream(saved_path) as stream:
        deltas = list(stream.generate(SamplingParams(max_tokens=None, ignore_eos=True)))
        assert deltas[-1].finish_reason == "length"
        assert stream.position == MAX_TOKENS
        with pytest.raises(ValueError, match=f"length of any stream of {MAX_TOKENS} tokens, got"):
            stream.append([5])


def test_angles_are_exact_up_to_there():
    """Against whole arithmetic: the angle between a query and a key at the end of a stream."""
    frequencies = [
        Fraction(float(torch.tensor(theta ** (-2 * i / 64), dtype=torch.float32)))
        for theta in (1e4, 1e6)
        for i in range(32)
    ]
    for limit, is_exact in ((MAX_TOKENS, True), (2 * MAX_TOKENS, False)):
        worst = 0.0
        for frequency in frequencies:
            for distance in (1, 700, 4095):
                for query in range(limit - 1, limit - 100_000, -997):
                    angles = [float(p) * float(frequency) for p in (query, query - distance)]
                    turned = Fraction(angles[0]) - Fraction(angles[1])
                    worst = max(worst, abs(float(turned - distance * frequency)))
        assert (worst < 1e-4) == is_exact


def test_another_config(make_engine, folder, saved_path, tmp_path):
    """The same weights, but keys that were rotated otherwise."""
    for change, is_the_same in (
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}, False),
        ({"rms_norm_eps": 1e-3}, False),
        ({"eos_token_id": 5}, True),
    ):
        other = tmp_path / next(iter(change))
        shutil.copytree(folder, other)
        config = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps(config | change))
        if is_the_same:
            make_engine(other).load_stream(saved_path)
        else:
            refuse(make_engine(other), saved_path, "saved with other weights, another config.json")


def test_other_weights_and_another_dtype(make_engine, saved_path, tmp_path):
    tiny_llama(1, eos_token_id=0).save_pretrained(tmp_path / "other")
    refuse(make_engine(tmp_path / "other"), saved_path, "saved with other weights")
    refuse(make_engine(dtype="bfloat16"), saved_path, "or another dtype")


@pytest.mark.parametrize("saved, loading", [("auto", "int8"), ("int8", "auto")])
def test_another_kv_cache_dtype(make_engine, tmp_path, saved, loading):
    path = tmp_path / "a.stream"
    lived_stream(make_engine(kv_cache_dtype=saved)).save(path)
    message = f"saved with kv_cache_dtype='{saved}'; load it into an engine with the same"
    refuse(make_engine(kv_cache_dtype=loading), path, message)
    make_engine(kv_cache_dtype=saved).load_stream(path)


def test_rows_of_int8_without_their_scales(make_engine, tmp_path):
    path, engine = tmp_path / "a.stream", make_engine(kv_cache_dtype="int8")
    lived_stream(engine).save(path)
    rewrite(path, tensors=lambda t: {n: x[..., :16].clone() for n, x in t.items()})
    refuse(engine, path, "the stream has K and V of .*16. in torch.int8, the model's are .*20. in")


def test_a_stream_too_large_for_the_engine(make_engine, tmp_path):
    lived_stream(make_engine(), window_size=200).save(tmp_path / "a.stream")
    small = make_engine(kv_cache_memory_bytes=6 * 8 * 512)
    with pytest.raises(ValueError, match="window_size=200 need"):
        small.load_stream(tmp_path / "a.stream")
    assert small.stats().num_streams == 0
    small.core.scheduler.check_integrity()
