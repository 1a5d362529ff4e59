"""Several answers read as one: all of each, in its order, and nothing goes on behind the end."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from paged_stream.serve.merged import merged


class Source:
    """Yields numbers, each when the source is let go on."""

    def __init__(self, count, error=None):
        self.go_on, self.is_closed, self._count, self._error = asyncio.Event(), False, count, error

    async def read(self):
        try:
            for number in range(self._count):
                yield number
            await self.go_on.wait()
            if self._error is not None:
                raise self._error
        finally:
            self.is_closed = True


@pytest.mark.parametrize("count", [1, 5])
def test_all_comes_and_each_in_order(count):
    async def run():
        sources = [Source(number) for number in range(count)]
        for source in sources:
            source.go_on.set()
        return [pair async for pair in merged([each.read() for each in sources])]

    pairs = asyncio.run(run())
    assert len(pairs) == sum(range(count))
    for number in range(count):
        assert [value for own, value in pairs if own == number] == list(range(number))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("how", ["error", "leave", "cancel"])
def test_one_end_is_the_end_of_all(count, how):
    async def run():
        error = KeyError("refused") if how == "error" else None
        sources = [Source(1, error) for _ in range(count)]
        seen = asyncio.Event()

        async def read():
            pairs = []
            async with aclosing(merged([each.read() for each in sources])) as deltas:
                async for pair in deltas:
                    pairs.append(pair)
                    if len(pairs) == count:
                        seen.set()
                        if how == "leave":
                            return

        task = asyncio.ensure_future(read())
        await seen.wait()
        if how == "cancel":
            task.cancel()
        sources[0].go_on.set()
        await asyncio.wait([task])
        assert all(source.is_closed for source in sources)
        assert task.cancelled() == (how == "cancel")
        if how == "error":
            assert isinstance(task.exception(), KeyError)

    asyncio.run(run())
