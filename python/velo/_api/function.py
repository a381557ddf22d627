"""`stream_fn` and what it makes of a function."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Hashable,
    Iterable,
)
from types import TracebackType

from velo import _core
from velo._config import StreamConfig
from velo._diagnostics import function_stats
from velo._function.limiter import Places
from velo._types import TYPE_CHECKING, Any, Generic, TypeVar, overload

if TYPE_CHECKING:
    from typing import Literal

    from velo._api.stream import Stream
    from velo._core import KeyedResults
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

# What a stream may be kept under.
Key = str | bytes | int | tuple["Key", ...]


class StreamFn(Generic[In, Out]):
    """A stream function: an async generator function, and how its streams run.

    Made by `stream_fn`. Calling it calls the function itself, which is how to test it by hand.
    Streams of one function are counted together, against `max_concurrent` and in `metrics`;
    `options` makes a function that counts for itself.

    Attributes:
        config: Its settings, a `StreamConfig`; `options` is the way to change them.

    """

    def __init__(self, function: Function[In, Out], config: StreamConfig) -> None:
        from velo._function.signature import check, takes_state

        if isinstance(function, StreamFn):
            what = getattr(function, "__qualname__", repr(function))
            raise TypeError(
                f"`{what}` is a stream function already; use `.options(...)` to change it"
            )
        check(function)
        functools.update_wrapper(self, function)
        self._function: Callable[..., AsyncIterator[Out]] = function
        self._has_state = takes_state(function)
        self._places = Places(config.max_concurrent) if config.max_concurrent else None
        self._numbers = itertools.count(1)
        self._ledger = _core.Ledger()
        self._runs = function  # what streams run
        if config.record is not None:
            from velo._function.recording import Recorded

            self._runs = Recorded(function, str(config.record))
        self._name = getattr(function, "__qualname__", type(function).__qualname__)
        self.config: StreamConfig = config
        where = getattr(function, "__module__", None) or "?"
        function_stats.keep(self, f"{where}:{self._name}", config.mode, self._ledger)

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

        if not self._has_state:
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

    def open(self, *, key: Key | None = None) -> _Opening[In, Out]:
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
        return _Opening(self, key)

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

        return run(self, events)

    def keyed(
        self,
        events: Iterable[In] | AsyncIterable[In],
        key: Callable[[In], Hashable] | Hashable,
        *,
        max_pending: int = 10_000,
        on_error: Literal["raise", "drop"] | Callable[[Any, Exception], None] = "raise",
        finished_keys: Literal["ignore", "restart", "raise"] = "ignore",
    ) -> KeyedResults[tuple[Any, Out]]:
        """Run the function for each key: `async for key, result in fn.keyed(events, key=...)`.

        Every key has its own run of the function, with its own local variables. A key costs its
        generator and little else: there may be as many as memory holds. In process mode they are
        spread over `workers`.

        Args:
            events: The source; its order holds within each key.
            key: What gives an event's key; anything that is not callable is the field, index or
                attribute that holds it (`event[key]`, else `event.key`). Keys are told apart as the
                keys of a dict: `1`, `1.0` and `True` are one key, `None` is a key, and a NaN is
                equal to no other NaN.
            max_pending: How many events may have been taken from the source that no function is
                done with. Then the source is asked for no more. A key has at most `buffer` of them;
                others of that key wait here, and hold up no other key.
            on_error: What happens when the function of a key raises. `"raise"` raises it here, and
                cancels all keys. With `"drop"` the key is forgotten, with what the function has not
                handled, and the others go on; a callable is called with the key and the exception
                then. The next event of such a key begins anew.
            finished_keys: What happens to events of a key whose function has returned. `"ignore"`
                drops and counts them, `"restart"` runs the function anew, `"raise"` raises
                `StreamClosed`. The last 65,536 such keys are remembered; one that was forgotten
                begins anew.

        A key begins with its first event. It ends after `timeout` idle seconds, or when
        `max_concurrent` forces out the key that was used least recently: its input ends and its
        last results arrive. The next event of such a key begins anew. Leaving the iteration early
        cancels all keys; close it (`contextlib.aclosing`) to wait for their `finally` blocks.

        Raises:
            Exception: What the source, `key` or a function raised; of `key` with a note that names
                the event, of a function with one that names the key. All keys are cancelled.
            ValueError: When `max_pending` is less than 1, or another argument has no such value.

        """
        _check_keyed(max_pending, on_error, finished_keys)
        if self.config.mode == "process" and self.config.recover != "none":
            from velo._api.keyed import keyed

            recovering: Any = keyed(self, events, key)
            return recovering
        from velo._api.lanes import keyed as on_lanes

        results: KeyedResults[tuple[Any, Out]] = on_lanes(
            self, events, key, max_pending, on_error, finished_keys
        )
        return results

    def _most_workers(self) -> int:
        return self.config.workers or _core.usable_cores()

    def _open_keys_inline(self, keys: _core.Keys, loop: Any) -> None:
        name = f"{self._name}-{next(self._numbers)}"
        function = (self._runs, self._has_state)
        keys.add_inline(loop, function, name, self.config.event_timeout)

    async def _open_lane(self, most: int) -> _core.Opened:
        get_running_loop, _, client_of = self._late
        loop = get_running_loop()
        name = f"{self._name}-{next(self._numbers)}"
        client = client_of(loop, self.config.supervisor)
        opened: _core.Opened = await client.open_lane(self._reference, self.config, name, most)
        return opened

    def __or__(self, then: StreamFn[Out, Then]) -> StreamFn[In, Then]:
        """Compose: what this function yields are the other's events.

        The composed function has the stricter of each of their limits. Neighbours of one mode run
        in one place; of different modes, the whole runs inline and drives those in workers.
        """
        if not isinstance(then, StreamFn):
            return NotImplemented
        from velo._api.compose import compose

        return compose(self, then)

    @property
    def metrics(self) -> FunctionMetrics:
        """What all streams of this function have done in this process, together."""
        from velo._diagnostics.metrics import FunctionMetrics

        return FunctionMetrics(*self._ledger.figures())

    def _open(self, key: Key | None = None) -> Coroutine[Any, Any, Stream[In, Out]]:
        if key is not None:
            opening: Coroutine[Any, Any, Stream[In, Out]] = self._keeping.open(key)
            return opening
        return self._open_in(_nothing) if self._places is None else self._open_in_place()

    async def _open_in_place(self) -> Stream[In, Out]:
        return await self._open_in(await self._take_place())

    async def _open_in(self, release: Callable[[], None]) -> Stream[In, Out]:
        """Open a stream in a place that was taken, which `release` gives back."""
        try:
            get_running_loop, stream_type, client_of = self._late
            loop = get_running_loop()
            name = f"{self._name}-{next(self._numbers)}"
            config = self.config
            if config.mode == "inline":
                opened = _core.open_inline(
                    *(loop, self._runs, self._has_state, (config.buffer, config.full)),
                    *(name, config.event_timeout),
                )
            else:
                client = client_of(loop, config.supervisor)
                now = client.open_now(loop, self._reference, self.config, name)
                opened = now or await client.open(self._reference, self.config, name)
            self._ledger.enter(opened)
            stream: Stream[In, Out] = stream_type(opened, name, self.config, loop, release)
            return stream
        except BaseException:
            release()
            raise

    @functools.cached_property
    def _late(self) -> tuple[Any, Any, Any]:
        """What opening a stream needs of asyncio, whose import takes longer than all of velo."""
        find: Any = None
        if self.config.mode == "process":
            from velo._process import supervisors

            supervisors.expect(self.config.supervisor)
            from velo._process.clients import client_of as find
        import asyncio

        from velo._api.stream import Stream

        return asyncio.get_running_loop, Stream, find

    @functools.cached_property
    def _keeping(self) -> Any:
        from velo._api.session import Keeping

        return Keeping(self)

    async def _take_place(self) -> Callable[[], None]:
        if self._places is None:
            return _nothing
        if self.config.overflow == "wait":
            await self._places.take()
        elif not self._places.try_take():
            from velo.errors import PoolError

            raise PoolError(
                f"`{self._name}` has {self.config.max_concurrent} open streams, which is its "
                "`max_concurrent`"
            )
        return self._places.release

    def _try_take_place(self) -> Callable[[], None] | None:
        """Take a place if one is free now."""
        if self._places is None:
            return _nothing
        return self._places.release if self._places.try_take() else None

    @functools.cached_property
    def _reference(self) -> Any:
        from velo._function.reference import Reference

        return Reference(self._runs, self.config)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Travel as function and settings: places and counters belong to a process."""
        from velo._function.reference import describe

        return _restore, (describe(self._function), self.config)

    def __repr__(self) -> str:
        """Name and mode."""
        return f"<StreamFn `{self._name}` {self.config.mode}>"


