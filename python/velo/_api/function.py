"""`stream_fn`, and the class of its results."""

from __future__ import annotations

import functools
import sys
from collections.abc import (
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
    from typing import Literal, Unpack

    from velo._api.connected import Connected
    from velo._api.keyed_results import KeyedResults
    from velo._api.live_keys import Keys
    from velo._api.session import Key
    from velo._config import Settings
    from velo._diagnostics.metrics import FunctionMetrics
    from velo.connect.model import Source
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
    """A stream function: an async generator function with its settings.

    `stream_fn` makes one. A call of it calls the function itself, for a test without velo.
    `max_concurrent` and `metrics` count all streams of one function; `options` makes a function
    with a count of its own.

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
            events: The events, any iterable or async iterable. The function can call `ticks` on
                them.
            state: The state, for a function that takes one; empty by default.

        """
        from velo._function.event_iterator import pulled

        if not self._spec.has_state:
            return self._function(pulled(events))
        return self._function(pulled(events), {} if state is None else state)

    def options(self, **settings: Unpack[Settings]) -> StreamFn[In, Out]:
        """Return the same function with other settings, named as in `StreamConfig`.

        The other settings stay. The new function has its own streams, limits and counters.

        Raises:
            TypeError: When there is no such setting, or it is of the wrong type.
            ValueError: When a setting is out of its range.

        """
        return StreamFn(self._function, self.config.replace(**settings))

    def open(self, *, key: Key | None = None) -> Opening[In, Out]:
        """Open a stream: `async with fn.open() as stream`, or `stream = await fn.open()`.

        The end of the block closes the stream as `Stream.aclose` does; an exception cancels its
        function. At `max_concurrent`, opening waits in line until a stream closes; a cancelled wait
        opens nothing. The stream belongs to the running event loop.

        With a `key`, the stream attaches to the session under that key of this function, with its
        local variables as they are; without a session, it begins one. In process mode, all programs
        that use the same supervisor share the sessions; in inline mode, each event loop has its
        own. When the stream closes, or the block ends in any way, the session detaches: the
        function handles the events that were sent, results that were not received are dropped, and
        the function waits for the next attachment. Without an exception, closing waits for that, at
        most `close_timeout` seconds.

        A session has one attachment at a time; others wait in line, or with `overflow="error"` get
        `StreamBusy`. After `timeout` seconds without an attachment, the function's input ends;
        `stream.end()` ends it at once. The next `open` then begins a new session. A session counts
        for `max_concurrent` in the process that has begun it, until its function has ended.

        A supervisor that was started with `--checkpoint` stores the `state` of sessions: an idle
        one leaves the memory, and the next `open` begins with its state, as it does after a worker
        or the supervisor has died. A function that returns ends its session for good.

        Args:
            key: A string, bytes, an integer, or a tuple of those. None: a stream without a session.

        Raises:
            PoolError: When no worker process can run it, or, with `overflow="error"`, when
                `max_concurrent` streams are open.
            StreamBusy: When the key has an attachment, with `overflow="error"`.
            TypeError: When the function has no import path and holds something that cannot be
                pickled (process mode); when the key is of another type.
            ValueError: For a key of a function with `recover="replay"`.

        """
        return Opening(self._opener, key)

    async def run(
        self, events: Iterable[In] | AsyncIterable[In], *, progress: bool = False
    ) -> list[Out]:
        """Send all events through a new stream, end its input, and return all results.

        They include results that the function yields after its loop. Events are taken from the
        source when the function has room for them.

        Args:
            events: The source.
            progress: Whether to show how many events were taken from the source, in a terminal (on
                stderr) or a notebook.

        Raises:
            Exception: Exceptions of the source and of the function, and those of `open` and
                `Stream.send`. Results before it are lost.

        """
        if progress:
            events = self._shown(events)
        if self.config.mode == "ray":
            return await self._run_elsewhere(events)
        async with self.open() as stream:
            if not isinstance(events, AsyncIterable):
                return await stream._run_plain(events)
            results = [result async for result in stream.feed(events)]
            await stream.end()
            results.extend([result async for result in stream])
        return results

    async def _run_elsewhere(self, events: Iterable[In] | AsyncIterable[In]) -> list[Out]:
        """Run one key, which is a stream like any other, wholly on one node."""
        from velo._api.keyed_results import keyed_results

        name = self._spec.next_name()
        settings = (lambda _: name, self.config.buffer, "raise", "ignore")
        return [result async for _, result in keyed_results(self._spec, events, *settings)]

    def run_sync(
        self, events: Iterable[In] | AsyncIterable[In], *, progress: bool = False
    ) -> list[Out]:
        """Do the same as `run`, from code without an event loop.

        velo keeps an event loop for each thread that calls this, so that workers stay warm from one
        call to the next.

        Raises:
            VeloError: When an event loop runs in this thread; use `await fn.run(...)` there.
            Exception: See `run`.

        """
        self._prepare_sync()
        from velo._api.sync import run

        return run(lambda: self.run(events, progress=progress), self._spec.name, "run")

    def _shown(self, events: Iterable[In] | AsyncIterable[In]) -> Any:
        from velo._api.progress import shown

        return shown(events, self._spec.name)

    def _prepare_sync(self) -> None:
        from velo._function.reference import refuse_while_importing

        refuse_while_importing()
        if self.config.mode == "process" and "asyncio" not in sys.modules:
            # The zygote and this process can import asyncio at the same time.
            from velo._process import supervisors

            supervisors.expect(self.config.supervisor)

    @overload
    def keyed(
        self,
        events: Source,
        key: Callable[[In], Hashable] | Hashable,
        *,
        max_pending: int = ...,
        on_error: Literal["raise", "drop"] | Callable[[Any, Exception], None] = ...,
        finished_keys: Literal["ignore", "restart", "raise"] = ...,
    ) -> Connected[tuple[Any, Out]]: ...
    @overload
    def keyed(
        self,
        events: Iterable[In] | AsyncIterable[In],
        key: Callable[[In], Hashable] | Hashable,
        *,
        max_pending: int = ...,
        on_error: Literal["raise", "drop"] | Callable[[Any, Exception], None] = ...,
        finished_keys: Literal["ignore", "restart", "raise"] = ...,
        progress: bool = ...,
    ) -> KeyedResults[tuple[Any, Out]]: ...
    def keyed(
        self,
        events: Source | Iterable[In] | AsyncIterable[In],
        key: Callable[[In], Hashable] | Hashable,
        *,
        max_pending: int = 10_000,
        on_error: Literal["raise", "drop"] | Callable[[Any, Exception], None] = "raise",
        finished_keys: Literal["ignore", "restart", "raise"] = "ignore",
        progress: bool = False,
    ) -> Connected[tuple[Any, Out]] | KeyedResults[tuple[Any, Out]]:
        """Run the function for each key: `async for key, result in fn.keyed(events, key=...)`.

        Every key has its own run of the function, with its own local variables. A key costs its
        generator and little else: there may be as many as memory holds. In process mode they are
        spread over `workers`.

        Args:
            events: The source: any iterable of events, or a source of `velo.connect`, whose records
                have events as values. Events of one key stay in order.
            key: A function that returns the key of an event, or else the field, index or attribute
                that holds it (`event[key]`, else `event.key`). Keys are told apart as the keys of a
                dict: `1`, `1.0` and `True` are one key, `None` is a key, and a NaN is equal to no
                other NaN.
            max_pending: How many events may have been taken from the source that no function has
                handled. Then the source is asked for no more. A key has at most `buffer` of them;
                more of its events wait here, and hold up no other key.
            on_error: What happens when the function of a key raises. `"raise"` raises the exception
                here, and cancels all keys. With `"drop"` the key is forgotten, with the events that
                its function has not handled, and the others go on. A callable is called with the
                key and the exception, and the key is forgotten as well. The next event of such a
                key begins anew.
            finished_keys: What happens to events of a key whose function has returned. `"ignore"`
                drops and counts them, `"restart"` runs the function anew, `"raise"` raises
                `StreamClosed`, also for events that the function has left. velo remembers the last
                65,536 such keys; one that was forgotten begins anew.
            progress: Whether to show how many events were taken from the source, in a terminal (on
                stderr) or a notebook. A source of `velo.connect` does not take it.

        A key begins with its first event. It ends after `timeout` idle seconds, or when another key
        needs its place under `max_concurrent` and it was used least recently: its input ends, and
        its last results arrive. The next event of the key begins anew. Leaving the iteration early
        cancels all keys; `contextlib.aclosing` waits for their `finally` blocks.

        A worker that dies fails its keys with `WorkerDied`, which names the key. With
        `recover="replay"` they go on in other workers; `journal_limit` and `on_poison` are a key's.

        Raises:
            Exception: Exceptions of the source, of `key` and of the function. Those of `key` have a
                note with the event, those of the function one with the key. All keys are cancelled.
            ValueError: When `max_pending` is less than 1, or another argument has no such value;
                for `progress` with a source of `velo.connect`.

        """
        if hasattr(events, "commit"):
            if progress:
                raise ValueError(
                    "`progress=True` counts the events of an iterable; `velo run`, "
                    "`velo.metrics` and `velo dashboard --metrics` show the progress of a source"
                )
            from velo._api.connected import Connected
            from velo._api.terms import Terms

            terms = Terms(max_pending, on_error, finished_keys)
            source: Source = events  # type: ignore[assignment]
            return Connected(self._spec, source, key, terms, with_keys=True)
        from velo._api.keyed_results import keyed_results

        shown = self._shown(events) if progress else events
        return keyed_results(self._spec, shown, key, max_pending, on_error, finished_keys)

    def keyed_sync(
        self,
        events: Iterable[In] | AsyncIterable[In],
        key: Callable[[In], Hashable] | Hashable,
        *,
        max_pending: int = 10_000,
        on_error: Literal["raise", "drop"] | Callable[[Any, Exception], None] = "raise",
        finished_keys: Literal["ignore", "restart", "raise"] = "ignore",
        progress: bool = False,
    ) -> list[tuple[Any, Out]]:
        """Return what `keyed` yields, as a list, from code without an event loop.

        Raises:
            VeloError: When an event loop runs in this thread; use `async for ... in fn.keyed(...)`
                there.
            Exception: See `keyed`.

        """
        self._prepare_sync()
        from contextlib import aclosing

        from velo._api.keyed_results import keyed_results
        from velo._api.sync import run

        source = self._shown(events) if progress else events

        async def collect() -> list[tuple[Any, Out]]:
            settings = (key, max_pending, on_error, finished_keys)
            async with aclosing(keyed_results(self._spec, source, *settings)) as results:
                return [pair async for pair in results]

        return run(collect, self._spec.name, "keyed")

    def over(
        self,
        source: Source | Iterable[In] | AsyncIterable[In],
        *,
        max_pending: int = 10_000,
    ) -> Connected[Out]:
        """Run one stream of the function over a source: `async for result in fn.over(source)`.

        `await fn.over(source).into(sink)` writes the results to a sink; see `Connected.into`.

        Args:
            source: A source of `velo.connect`, or any iterable of events.
            max_pending: How many records of a partition may have been read that are not handled.
                Then the partition is paused.

        Raises:
            Exception: Those of the source and of the function, when it is iterated over.

        """
        from velo._api.connected import Connected
        from velo._api.terms import Terms

        terms = Terms(max_pending=max_pending)
        return Connected(self._spec, _source_of(source), _no_key, terms, with_keys=False)

    def keys(
        self,
        *,
        max_pending: int = 10_000,
        on_error: Literal["raise", "drop"] | Callable[[Any, Exception], None] = "raise",
        finished_keys: Literal["ignore", "restart", "raise"] = "ignore",
    ) -> Keys[In, Out]:
        """Open the function for keys whose events come from tasks: `async with fn.keys() as keys`.

        This is the form for servers, whose events come from requests and not from one source. As
        with `keyed`, every key has its own run of the function, and costs its generator and little
        else; in process mode they are spread over `workers`. `Keys` has `send`, `request`, `end`
        and the iteration over results.

        Leaving the block ends the input of all keys, and handles the events that were sent. An
        exception cancels the functions.

        Args:
            max_pending: How many events may be on their way at a time: events that no function has
                handled, and results that the iteration has not received. Then `send` and `request`
                wait in line. A key has at most `buffer` events at its function; more of them wait
                within `max_pending`, and hold up no other key.
            on_error: What happens when the function of a key raises at an event of `send`, or at
                none. `"raise"` raises the exception in the iteration, and cancels all keys. With
                `"drop"` the key is forgotten, with the events that its function has not handled,
                and the others go on. A callable is called with the key and the exception, and the
                key is forgotten as well. The next event of such a key begins it anew. When the
                function raises at an event of `request`, that raises it, and the others go on.
            finished_keys: As in `keyed`. `"raise"` raises `StreamClosed` where the event is sent;
                for events that were sent before, to the request or to `on_error`.

        Raises:
            ValueError: When `max_pending` is less than 1, or another argument has no such value;
                with the setting `full="drop_oldest"`, which this does not take.

        """
        if self.config.full == "drop_oldest":
            raise ValueError(
                '`keys` does not take `full="drop_oldest"`: an event of a key cannot make room for '
                'one of another key; use `full="wait"` or `full="error"`'
            )
        from velo._api.live_keys import Keys

        return Keys(self._spec, max_pending, on_error, finished_keys)

    def __or__(self, then: StreamFn[Out, Then]) -> StreamFn[In, Then]:
        """Compose: the results of this function are the events of the other.

        The composed function has the stricter of each of their limits. Two functions of one mode
        run side by side in one process. With different modes, the composed function runs inline,
        and its parts in process mode run in workers.
        """
        if not isinstance(then, StreamFn):
            return NotImplemented
        from velo._api.compose import compose

        return StreamFn(*compose(self._opener, then._opener))

    @property
    def metrics(self) -> FunctionMetrics:
        """Totals over all streams of this function in this process."""
        from velo._diagnostics.metrics import FunctionMetrics

        return FunctionMetrics(**self._spec.stats.figures())

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Travel as function and settings: permits and counters belong to a process."""
        from velo._function.reference import describe

        return _restore, (describe(self._function), self.config)

    def _reduce_in_place(self) -> Any:
        """Travel as a part of a function that travels by value, which may be this very one."""
        from velo._function.reference import import_path

        if import_path(self._function) is not None:
            return self.__reduce_ex__(5)
        return _blank, (), (self._function, self.config), None, None, _fill

    def __repr__(self) -> str:
        """Name and mode."""
        return f"<StreamFn `{self._spec.name}` {self.config.mode}>"

    def _repr_html_(self) -> str:
        from velo._api.notebook import function_html

        return function_html(self._spec)


def _source_of(source: Any) -> Source:
    if hasattr(source, "commit"):
        return source  # type: ignore[no-any-return]
    from velo._api.plain_source import plain_source

    return plain_source(source)


def _no_key(_event: object) -> None:
    """Stand for the key of a function that runs once over all events."""


@overload
def stream_fn(function: Function[In, Out], /) -> StreamFn[In, Out]: ...
@overload
def stream_fn(
    *, config: StreamConfig | None = None, **settings: Unpack[Settings]
) -> Callable[[Function[In, Out]], StreamFn[In, Out]]: ...
def stream_fn(
    function: Function[Any, Any] | None = None,
    /,
    *,
    config: StreamConfig | None = None,
    **settings: Unpack[Settings],
) -> Any:
    """Make a stream function of an async generator function.

    The function takes one argument, the stream's events, an async iterator (`velo.events.Events`),
    and yields results. It may take a second one, `state`, a dict that is empty at first: with
    `recover="replay"`, the contents of `state` when the function asks for its next event survive
    the death of its worker. As a decorator with or without settings:

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
        function: The async generator function, or another callable that returns an async iterator:
            a method, a partial, an object.
        config: Settings to start from. None: the defaults of `StreamConfig`.
        **settings: Settings by name, which override those of `config`.

    Raises:
        TypeError: When it is no async generator function, or a setting does not exist.
        ValueError: When a setting is out of range.

    """
    chosen = (config if config is not None else StreamConfig()).replace(**settings)
    if function is None:
        return lambda decorated: StreamFn(decorated, chosen)
    return StreamFn(function, chosen)


def _blank() -> StreamFn[Any, Any]:
    return StreamFn.__new__(StreamFn)


def _fill(fn: StreamFn[Any, Any], made_of: tuple[Any, StreamConfig]) -> None:
    fn.__init__(*made_of)  # type: ignore[misc]


def _restore(described: Any, config: StreamConfig) -> StreamFn[Any, Any]:
    from velo._function.reference import build

    return StreamFn(build(described), config)
