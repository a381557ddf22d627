"""Stream functions over sources: what `keyed` and `over` return, and `into`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Hashable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from velo._api.checkpoint_threads import CheckpointThreads
from velo._api.driver import Driver
from velo._api.group_run import GroupRun
from velo._api.journalled import Journalled
from velo._api.patience import closed, waiting_for
from velo._api.sink_calls import SinkCalls, kind_of
from velo._api.terms import Checkpointing, Figures, OnError, Terms
from velo._api.ticks import Ticks
from velo.errors import StreamBusy, StreamClosed

if TYPE_CHECKING:
    from velo._api.gates import Flow
    from velo._checkpoint.checkpoint import Checkpoint
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
                f"{kind_of(source)} is none"
            )
        self._spec = spec
        self._source = source
        self._key = key
        self._terms = terms
        self._with_keys = with_keys
        self._running: Driver | GroupRun | None = None
        self._results: AsyncGenerator[T, None] | None = None
        self._threads: CheckpointThreads

    @property
    def figures(self) -> Figures:
        """What it has done so far."""
        return Figures() if self._running is None else self._running.figures

    @property
    def _is_reading(self) -> bool:
        """Whether the source is read now."""
        return self._running is not None and self._running.is_reading

    def _flows(self) -> dict[Hashable, Flow]:
        """Give how the records of each partition go."""
        return {} if self._running is None else self._running.flows()

    def stop(self) -> None:
        """Read no more from the source: what was read is handled and committed, and then it ends.

        Call it in the event loop, for example from a signal handler.
        """
        if self._running is not None:
            self._running.stop()

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

    def _check_unused(self) -> None:
        if self._running is not None:
            raise StreamClosed("this source is run already; call `keyed` or `over` again")

    def _begin(
        self,
        terms: Terms,
        flush: Callable[[], Any] | None,
        ticks: Ticks | None = None,
        *,
        unloads: bool = False,
    ) -> Driver:
        self._check_unused()
        self._running = driver = Driver(
            self._spec, self._source, self._key, terms, flush, ticks=ticks, unloads=unloads
        )
        return driver

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
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: float = 1.0,
        keys: Literal["end", "unload"] = "end",
        ttl: float | None = None,
        trusted: bool = False,
    ) -> Figures:
        """Write all results to a sink, until the source ends or `stop` is called.

        A position is committed once every record up to it is handled, and the results of those are
        durable in the sink: each record is handled at least once.

        With `checkpoint`, the `state` of each key is kept with the positions, and a run that is
        started again goes on where the last one has stopped or died: each key sees every record
        once. Results are written once as well where the sink can take back what it was given, or
        has a commit point of its own; they are then written at ticks.

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
            checkpoint: The folder of a checkpoint, for this program alone, or its URL in an object
                store: `s3://BUCKET/PREFIX`, `gs://`, `az://` or `file:///FOLDER`. It is made if it
                is not there; one in an object store is taken over from the program that has it.
                The function has to take `state`.
            checkpoint_every: Seconds between two ticks of the checkpoint, which also commit
                positions. More pass where a tick takes long.
            keys: What happens to a key that is idle for `timeout`, or makes room under
                `max_concurrent`: `"end"`, or with a checkpoint `"unload"`: it leaves the memory
                without noticing, and comes back with its next record.
            ttl: The seconds without a change after which the checkpoint forgets a key. None: it
                forgets none.
            trusted: Whether states may hold pickles: whoever can write to the folder can then run
                code.

        Returns:
            What was done.

        Raises:
            Exception: Exceptions of the source and of the sink, and those of the function under
                `on_error="raise"`.
            CheckpointError: When the checkpoint cannot be opened, read or written.
            Superseded: When another program has taken over the checkpoint.
            TypeError: When `sink` or `dead_letter` is no sink.
            ValueError: When a setting is out of its range, or the function has no `state` for a
                checkpoint.

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
        kept = Checkpointing(checkpoint, checkpoint_every, keys, ttl, trusted)
        kept.check(self._spec)
        calls = SinkCalls(sink, "the sink")
        if dead_letter is not None:
            terms.dead_letter = SinkCalls(dead_letter, "`dead_letter`")
        self._check_unused()
        async with contextlib.AsyncExitStack() as closing:  # each, also when another raises
            self._threads = CheckpointThreads()
            closing.callback(self._threads.end)
            for endpoint in (dead_letter, sink):
                closing.push_async_callback(closed, endpoint)
            if kept.is_remote and getattr(self._source, "shares", False):
                return await self._into_group(sink, terms, kept)
            ticks = None
            if kept.path is not None:
                store = await self._opened(kept)
                closing.push_async_callback(self._ended, store)
                if not (store.is_remote or hasattr(self._source, "seek")):
                    path = Path(store.path)
                    self._source = Journalled(self._source, path, trusted=kept.trusted)
                ticks = Ticks(store, self._source, calls, kept.every, terms.dead_letter)
            driver = self._begin(terms, calls.flush, ticks, unloads=kept.keys == "unload")
            naming = contextlib.nullcontext if ticks is None else ticks.naming_who_took_over
            async with contextlib.aclosing(driver.batches()) as batches:
                async for batch in batches:
                    async with naming():
                        await calls.write_each(batch, driver.refused)
        return driver.figures

    async def _into_group(self, sink: Sink, terms: Terms, kept: Checkpointing) -> Figures:
        from velo._checkpoint.address import address_of, below
        from velo._checkpoint.layout import check_is_divided

        def opened(shard: str) -> contextlib.AbstractAsyncContextManager[Checkpoint]:
            return self._store(replace(kept, path=below(str(kept.path), shard)))

        try:
            await self._threads.call(partial(check_is_divided, address_of(str(kept.path))))
        except BaseException:
            await closed(self._source)
            raise
        self._running = run = GroupRun(
            self._spec, self._source, self._key, terms, kept, sink, opened,
            is_keyed=self._with_keys,
        )  # fmt: skip
        await run.run()
        return run.figures

    @contextlib.asynccontextmanager
    async def _store(self, kept: Checkpointing) -> AsyncIterator[Checkpoint]:
        store = await self._open(kept, beside=True)
        try:
            yield store
        finally:
            await self._ended(store)

    async def _ended(self, store: Checkpoint) -> None:
        if not store.is_remote:
            return store.close()
        with waiting_for("the end", store.path):
            await self._threads.close(store)

    async def _opened(self, kept: Checkpointing) -> Checkpoint:
        try:
            return await self._open(kept)
        except BaseException:
            await closed(self._source)
            raise

    async def _open(self, kept: Checkpointing, *, beside: bool = False) -> Checkpoint:
        from velo._checkpoint.address import is_address
        from velo._checkpoint.checkpoint import Checkpoint  # SQLite only where it is needed

        assert kept.path is not None
        opening = partial(
            Checkpoint.open,
            kept.path,
            self._spec.name,
            state_version=self._spec.config.state_version,
            migrate=self._spec.config.migrate,
            trusted=kept.trusted,
            ttl=kept.ttl,
            beside=beside,
        )
        if not is_address(kept.path):
            return opening()
        with waiting_for("the last tick", os.fspath(kept.path)):
            return await self._threads.open(opening)


# No method, as it must not hold the object that holds it: a cycle would have the garbage collector
# close each generator on its own, and the inner one while the outer one closes it.
async def _results(driver: Driver, *, with_keys: bool) -> AsyncGenerator[Any, None]:
    async with contextlib.aclosing(driver.batches()) as batches:
        async for batch in batches:
            for item in batch:
                yield item if with_keys else item[1]
