"""`stream_fn` and what it makes of a function."""

from __future__ import annotations

import functools
import sys
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Hashable,
    Iterable,
)

from velo._api.opener import Opening, StreamOpener
from velo._config import StreamConfig
from velo._function.spec import FunctionSpec
from velo._types import TYPE_CHECKING, Any, Generic, TypeVar, overload

if TYPE_CHECKING:
    from velo._api.session import Key
    from velo._diagnostics.metrics import FunctionMetrics
    from velo.events import Events

__all__ = ["StreamFn", "stream_fn"]

In = TypeVar("In")
Out = TypeVar("Out")
Then = TypeVar("Then")

if TYPE_CHECKING:
    Function = (
        Callable[[AsyncIterator[In]], AsyncIterator[Out]]
        | Callable[[Events[In]], AsyncIterator[Out]]
        | Callable[[AsyncIterator[In], dict[str, Any]], AsyncIterator[Out]]
        | Callable[[Events[In], dict[str, Any]], AsyncIterator[Out]]
    )


class StreamFn(Generic[In, Out]):
    """A stream function: an async generator function, and how its streams run.

    Made by `stream_fn`. Calling it calls the function itself, which is how to test it by hand.
    Streams of one function are counted together, against `max_concurrent` and in `metrics`;
    `options` makes a function that counts for itself.

    Attributes:
        config: Its settings, a `StreamConfig`; `options` is the way to change them.

    """

    def __init__(self, function: Function[In, Out], config: StreamConfig) -> None:
        if isinstance(function, StreamFn):
            name = getattr(function, "__qualname__", repr(function))
            raise TypeError(
                f"`{name}` is a stream function already; use `.options(...)` to change it"
            )
        spec = FunctionSpec(function, config)
        functools.update_wrapper(self, function)
        self.config: StreamConfig = config
        self._function: Callable[..., AsyncIterator[Out]] = function
        self._spec = spec
        self._opener: StreamOpener[In, Out] = StreamOpener(spec)

    def __call__(
        self, events: Iterable[In] | AsyncIterable[In], state: dict[str, Any] | None = None
    ) -> AsyncIterator[Out]:
        """Call the function itself, without velo: for a unit test of it.

        Args:
            events: Its events, any iterable or async iterable; the function can use `ticks` of
                them.
            state: What a function that takes a state finds there; an empty one by default.

        """
        from velo._function.event_iterator import pulled

        if not self._spec.has_state:
            return self._function(pulled(events))
        return self._function(pulled(events), {} if state is None else state)

    def options(self, **settings: Any) -> StreamFn[In, Out]:
        """Return the same function with other settings, as `StreamConfig` names them.

        Settings that are not named stay. The new function has streams, places and counters of its
        own.

        Raises:
            TypeError: When there is no such setting, or it is of the wrong type.
            ValueError: When a setting is out of its range.

        """
        return StreamFn(self._function, self.config.replace(**settings))

    def open(self, *, key: Key | None = None) -> Opening[In, Out]:
        """Open a stream: `async with fn.open() as stream`, or `stream = await fn.open()`.

        Leaving the block closes the stream as `Stream.aclose` does; by an exception, it cancels its
        function. At `max_concurrent` opening waits for a free place, in line. Cancelling the wait
        opens nothing. It needs a running event loop, to which the stream belongs.

        With a `key`, the stream attaches to what runs under that key of this function, with its
        local variables as they are; if nothing does, it is opened. In process mode that is looked
        for among all programs that share the supervisor, inline in this event loop. Closing the
        stream, or leaving the block in any way, detaches it: events that were sent are handled,
        results that nobody has received are dropped, and the function goes on waiting for whoever
        attaches next. Without an exception that is waited for, for at most `close_timeout` seconds.

        One at a time is attached; others wait in line, or with `overflow="error"` get
        `StreamBusy`. After `timeout` seconds with nobody attached the function's input ends, and
        `stream.end()` ends it at once; the next `open` begins anew. Under `max_concurrent`, a
        stream with a key counts until its function has ended, at the process that has opened it.

        Args:
            key: A string, bytes, an integer, or a tuple of those. None: a stream of its own.

        Raises:
            PoolError: When there is no worker process to run it, or, with `overflow="error"`, no
                free place.
            StreamBusy: When somebody is attached to the key, with `overflow="error"`.
            TypeError: When the function has no import path and holds what cannot be pickled
                (process mode); when the key is of another type.
            ValueError: For a key of a function with `recover="replay"`.

        """
        return Opening(self._opener, key)

    async def run(self, events: Iterable[In] | AsyncIterable[In]) -> list[Out]:
        """Send all events through a new stream, end its input, and return all results.

        What the function yields behind its loop is among them. Events are taken from the source as
        the function has room for them.

        Raises:
            Exception: What the source or the function raised, and what `open` and `Stream.send`
                raise. Results that came before it are lost.

        """
        async with self.open() as stream:
            if not isinstance(events, AsyncIterable):
                return await stream._run(events)
            results = [result async for result in stream.feed(events)]
            await stream.end()
            results.extend([result async for result in stream])
        return results

    def run_sync(self, events: Iterable[In] | AsyncIterable[In]) -> list[Out]:
        """Do the same as `run`, from code that has no event loop.

        It runs in an event loop of velo's own, which each thread keeps, so that workers stay warm
        from one call to the next.

        Raises:
            VeloError: When an event loop runs in this thread; `await fn.run(...)` there.
            Exception: As `run` does.

        """
        from velo._function.reference import refuse_while_importing

        refuse_while_importing()
        if self.config.mode == "process" and "asyncio" not in sys.modules:
            # Its zygote and this process can import asyncio at the same time.
            from velo._process import supervisors

            supervisors.expect(self.config.supervisor)
        from velo._api.sync import run

        return run(lambda: self.run(events), self._spec.name)

    def keyed(
        self, events: Iterable[In] | AsyncIterable[In], key: Callable[[In], Hashable] | Hashable
    ) -> AsyncGenerator[tuple[Any, Out], None]:
        """Run one stream per key: `async for key, result in fn.keyed(events, key=...)`.

        Args:
            events: The source; its order holds within each key.
            key: What gives an event's key; anything that is not callable is the field, index or
                attribute that holds it (`event[key]`, else `event.key`).

        A key's stream opens with its first event. It closes after `timeout` idle seconds, or when
        `max_concurrent` forces out the key that was used least recently: its input ends and its
        last results arrive. The next event of such a key opens a new stream. Leaving the iteration
        early cancels all of its streams.

        Raises:
            Exception: What the source, `key` or a function raised; of a function with a note that
                names the key. All streams are cancelled.

        """
        from velo._api.keyed import keyed

        return keyed(self._opener, events, key)

    def __or__(self, then: StreamFn[Out, Then]) -> StreamFn[In, Then]:
        """Compose: what this function yields are the other's events.

        The composed function has the stricter of each of their limits. Neighbours of one mode run
        in one place; of different modes, the whole runs inline and drives those in workers.
        """
        if not isinstance(then, StreamFn):
            return NotImplemented
        from velo._api.compose import compose

        return StreamFn(*compose(self._opener, then._opener))

    @property
    def metrics(self) -> FunctionMetrics:
        """What all streams of this function have done in this process, together."""
        from velo._diagnostics.metrics import FunctionMetrics

        return FunctionMetrics(*self._spec.stats.figures())

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Travel as function and settings: permits and counters belong to a process."""
        from velo._function.reference import describe

        return _restore, (describe(self._function), self.config)

    def __repr__(self) -> str:
        """Name and mode."""
        return f"<StreamFn `{self._spec.name}` {self.config.mode}>"


@overload
def stream_fn(function: Function[In, Out], /) -> StreamFn[In, Out]: ...
@overload
def stream_fn(
    *, config: StreamConfig | None = None, **settings: Any
) -> Callable[[Function[In, Out]], StreamFn[In, Out]]: ...
def stream_fn(
    function: Function[Any, Any] | None = None,
    /,
    *,
    config: StreamConfig | None = None,
    **settings: Any,
) -> Any:
    """Make a stream function of an async generator function.

    The function takes one argument, the stream's events, an async iterator (`velo.events.Events`),
    and yields results. It may take a second one, `state`, a dict that is empty at first: with
    `recover="replay"`, what it has put there when it asks for its next event survives the worker
    that it runs in. As a decorator with or without settings:

    ```python
    from velo import StreamConfig, stream_fn


    @stream_fn
    async def lengths(words):
        async for word in words:
            yield len(word)


    @stream_fn(mode="process", workers=4)
    async def lengths_in_workers(words):
        async for word in words:
            yield len(word)


    @stream_fn(config=StreamConfig(buffer=16))
    async def lengths_one_by_one(words):
        async for word in words:
            yield len(word)


    print(lengths.run_sync(["one", "three"]))  # [3, 5]
    ```

    Args:
        function: The async generator function, or what behaves as one: a method, a partial, a
            callable object.
        config: Settings to start from; the defaults of `StreamConfig` without.
        **settings: Settings by name, which go before those of `config`.

    Raises:
        TypeError: When it is no async generator function, or there is no such setting.
        ValueError: When a setting is out of range.

    """
    chosen = (config if config is not None else StreamConfig()).replace(**settings)
    if function is None:
        return lambda decorated: StreamFn(decorated, chosen)
    return StreamFn(function, chosen)


def _restore(described: Any, config: StreamConfig) -> StreamFn[Any, Any]:
    from velo._function.reference import build

    return StreamFn(build(described), config)