class _Opening(Generic[In, Out]):
    """A stream that is to be opened: awaited, or entered."""

    __slots__ = ("_fn", "_key", "_stream")

    def __init__(self, fn: StreamFn[In, Out], key: Key | None) -> None:
        self._fn = fn
        self._key = key
        self._stream: Stream[In, Out] | None = None

    def __await__(self) -> Generator[Any, None, Stream[In, Out]]:
        return self._fn._open(self._key).__await__()

    async def __aenter__(self) -> Stream[In, Out]:
        self._stream = await self._fn._open(self._key)
        return self._stream

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._stream is not None
        await self._stream.__aexit__(kind, error, traceback)


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


def _check_keyed(max_pending: int, on_error: Any, finished_keys: str) -> None:
    if not isinstance(max_pending, int) or max_pending < 1:
        raise ValueError(f"`max_pending` must be an integer of at least 1, not {max_pending!r}")
    if on_error not in ("raise", "drop") and not callable(on_error):
        raise ValueError(f"`on_error` must be `raise`, `drop` or a callable, not {on_error!r}")
    if finished_keys not in ("ignore", "restart", "raise"):
        raise ValueError(
            f"`finished_keys` must be `ignore`, `restart` or `raise`, not {finished_keys!r}"
        )


def _nothing() -> None:
    pass
