"""The ways in which a behaviour test runs its streams: a user sees the same in each of them.

A test with the fixture `mode` gets the setting for `fn.options(mode=...)`. One with the fixture
`way` gets the way itself, and opens, feeds and runs through it; only such a test can run in a way
whose streams are not opened by `fn.open()`. A new way is an entry here, and nothing else.
"""

from dataclasses import dataclass

__all__ = ["OWN", "RAY", "WAYS", "Way"]


@dataclass(frozen=True)
class Way:
    """Where a stream function runs, and how a stream of it is used there.

    Attributes:
        name: Of the test's parameter.
        mode: The setting `mode` of the function.
        standalone: Whether its workers are those of a supervisor that all tests share.
        through_mode: Whether tests with the fixture `mode` run in it: that setting leads there.

    """

    name: str
    mode: str
    standalone: bool = False
    through_mode: bool = True

    def fn(self, fn, **settings):
        """The function, as it runs this way."""
        return fn.options(mode=self.mode, **settings)

    def open(self, fn, **settings):
        """A stream of it: await it, or enter it."""
        return self.fn(fn, **settings).open()

    async def run(self, fn, events, **settings):
        """All results of a stream that gets these events and ends."""
        return await self.fn(fn, **settings).run(events)

    async def feed(self, fn, events, **settings):
        """All results of a stream that is fed with these events, and of its input's end."""
        async with self.open(fn, **settings) as stream:
            results = [result async for result in stream.feed(events)]
            await stream.end()
            return results + [result async for result in stream]


# Of every module, and of those that are marked `every_backend`.
OWN = (Way("inline", "inline"), Way("process", "process"))
WAYS = (*OWN, Way("daemon", "process", standalone=True))
# Of those that are marked `on_ray`.
RAY = Way("ray", "ray")
