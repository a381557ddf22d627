"""The records of a source on their way through the keys of a function: the driver.

```
source ──> gates ──> feed ──> keys ──> results ──> sink
   ^                            │                    │
   └── commit <── positions <───┘ <── flush ─────────┘
```

A record is handled when its function asks for the next one, and a position is committed when every
record up to it is handled and the results of those are durable. A partition whose records wait is
paused by its gate, and holds up no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

from velo import _core
from velo._api.dead_letter import letter
from velo._api.gates import Flow, Gates
from velo._api.lanes import tracked
from velo._api.patience import closed, waiting_for
from velo._api.record_feed import RecordFeed
from velo._api.terms import Figures, OnError, Terms
from velo._diagnostics import source_figures
from velo.connect.model import Assigned, Bad, Lost, Record, Revoked, To, record_key
from velo.errors import StreamClosed, WorkerDied

if TYPE_CHECKING:
    from velo._api.ticks import Ticks
    from velo._function.spec import FunctionSpec
    from velo.connect.model import Source

__all__ = ["Closable", "Driver"]

_log = logging.getLogger("velo.connect")

# So many results are taken at a time.
_MANY = 1024
# A failed record is tried again after this many seconds, then after twice as many, up to the limit.
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 30.0
# So many failed records are logged one by one.
_TOLD = 5
# How often a partition that is given away is looked at; seconds.
_LOOK = 0.005
# So many keys of a checkpoint that nobody has open are opened at a time, when the source has ended.
_KEYS = 10_000


class _Stopped(Exception):
    """Ends the iteration over the results of keys that a checkpoint has: they are cancelled."""


class Driver:
    """Runs a function for each key of the records of one source.

    Attributes:
        figures: What it has done so far.
        source: The source.
        name: The function.

    Args:
        spec: The function.
        source: The source.
        key: As for `StreamFn.keyed`; `connect.record_key` for the record's own.
        terms: How it deals with what fails.
        flush: Called before a commit, and at the end: returns when all results that `batches` has
            yielded, before it was asked for more, are durable.
        ticks: What keeps a checkpoint, in place of commits.
        unloads: Whether keys that make room for others, or are idle, are unloaded.
        figures: Where to count, for a driver that is a part of a run; the run is in the metrics.

    """

    def __init__(
        self,
        spec: FunctionSpec,
        source: Source,
        key: Any,
        terms: Terms,
        flush: Callable[[], Any] | None = None,
        *,
        ticks: Ticks | None = None,
        unloads: bool = False,
        figures: Figures | None = None,
    ) -> None:
        self.figures = Figures() if figures is None else figures
        self._is_noted = figures is None
        self.terms = terms
        self.name = spec.name
        self.source = source
        self._flush = flush
        self._feed = RecordFeed()
        self._results, self._keys = tracked(
            spec,
            self._feed,
            key,
            terms.finished_keys,
            by_record_key=key is record_key,
            restore=None if ticks is None else ticks.restore,
            unloads=unloads,
        )
        if flush is not None:
            self._keys.trace()
        self._gates = Gates(source, self._keys.distance, terms.max_pending)
        # Handled, with results that were yielded; not committed yet.
        self._positions: dict[Hashable, Any] = {}
        self._committing = asyncio.Lock()
        self._waits = False
        # Of a key that is held: its record that failed, and how often it was tried again.
        self._attempts: dict[int, tuple[Record, int]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._told = 0
        self._opens = asyncio.Event()
        # Room is only known once all that was passed on was taken.
        self._feeding = asyncio.Lock()
        self._stopping = False
        self._reading: asyncio.Task[None] | None = None
        self._reads = self._interrupted = False
        self._ticks = ticks
        # No record is to blame for these, and no tick is to forget the states of keys for them: a
        # worker is told to stop, or has died and nobody recovers its keys.
        self._ends_for: tuple[type[Exception], ...] = ()
        if ticks is not None:
            recovers = spec.config.recover == "replay"
            self._ends_for = (StreamClosed,) if recovers else (StreamClosed, WorkerDied)
            ticks.attach(self, self._keys, self._feeding)

    async def batches(self) -> AsyncGenerator[list[tuple[Any, Any]], None]:
        """Yield results with their keys, and commit what was handled.

        Results count as delivered when the next batch is asked for.

        Raises:
            Exception: Exceptions of the source, and of the function under `on_error="raise"`.

        """
        loop = asyncio.get_running_loop()
        if self._is_noted:
            source_figures.note(self)
        try:
            if self._ticks is not None:
                await self._ticks.begin()
            self._reading = loop.create_task(self._read(), name=f"{self.name} source")
            self._tasks = [
                self._reading,
                loop.create_task(self._commit_now_and_then(), name=f"{self.name} commits"),
                loop.create_task(self._open_gates(), name=f"{self.name} gates"),
            ]
            try:
                async for results in self._batches():
                    yield results
            except _Stopped:
                return
            await self._reading  # raises what has ended it
            if self._ticks is not None:
                await self._ticks.last_tick()
            else:
                self._positions.update(self._keys.handled())
                await self._commit(last=True)
        finally:
            source_figures.forget(self)
            self._attempts.clear()
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                with waiting_for("the end", self.source):
                    await asyncio.wait(self._tasks)
            await self._results.aclose()
            await closed(self.source)

    @property
    def is_reading(self) -> bool:
        """Whether the source is read: not before the checkpoint is opened, nor behind the end."""
        return self._reads

    def flows(self) -> dict[Hashable, Flow]:
        """Give how the records of each partition go."""
        return self._gates.flows()

    def stop(self) -> None:
        """Read no more: what was read is handled, and then the run ends."""
        self._stopping = True
        if (stop := getattr(self.source, "stop", None)) is not None:
            stop()
        elif self._reading is not None and self._reads:
            self._reads, self._interrupted = False, True
            self._reading.cancel()

    async def _batches(self) -> AsyncGenerator[list[tuple[Any, Any]], None]:
        keys, figures = self._keys, self.figures
        while True:
            self._waits = True
            try:
                first = await anext(self._results)
            except StopAsyncIteration:
                return
            finally:
                self._waits = False
            results, failures, marks, drained = keys.take(_MANY)
            if first is not None:
                results.insert(0, first)
            figures.results += len(results)
            if self._ticks is not None:
                results = self._ticks.took(results, marks, int(first is not None))
            if results:
                yield results
            for failure in failures:
                await self._failed(failure)
            if drained and self._ticks is not None:
                self._ticks.look()
            elif drained:
                self._positions.update(keys.handled())

    # Reading.

    async def _read(self) -> None:
        try:
            await self._read_all()
            if self._ticks is not None:
                await self._settle(self._ticks)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                name = source_figures.name_of(self.source)
                error = RuntimeError(f"the source `{name}` was cancelled from within")
                self._keys.fail(error)
                raise error from None
            raise
        except Exception as error:
            self._keys.fail(error)
            raise
        finally:
            self._feed.exhausted = True
            self._keys.nudge()

    async def _read_all(self) -> None:
        gates = self._gates
        self._reads = not self._stopping
        if self._stopping:
            return
        try:
            async with contextlib.aclosing(Closable(self.source)) as items:
                async for item in items:
                    if isinstance(item, Assigned):
                        _log.info("%s: reads %s", self.name, _listed(item.partitions))
                    elif isinstance(item, Revoked):
                        await self._give_away(item.partitions)
                    elif isinstance(item, Lost):
                        self._drop(item.partitions)
                    elif item:
                        await self._pass_on(item)
                        self._opens.set()
                        if gates.held_up:
                            await self._until(lambda: not gates.held_up)
                    if self._stopping:
                        break
            await self._until(lambda: not gates.closed)
            self._reads = False
            if self._interrupted:
                await asyncio.sleep(0)  # where the source itself has called `stop`
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._interrupted or task is None or task.uncancel():
                raise  # it was not `stop` alone

    async def _pass_on(self, items: Sequence[Record | Bad]) -> None:
        if self._ticks is not None:
            await self._ticks.room()
        async with self._feeding:
            passed = self._gates.pass_on(items)
            known = 0 if self._ticks is None else self._ticks.absorbed(items)
            self.figures.read += len(items) - known
            await self._put(passed)

    async def _put(self, items: Sequence[Record | Bad]) -> None:
        # Behind the gates: what these hold is unknown to the keys, and so to the next cut.
        if self._ticks is not None:
            items = self._ticks.leave_out(items)
        await self._feed.put(items, self._keys.nudge)

    async def _settle(self, ticks: Ticks) -> None:
        """Nothing more is read: store the last tick. At the source's end, all keys end before."""
        keys = self._keys
        if self._stopping:
            with waiting_for("the records in hand", self.name):
                await self._until(lambda: keys.unhandled == 0)
            deadline = time.monotonic() + self.terms.drain
            await ticks.tick()
            while ticks.has_late and time.monotonic() < deadline:  # its worker had no time yet
                await ticks.tick()
            keys.fail(_Stopped())
            return
        keys.end_keys()
        await self._all_ended()
        await ticks.tick()
        keys.may_restore()
        while some := ticks.live_keys(_KEYS):
            keys.recall(some)
            await self._all_ended()
            await ticks.tick()

    async def _all_ended(self) -> None:
        with waiting_for("the end of all keys", self.name):
            await self._until(lambda: self._keys.unended == 0)

    async def _until(self, true: Callable[[], bool], deadline: float = math.inf) -> bool:
        """Look again and again; false at the deadline. What is handled tells nobody."""
        while not true():
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(_LOOK)
        return True

    async def _open_gates(self) -> None:
        """Pass on what gates hold as soon as there is room."""
        try:
            while True:
                self._opens.clear()
                await self._opens.wait()
                while self._gates.closed:
                    if self._ticks is not None:
                        await self._ticks.room()
                    async with self._feeding:
                        await self._put(self._gates.open())
                    await asyncio.sleep(_LOOK)
        except Exception as error:  # of the source's `resume`
            self._keys.fail(error)

    # Partitions that go.

    async def _give_away(self, partitions: Sequence[Hashable]) -> None:
        """Finish what was read of partitions, and commit it."""
        going = set(partitions)
        self._gates.discard(going)
        self._feed.discard(going)
        deadline = time.monotonic() + self.terms.drain

        def left() -> dict[Hashable, int]:
            return {p: count for p in going if (count := self._keys.distance(p))}

        if not await self._until(lambda: not left() and self._is_drained(), deadline):
            _log.warning(
                "%s: records were not handled within the %g s of `drain` before another program "
                "takes over, which gets them again: %s",
                *(self.name, self.terms.drain, left()),
            )
        await (self._commit() if self._ticks is None else self._ticks.tick())
        self._leave(going)

    def _drop(self, partitions: Sequence[Hashable]) -> None:
        """Forget partitions that another program has already."""
        going = set(partitions)
        self._gates.discard(going)
        self._feed.discard(going)
        self._leave(going)
        _log.warning("%s: lost %s; records in hand are dropped", self.name, _listed(going))

    def _leave(self, partitions: set[Hashable]) -> None:
        for partition in partitions:
            self._gates.forget(partition)
            self._keys.leave(partition)
            self._positions.pop(partition, None)
        if self._ticks is not None:
            self._ticks.forget(partitions)

    # Committing.

    def is_at_rest(self) -> bool:
        """Whether all results were yielded, and asked beyond."""
        return self._waits and self._keys.drained()

    def _is_drained(self) -> bool:
        """Whether results of all that is handled were yielded, and asked beyond."""
        if not self.is_at_rest():
            return False
        if self._ticks is None:
            self._positions.update(self._keys.handled())
        return True

    async def _commit_now_and_then(self) -> None:
        try:
            if self._ticks is not None:
                await self._ticks.run()
            while True:
                await asyncio.sleep(self.terms.commit_every)
                self._is_drained()
                await self._commit()
        except Exception as error:
            self._keys.fail(error)
            raise

    async def _commit(self, *, last: bool = False) -> None:
        """Commit; at the end, also make results durable that no position waits for.

        The source is closed only then: it may be the sink as well.
        """
        async with self._committing:
            if not (self._positions or last):
                return
            positions, self._positions = self._positions, {}
            if self._flush is not None:
                await self._flush()
            if self.terms.dead_letter is not None:
                await self.terms.dead_letter.flush()
            if not positions:
                return
            with waiting_for("`commit`", self.source):
                await self.source.commit(positions)
            self.figures.commits += 1
            self.figures.committed.update(positions)

    # What fails.

    async def _failed(self, failure: _core.KeyFailure) -> None:
        if isinstance(failure.error, self._ends_for):
            raise failure.error
        record = failure.record
        if record is not None and failure.held is not None:
            before, number = self._attempts.get(failure.held, (None, 0))
            number = number if before is record else 0
            if number < self.terms.retries:
                self._attempts[failure.held] = record, number + 1
                self.figures.retried += 1
                delay = min(_FIRST_DELAY * 2**number, _LONGEST_DELAY)
                loop = asyncio.get_running_loop()
                loop.call_later(delay, self._try_again, failure.held, record)
                return
            self._attempts.pop(failure.held, None)
        self.figures.bad += failure.held is None
        bad = failure.held is None and self.terms.on_bad is not None
        on_error = self.terms.on_bad if bad else self.terms.on_error
        undecoded = failure.held is None and not failure.decoded
        more = {"undecoded": True} if undecoded else {}
        await self._give_up(failure.key, failure.error, record, on_error, more)
        if failure.held is not None:
            self._keys.release(failure.held, record)

    def _try_again(self, held: int, record: Record) -> None:
        """Let a key have its record again, unless its partition or everything has gone."""
        if self._attempts.get(held, (None, 0))[0] is record:
            self._keys.release(held, None)

    async def _give_up(
        self,
        key: Any,
        error: Exception,
        record: Record | None,
        on_error: OnError | None,
        more: dict[str, Any],
    ) -> None:
        place = "" if record is None else _place(record)
        if self.terms.dead_letter is not None:
            kept = letter(self.name, key, error, record, more)
            await self.terms.dead_letter.write([(key, kept)])
            self.figures.dead_letters += 1
        elif callable(on_error):
            if place:
                error.add_note(f"for the record at {place}")
            on_error(key, error)
            self.figures.dropped += 1
            return
        elif on_error == "drop":
            self.figures.dropped += 1
        else:
            if place:
                error.add_note(f"for the record at {place}")
            if key is not None:
                error.add_note(f"in the stream of key {key!r}")
            raise error
        self._told += 1
        if self._told <= _TOLD:
            failed = "a result was refused" if "result" in more else "a record failed"
            _log.warning("%s: %s%s: %r", self.name, failed, place and f" at {place}", error)
        elif self._told == _TOLD + 1:
            _log.warning("%s: more records failed; they are counted", self.name)

    async def refused(self, key: Any, result: Any, error: Exception) -> None:
        """Deal with a result that the sink refuses, as with a record that has failed."""
        value = result.value if isinstance(result, To) else result
        await self._give_up(key, error, None, self.terms.on_error, {"result": value})


def _place(record: Record) -> str:
    return f"position {record.position!r} of {record.partition!r}"


def _listed(partitions: Any) -> str:
    return ", ".join(sorted(map(repr, partitions))) or "no partitions"


class Closable:
    """An async iterator with `aclose`, whatever a source gives."""

    def __init__(self, source: Any) -> None:
        self._items = aiter(source)

    def __aiter__(self) -> Any:
        return self._items

    async def aclose(self) -> None:
        if (close := getattr(self._items, "aclose", None)) is not None:
            await close()
