"""What was parked and does not come back costs its own stream, and nobody else a token."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from paged_stream import EngineConfig, LLMEngine, SamplingParams, StreamLostError
from tests.contract.engines import ENGINES, EVERY_ENGINE, SETTINGS
from tests.engine.stream_oracle import greedy, text_ids, tokens_of

ENDLESS = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)


@pytest.fixture(params=EVERY_ENGINE)
def implementation(request):
    if request.param.needs_ray:
        request.getfixturevalue("ray")
    return request.param


@pytest.fixture
def engine(implementation, folder, tmp_path) -> Iterator:
    engine = implementation.make(folder, parking_memory_bytes=0, parking_dir=tmp_path)
    yield engine
    engine.close()


@pytest.fixture
def local(make_engine, tmp_path) -> LLMEngine:
    return make_engine(parking_memory_bytes=0, parking_dir=tmp_path)


def opened(engine, seed: int, count: int = 60):
    stream = engine.open_stream()
    stream.append(text_ids(count, seed))
    tokens_of(stream.generate(greedy(3)))
    return stream


def park(stream, folder: Path) -> Path:
    """Park a stream; returns its file."""
    before = set(folder.rglob("paged-stream-parked-*/*"))
    stream.park()
    (file,) = set(folder.rglob("paged-stream-parked-*/*")) - before
    return file


def go_on(stream, seed: int) -> list[int]:
    stream.append(text_ids(5, seed + 1))
    return tokens_of(stream.generate(greedy(9)))


@pytest.fixture(scope="module")
def expected(folder) -> Iterator:
    """What a stream of `opened` says next."""
    with LLMEngine(EngineConfig(model=str(folder), **SETTINGS)) as engine:
        yield lambda seed: go_on(opened(engine, seed), seed)


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 16
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def take_anothers(path: Path) -> None:
    other = next(each for each in path.parent.iterdir() if each != path)
    shutil.copy(other, path)


def is_lost(path: Path):
    return pytest.raises(StreamLostError, match=f"is lost: {re.escape(str(path))}: ")


def heals(implementation) -> bool:
    """A pool knows what the stream was."""
    return implementation.needs_ray


@pytest.mark.parametrize("damage", [os.unlink, truncate, alter, take_anothers])
def test_a_bad_file_costs_its_stream_alone(implementation, engine, tmp_path, expected, damage):
    bad, good, resident = (opened(engine, seed) for seed in (1, 2, 3))
    file = park(bad, tmp_path)
    park(good, tmp_path)
    damage(file)
    if heals(implementation):
        assert go_on(bad, 1) == expected(1)
    else:
        with is_lost(file):
            go_on(bad, 1)
        for use in (bad.park, bad.stats, bad.fork, lambda: bad.append([5]), bad.save_bytes):
            with is_lost(file):
                use()
        with is_lost(file):
            bad.position  # noqa: B018
    assert not file.exists()
    assert go_on(good, 2) == expected(2)
    assert go_on(resident, 3) == expected(3)
    bad.close()
    bad.close()
    with pytest.raises(ValueError, match="the stream is closed"):
        bad.append([5])
    stats = engine.stats()
    assert (stats.num_streams, stats.num_parked_streams) == (2, 0)
    assert stats.parked_host_bytes == stats.parked_disk_bytes == 0
    assert len(engine.generate(text_ids(9), greedy(4), use_tqdm=False)[0].outputs[0].token_ids) == 4


@pytest.mark.parametrize(
    "use",
    [
        lambda stream: stream.fork(),
        lambda stream: stream.cut(stream.position - 9, stream.position - 5),
        lambda stream: stream.rewind(stream.position - 3),
        lambda stream: list(stream.generate(greedy(2))),
        lambda stream: list(stream.complete([5, 6], greedy(2))),
        lambda stream: stream.score([5, 6, 7]),
    ],
    ids=["fork", "cut", "rewind", "generate", "complete", "score"],
)
@pytest.mark.parametrize(
    "implementation", [ENGINES["LLMEngine"], ENGINES["AsyncLLMEngine"]], ids=["sync", "async"]
)
def test_every_use_says_so(engine, tmp_path, expected, use):
    bad, good = (opened(engine, seed) for seed in (1, 2))
    file = park(bad, tmp_path)
    alter(file)
    with is_lost(file):
        use(bad)
    assert go_on(good, 2) == expected(2)
    assert engine.stats().num_streams == 1


def test_what_is_parked_and_cannot_be_read_is_not_saved(local, tmp_path, expected):
    bad, good = opened(local, 1), opened(local, 2)
    file = park(bad, tmp_path)
    content = file.read_bytes()
    alter(file)
    with pytest.raises(StreamLostError, match=f"cannot be read: {re.escape(str(file))}"):
        bad.save(tmp_path / "a.stream")
    assert not (tmp_path / "a.stream").exists()
    good.save(tmp_path / "b.stream")
    file.write_bytes(content)  # somebody has brought it back
    assert go_on(bad, 1) == expected(1)
    assert go_on(local.load_stream(tmp_path / "b.stream"), 2) == expected(2)


def test_many_at_once_beside_those_who_wait(local, tmp_path, expected):
    """All are in the queue when the first is found."""
    streams = [opened(local, seed) for seed in range(12)]
    files = [park(stream, tmp_path) for stream in streams]
    for file in files[::2]:
        file.unlink()
    for seed, stream in enumerate(streams):
        stream.append(text_ids(5, seed + 1))  # computed by whoever drives the engine first
    answers = [tokens_of(stream.generate(greedy(9))) for stream in streams[1::2]]
    assert answers == [expected(seed) for seed in range(1, 12, 2)]
    for stream, file in zip(streams[::2], files[::2], strict=True):
        with is_lost(file):
            stream.generate(greedy(1))
        assert repr(stream).endswith("lost>")
    local.core.scheduler.check_integrity()


def fail_once(engine, monkeypatch, error: BaseException) -> None:
    """Let the next operation fail."""
    executor = engine.core.executor
    apply = executor.apply

    def fail(operations):
        monkeypatch.setattr(executor, "apply", apply)
        raise error

    monkeypatch.setattr(executor, "apply", fail)


def test_whatever_fails_while_a_stream_is_restored(local, monkeypatch, expected):
    """Not its file: the executor itself, once."""
    bad, good = opened(local, 1), opened(local, 2)
    bad.park(), good.park()
    fail_once(local, monkeypatch, RuntimeError("no such luck"))
    with pytest.raises(StreamLostError, match="is lost: RuntimeError..no such luck"):
        list(bad.generate(greedy(2)))
    assert good.save_bytes()
    assert go_on(good, 2) == expected(2)
    local.core.scheduler.check_integrity()


def test_an_interrupt_while_a_stream_is_restored_costs_nothing(local, monkeypatch, expected):
    streams = [opened(local, seed) for seed in (1, 2)]
    for stream in streams:
        stream.park()
    streams[0].append(text_ids(5, 2))
    fail_once(local, monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        list(streams[0].generate(greedy(9)))
    assert tokens_of(streams[0].generate(greedy(9))) == expected(1)
    assert go_on(streams[1], 2) == expected(2)
    local.core.scheduler.check_integrity()


def test_nobody_shares_what_was_never_restored(make_engine, monkeypatch):
    """Streams with the same sinks, of which the first to come back is the one that fails."""
    rules = text_ids(24, 7)
    engine, other = make_engine(kv_cache_memory_bytes=60 * 8 * 512), make_engine()
    streams = [engine.open_stream(pin=rules) for _ in range(3)]
    for seed, stream in enumerate(streams):
        stream.append(text_ids(20, seed))
        tokens_of(stream.generate(greedy(2)))
    twins = [other.load_stream(stream.save_bytes()) for stream in streams]
    for stream in streams:
        stream.park()
    # Requests take all blocks, so that no sinks are left in them.
    engine.generate([text_ids(60, seed) for seed in range(90, 106)], greedy(2), use_tqdm=False)
    fail_once(engine, monkeypatch, OSError("gone"))
    with pytest.raises(StreamLostError, match="gone"):
        list(streams[0].generate(greedy(3)))
    for stream, twin in zip(streams[1:], twins[1:], strict=True):
        assert tokens_of(stream.generate(greedy(9))) == tokens_of(twin.generate(greedy(9)))


def test_a_request_that_was_parked_ends_and_says_why(make_engine, tmp_path):
    """It waits for its reader, and its blocks go to a stream meanwhile."""
    engine = make_engine(
        parking_memory_bytes=0, parking_dir=tmp_path, kv_cache_memory_bytes=5 * 8 * 512
    )
    engine.add_request("slow", text_ids(60), ENDLESS)
    turns = engine.core.turns
    while not turns.take_undelivered():
        engine.core.advance()
    (seq_id,) = turns.requests["slow"]
    unread, turns.unread = turns.unread, lambda: {seq_id}
    other = engine.open_stream()
    other.append(text_ids(60, 1))
    tokens_of(other.generate(greedy(2)))
    (file,) = tmp_path.rglob(f"{seq_id}.safetensors")
    file.unlink()
    other.park()
    turns.unread = unread
    (delta,) = engine.step()
    assert (delta.request_id, delta.finished, delta.finish_reason) == ("slow", True, "error")
    assert str(file) in delta.error
    assert not engine.has_unfinished_requests()
    output = engine.generate(text_ids(9), greedy(3), request_ids="slow", use_tqdm=False)[0]
    assert (output.outputs[0].finish_reason, output.outputs[0].error) == ("length", None)
    assert len(tokens_of(other.generate(greedy(3)))) == 3


def test_a_shutdown_saves_the_others(make, tmp_path):
    async def main() -> None:
        engine = make(parking_memory_bytes=0, parking_dir=tmp_path / "parked")
        streams = [await engine.open_stream() for _ in range(3)]
        for stream in streams:
            await stream.append(text_ids(40))
            await stream.park()
        file = min((tmp_path / "parked").rglob("*.safetensors"), key=lambda path: int(path.stem))
        file.unlink()
        saved = await engine.shutdown(tmp_path / "saved")
        assert saved.keys() == set(streams[1:])
        assert set((tmp_path / "saved").iterdir()) == set(saved.values())

    asyncio.run(main())
