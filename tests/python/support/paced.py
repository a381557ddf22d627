"""For programs that tests kill: a source that waits for ticks. Such a program imports this file."""

import asyncio

__all__ = ["Paced"]


class Paced:
    """Another source, some of whose records are given at a time: the next ones after a tick.

    Each time it prints a line. So there are several ticks, and a test knows how far the program is.

    Args:
        source: The other source.
        most: How many records are given at a time.

    """

    def __init__(self, source, most):
        self._source = source
        self._most = most
        self._ticked = asyncio.Event()

    def __getattr__(self, name):
        return getattr(self._source, name)

    async def __aiter__(self):
        async for batch in self._source:
            if not isinstance(batch, list):
                yield batch
                continue
            for first in range(0, len(batch), self._most):
                self._ticked.clear()
                yield batch[first : first + self._most]
                await self._ticked.wait()
                print("a tick", flush=True)

    async def commit(self, positions):
        await self._source.commit(positions)
        self._ticked.set()
