"""Streams of a service by id: whose they are, how many, for how long, and where they rest."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from paged_stream.serve.errors import TooManyStreamsError, UnknownStreamError
from paged_stream.serve.open_streams import OpenStreams
from paged_stream.serve.saved_streams import SavedStreams
from paged_stream.serve.serve_options import ServeOptions


class Stream:
    """A stream that is nothing but a number."""

    def __init__(self, value=0):
        self.value = value
        self.closed = asyncio.Event()

    async def close(self):
        self.closed.set()

    async def end_turn(self):
        pass

    async def save(self, path):
        Path(path).write_text(json.dumps(self.value))


class Engine:
    def __init__(self):
        self.num_loaded = 0

    async def open_stream(self, on_evict):
        return Stream()

    async def load_stream(self, path, *, on_evict):
        self.num_loaded += 1
        await asyncio.sleep(0)
        try:
            return Stream(json.loads(Path(path).read_text()))
        except ValueError:
            raise ValueError(f"{path} is damaged") from None


class Service:
    def __init__(self, **options):
        self.now = 1000.0
        self.engine = Engine()
        self.options = ServeOptions(**options)
        self.streams = OpenStreams(self.engine, self.options, clock=lambda: self.now)
        self.saved = SavedStreams(self.streams)

    async def open(self, owner="a"):
        return await self.streams.open(owner, self.engine.open_stream)

    async def respond(self, owner="a", **record):
        opened = await self.streams.begin(owner, self.engine.open_stream, f"resp_{self.now}")
        self.now += 1
        await self.streams.keep(owner, opened, {"is_continued": False} | record)
        return opened.id

    async def end(self):
        await self.streams.rest()
        self.streams.files.release()

    async def has(self, stream_id, owner="a"):
        try:
            async with self.streams.using(owner, stream_id):
                return True
        except UnknownStreamError:
            return False


def test_a_stream_belongs_to_its_owner():
    async def run():
        service = Service()
        opened = await service.open("a")
        assert await service.has(opened.id, "a") and not await service.has(opened.id, "b")
        assert service.streams.ids("a") == [opened.id] and service.streams.ids("b") == []
        with pytest.raises(UnknownStreamError):
            await service.streams.close("b", opened.id)
        assert not opened.stream.closed.is_set()
        await service.streams.close("a", opened.id)
        assert opened.stream.closed.is_set() and not await service.has(opened.id)

    asyncio.run(run())


def test_streams_that_nobody_uses_are_closed():
    async def run():
        service = Service(max_idle_seconds=10)
        left, held, used = [await service.open() for _ in range(3)]
        async with service.streams.using("a", held.id):
            service.now += 8
            assert await service.has(used.id)
            service.now += 8
            await service.open()  # which looks at the others
            assert left.stream.closed.is_set()
            assert not held.stream.closed.is_set() and not used.stream.closed.is_set()
        service.now += 9
        await service.open()
        assert used.stream.closed.is_set() and not held.stream.closed.is_set()

    asyncio.run(run())


def test_a_timer_closes_them_without_a_request():
    async def run():
        streams = OpenStreams(Engine(), ServeOptions(max_idle_seconds=0.05))
        first = await streams.open("a", Engine().open_stream)
        await asyncio.sleep(0.02)  # so that the second one is left alone for less long
        second = await streams.open("a", Engine().open_stream)
        for each in (first, second):
            await each.stream.closed.wait()

    asyncio.run(asyncio.wait_for(run(), 60))


def test_limits_of_all_and_of_one_owner():
    async def run():
        service = Service(max_streams=3, max_streams_per_key=2)
        first = await service.open("a")
        await service.open("a")
        with pytest.raises(TooManyStreamsError, match="there are 2 streams"):
            await service.open("a")
        await service.open("b")
        with pytest.raises(TooManyStreamsError, match="there are 3 streams"):
            await service.open("b")
        await service.streams.close("a", first.id)
        await service.open("b")

    asyncio.run(run())


def test_those_that_are_opening_count():
    async def run():
        service, go_on = Service(max_streams=1), asyncio.Event()

        async def open_slowly(on_evict):
            await go_on.wait()
            raise ValueError("refused")

        opening = asyncio.ensure_future(service.streams.open("a", open_slowly))
        await asyncio.sleep(0)
        with pytest.raises(TooManyStreamsError):
            await service.open()
        go_on.set()
        with pytest.raises(ValueError, match="refused"):
            await opening
        await service.open()

    asyncio.run(run())


def test_responses_make_room_and_first_those_that_others_went_on_from():
    async def run():
        service = Service(max_streams=3)
        first, older = await service.respond(), await service.respond(is_continued=True)
        head = await service.respond()
        kept = await service.open()
        assert [await service.has(each) for each in (first, older, head)] == [True, False, True]
        async with service.streams.using("a", first):
            await service.open()
            assert [await service.has(each) for each in (first, head)] == [True, False]
        assert await service.has(kept.id)

    asyncio.run(run())


def test_so_many_responses_are_kept():
    async def run():
        service = Service(max_responses=2)
        ids = [await service.respond() for _ in range(2)]
        service.streams.record("a", ids[1])["is_continued"] = True
        ids.append(await service.respond())
        assert [await service.has(each) for each in ids] == [True, False, True]

    asyncio.run(run())


def test_streams_rest_in_files_and_come_back(tmp_path):
    async def run():
        service = Service(state_dir=tmp_path)
        opened = await service.open()
        opened.stream.value = 7
        response = await service.respond(text="said")
        await service.end()
        later = Service(state_dir=tmp_path)
        assert set(later.streams.ids("a")) == {opened.id, response}
        assert later.streams.record("a", response)["text"] == "said"
        assert later.engine.num_loaded == 0

        async def use():
            async with later.streams.using("a", opened.id) as found:
                return found

        found, same = await asyncio.gather(use(), use())
        assert found is same and found.stream.value == 7 and later.engine.num_loaded == 1
        assert not await later.has(opened.id, "b")
        later.streams.files.release()
        # After a crash, nobody goes on from what the stream was before.
        after = Service(state_dir=tmp_path)
        assert not await after.has(opened.id)
        await after.streams.close("a", response)
        assert not [*tmp_path.rglob("*.stream"), *tmp_path.rglob("*.json")]

    asyncio.run(run())


def test_who_waits_for_a_stream_that_is_closed_does_not_get_it(tmp_path):
    async def run():
        service = Service(state_dir=tmp_path)
        opened = await service.open()
        await service.end()
        later = Service(state_dir=tmp_path)
        first, second = [asyncio.ensure_future(later.has(opened.id)) for _ in range(2)]
        await asyncio.sleep(0)  # the first one loads it
        await later.streams.close("a", opened.id)
        assert await first and not await second

    asyncio.run(run())


def test_two_services_do_not_go_on_from_the_same_streams(tmp_path):
    first = Service(state_dir=tmp_path)
    with pytest.raises(ValueError, match="in use by another service"):
        Service(state_dir=tmp_path)
    first.streams.files.release()
    Service(state_dir=tmp_path)


def test_what_rests_for_too_long_is_removed(tmp_path):
    async def run():
        service = Service(state_dir=tmp_path)
        opened = await service.open()
        await service.end()
        later = Service(state_dir=tmp_path, max_idle_seconds=10)
        [file] = tmp_path.rglob("*.stream")
        later.now = file.stat().st_mtime + 11
        await later.open()
        assert not await later.has(opened.id) and not file.exists()

    asyncio.run(run())


def test_a_stream_that_cannot_be_written_keeps_no_other_from_it(tmp_path):
    async def run():
        service = Service(state_dir=tmp_path)
        broken, whole = await service.open(), await service.open()
        broken.stream.value = object()  # is no JSON
        await service.end()
        assert Service(state_dir=tmp_path).streams.ids("a") == [whole.id]

    asyncio.run(run())


def test_saves_have_names_and_stay(tmp_path):
    async def run():
        service = Service(state_dir=tmp_path, max_streams=4)
        opened = await service.open()
        opened.stream.value = 7
        await service.saved.save("a", opened.id, "evening")
        opened.stream.value = 8
        for _ in range(2):
            restored = await service.saved.restore("a", "evening")
            assert restored.id != opened.id and restored.stream.value == 7
        with pytest.raises(TooManyStreamsError):  # a save takes a place
            await service.open()
        await service.saved.save("a", opened.id, "evening")
        assert service.saved.names("a") == ["evening"] and service.saved.names("b") == []
        for use in (service.saved.restore("b", "evening"), service.saved.restore("a", "morning")):
            with pytest.raises(UnknownStreamError):
                await use
        service.saved.remove("a", "evening")
        with pytest.raises(UnknownStreamError):
            service.saved.remove("a", "evening")

    asyncio.run(run())


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "a/b", "/etc/passwd", "a" * 65, "a\0", "é"]
)
def test_a_name_is_no_path(name, tmp_path):
    async def run():
        service = Service(state_dir=tmp_path / "state")
        opened = await service.open()
        for use in (service.saved.save("a", opened.id, name), service.saved.restore("a", name)):
            with pytest.raises(ValueError, match="a name must have"):
                await use

    asyncio.run(run())


def test_without_a_folder_nothing_is_saved():
    async def run():
        service = Service()
        opened = await service.open()
        with pytest.raises(ValueError, match="without --state-dir"):
            await service.saved.save("a", opened.id, "evening")
        assert service.saved.names("a") == []
        await service.streams.rest()

    asyncio.run(run())


def test_a_file_that_is_damaged_tells_no_path(tmp_path):
    async def run():
        service = Service(state_dir=tmp_path)
        opened = await service.open()
        await service.saved.save("a", opened.id, "evening")
        [file] = tmp_path.rglob("*.stream")
        file.write_text("{")
        with pytest.raises(ValueError) as caught:
            await service.saved.restore("a", "evening")
        assert str(tmp_path) not in str(caught.value) and "evening" in str(caught.value)

    asyncio.run(run())
