"""Stream functions over sources: what `keyed` and `over` return, and `into`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from velo._api.driver import Driver, Figures, OnError, Terms
from velo._api.patience import closed, waiting_for
from velo.errors import StreamBusy, StreamClosed

if TYPE_CHECKING:
    from velo._function.spec import FunctionSpec
    from velo.connect.model import Sink, Source

__all__ = ["Connected"]

T = TypeVar("T")


class Connected(AsyncIterator[T], Generic[T]):
    """A stream function over the records of a source.

    Iterate over it for results, and positions are committed as results are taken; or let `into`
    drive it to a sink. It runs once.

    Attributes:
        figures: What it has done so far, a `Figures`.

    """

    def __init__(
        self, spec: FunctionSpec, source: Source, key: Any, terms: Terms, *, with_keys: bool
    ) -> None:
        terms.check()
        if isinstance(source, type) or not hasattr(source, "__aiter__"):
            raise TypeError(
                "a source has `__aiter__`, which gives lists of records, and `commit`; "
                f"{_kind(source)} is none"
            )
        self._spec = spec
        self._source = source
        self._key = key
        self._terms = terms
        self._with_keys = with_keys
        self._driver: Driver | None = None
        self._results: AsyncGenerator[T, None] | None = None

    @property
    def figures(self) -> Figures:
        """What it has done so far."""
        return Figures() if self._driver is None else self._driver.figures

    def stop(self) -> None:
        """Read no more from the source: what was read is handled and committed, and then it ends.

        Call it in the event loop, for example from a signal handler.
        """
        if self._driver is not None:
            self._driver.stop()

    # Iterating.

    def __aiter__(self) -> AsyncIterator[T]:
        """Give the results."""
        return self

    async def __anext__(self) -> T:
        """Give the next result, with its key if it is of `keyed`.

        Raises:
            StreamBusy: When another task waits for one.

        """
        if self._results is None:
            driver = self._begin(self._terms, None)
            self._results = _results(driver, with_keys=self._with_keys)
        elif getattr(self._results, "ag_running", False):
            raise StreamBusy(f"another task iterates over the results of `{self._spec.name}`")
        return await anext(self._results)

    async def aclose(self) -> None:
        """Cancel all keys, and close the source. Nothing more is committed."""
        if self._results is not None:
            await self._results.aclose()

    def _begin(self, terms: Terms, flush: Callable[[], Any] | None) -> Driver:
        if self._driver is not None:
            raise StreamClosed("this source is run already; call `keyed` or `over` again")
        self._driver = Driver(self._spec, self._source, self._key, terms, flush)
        return self._driver

    # Driving.

    async def into(
        self,
        sink: Sink,
        *,
        dead_letter: Sink | None = None,
        on_error: OnError | None = None,
        on_bad: OnError | None = None,
        retries: int = 0,
        commit_every: float = 1.0,
        drain: float = 30.0,
    ) -> Figures:
        """Write all results to a sink, until the source ends or `stop` is called.

        A position is committed once every record up to it is handled, and the results of those are
        durable in the sink: each record is handled at least once.

        Args:
            sink: What takes the results.
            dead_letter: What takes records that cannot be decoded, have no key, or whose function
                has raised, with the error; they count as handled.
            on_error: What happens to such a record without `dead_letter`: `"raise"` ends the run
                with the error, `"drop"` counts it as handled, a callable is called with key and
                error. None: the `on_error` of `keyed`, which is `"raise"` by default. The key of a
                function that has raised begins anew with the record behind it.
            on_bad: The same for a record that cannot be decoded or has no key, so that no function
                has seen it. None: as `on_error`.
            retries: How often a record whose function has raised is tried again first, with growing
                pauses, while other records of its key wait.
            commit_every: Seconds between commits.
            drain: At most so many seconds are spent on records of a partition that another program
                takes over.

        Returns:
            What was done.

        Raises:
            Exception: Exceptions of the source and of the sink, and those of the function under
                `on_error="raise"`.
            TypeError: When `sink` or `dead_letter` is no sink.
            ValueError: When a setting is out of its range.

        """
        terms = replace(
            self._terms,
            on_error=self._terms.on_error if on_error is None else on_error,
            retries=retries,
            dead_letter=dead_letter,
            commit_every=commit_every,
            drain=drain,
            on_bad=on_bad,
        )
        terms.check()
        calls = _OneAtATime(sink, "the sink")
        if dead_letter is not None:
            terms.dead_letter = _OneAtATime(dead_letter, "`dead_letter`")
        driver = self._begin(terms, calls.flush)
        try:
            async with contextlib.aclosing(driver.batches()) as batches:
                async for batch in batches:
                    try:
                        await calls.write(batch)
                    except (TypeError, ValueError):
                        await _one_by_one(calls, batch, driver)
            await calls.flush()  # results that no position waits for
        finally:
            async with contextlib.AsyncExitStack() as closing:  # each, also when another raises
                for endpoint in (dead_letter, sink):
                    closing.push_async_callback(closed, endpoint)
        return driver.figures


# No method, as it must not hold the object that holds it: a cycle would have the garbage collector
# close each generator on its own, and the inner one while the outer one closes it.
async def _results(driver: Driver, *, with_keys: bool) -> AsyncGenerator[Any, None]:
    async with contextlib.aclosing(driver.batches()) as batches:
        async for batch in batches:
            for item in batch:
                yield item if with_keys else item[1]


class _OneAtATime:
    """A sink whose calls wait for each other: results are written while others are flushed.

    Args:
        sink: The sink.
        name: What messages call it.

    Raises:
        TypeError: When it is no sink.

    """

    def __init__(self, sink: Sink, name: str) -> None:
        missing = [method for method in ("write", "flush") if not hasattr(sink, method)]
        if isinstance(sink, type) or missing:
            raise TypeError(
                f"{name} has the methods `write` and `flush`, as `connect.file(PATH)` has; "
                f"{_kind(sink)} is none"
            )
        self._sink = sink
        self._name = name
        self._lock = asyncio.Lock()

    async def write(self, results: Sequence[tuple[Any, Any]]) -> None:
        """See `Sink`."""
        async with self._lock:
            call: Any = self._sink.write(results)
            if call is None:
                raise self._not_async("write")
            with waiting_for("`write`", self._sink):
                await call

    async def flush(self) -> None:
        """See `Sink`."""
        async with self._lock:
            call: Any = self._sink.flush()
            if call is None:
                raise self._not_async("flush")
            with waiting_for("`flush`", self._sink):
                await call

    def _not_async(self, method: str) -> RuntimeError:
        return RuntimeError(f"`{method}` of {self._name} must be an `async` method")


def _kind(thing: Any) -> str:
    """Name a thing that is of the wrong kind."""
    if isinstance(thing, type):
        return f"the class `{thing.__name__}` itself"
    return "None" if thing is None else f"an object of `{type(thing).__name__}`"


async def _one_by_one(sink: Sink, batch: list[tuple[Any, Any]], driver: Driver) -> None:
    """Write results of which the sink refuses one: the others are written."""
    for key, result in batch:
        try:
            await sink.write([(key, result)])
        except (TypeError, ValueError) as error:
            await driver.refused(key, result, error)
