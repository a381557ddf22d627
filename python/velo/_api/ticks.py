"""Ticks: what a run keeps in its checkpoint, and in which order.

```
results ──> held ──┐ cut              ┌──> sink.write, flush ──> store.commit ──> sink.commit
marks ──> changes ─┴──────────────────┴──────────────────────────────────────> source.commit
```

For the cut, no records are fed, and every key that something has happened to gives a snapshot
behind its results. A key that does not in time is late: its older snapshot stays, the records
behind that are not absorbed, and the results behind it are held for a later tick. What follows the
cut runs beside the next records.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from velo._api.held_results import HeldResults
from velo._api.patience import waiting_for
from velo._diagnostics.failpoints import reached
from velo.connect.errors import Superseded
from velo.connect.model import Bad, record_of
from velo.errors import CheckpointError

if TYPE_CHECKING:
    from velo import _core
    from velo._api.sink_calls import SinkCalls
    from velo._api.terms import Figures
    from velo._checkpoint.checkpoint import Change, Checkpoint
    from velo.connect.model import Record, Sink, Source

__all__ = ["Run", "Ticks"]

_log = logging.getLogger("velo.connect")

# Keys have so many seconds for their snapshots, and fewer after some were late.
_PATIENCE, _LEAST_PATIENCE = 0.25, 0.01
# After a tick that cost this much time, so many times as much passes until the next one.
_TIMES_COST = 9
# So many results are held, and so many keys change, until the next tick begins early.
_MOST_HELD, _MOST_DIRTY = 500_000, 100_000
# The most results that one key, and all late keys together, may make without their next event.
_MOST_BEHIND, _MOST_BEHIND_IN_ALL = 1_000_000, 4_000_000
# The most positions of earlier runs that are remembered of a partition, the newest ones, where its
# records may come again or not.
_MOST_UNMET = 100_000
# So many results are written at a time.
_MANY = 1024

_UNKNOWN: Any = object()
# In place of the error of a record that is no event: it was one, and was handled.
_ABSORBED: Any = None


class Run(Protocol):
    """Whose ticks they are; a `Driver` is one.

    Attributes:
        figures: What it has done so far.

    """

    figures: Figures

    def is_at_rest(self) -> bool:
        """Whether all results were taken, and whoever takes them waits for more."""

    async def refused(self, key: Any, result: Any, error: Exception) -> None:
        """Deal with a result that the sink refuses."""


@dataclass(frozen=True)
class _Cut:
    """What a tick keeps.

    Attributes:
        results: Those that no later tick can take back.
        changes: Of keys, since the last cut.
        positions: Of partitions that have advanced.
        ahead: All positions that are absorbed behind those.

    """

    results: HeldResults
    changes: dict[Hashable, Change]
    positions: dict[Hashable, Any]
    ahead: dict[Hashable, list[Any]]


class Ticks:
    """The ticks of one run.

    Attributes:
        has_late: Whether keys were late for the last tick.

    Args:
        store: What keeps them.
        source: The source.
        sink: The sink.
        every: Seconds between two ticks, or more where they take long.
        letters: The sink of dead letters, if there is one.

    """

    def __init__(
        self,
        store: Checkpoint,
        source: Source,
        sink: SinkCalls,
        every: float,
        letters: Sink | None = None,
    ) -> None:
        self._store = store
        self._source = source
        self._sink = sink
        self._every = every
        self._letters = letters
        self._run: Run
        self._keys: _core.Keys
        self._feeding: asyncio.Lock
        # Results are written at ticks, and not as they come.
        self._holds = False
        self._held = HeldResults()
        # By key: how many of the results that are held lie before its last mark.
        self._marks: dict[Hashable, int] = {}
        self._changes: dict[Hashable, Change] = {}
        # Absorbed by earlier runs, ahead of positions, and not come again yet.
        self._unmet: dict[Hashable, dict[Any, None]] = {}
        self._tells_all = False
        self._ahead: dict[Hashable, list[Any]] = {}
        self._ticking = asyncio.Lock()
        self.has_late = False
        self._failed: Exception | None = None
        self._cutting: asyncio.Future[_Cut] | None = None
        self._is_overdue = False
        self._is_over = False
        self._patience = min(_PATIENCE, every / 4)
        self._cost = 0.0
        self._last = time.monotonic()
        self._due = asyncio.Event()
        self._freed = asyncio.Event()

    def attach(self, run: Run, keys: _core.Keys, feeding: asyncio.Lock) -> None:
        """Say whose ticks they are.

        Args:
            run: The run.
            keys: Its keys.
            feeding: Held by who feeds those.

        """
        self._run = run
        self._keys = keys
        self._feeding = feeding

    # The beginning.

    async def begin(self) -> None:
        """Have sink and source begin where the last tick has left them.

        Raises:
            CheckpointError: When the sink has another last tick.

        """
        store, sink = self._store, self._sink
        if sink.commits:
            last = await sink.begin(store.name, store.epoch)
            if last == store.epoch - 1 and store.undoable:
                store.undo()
            elif last != store.epoch:
                raise CheckpointError(
                    f"the sink has epoch {last} of the checkpoint `{store.path}`, which itself is "
                    f"at epoch {store.epoch}: it is not the one that these results belong to; "
                    "restore the last copy of the folder, or name a new one to begin anew"
                )
            self._holds = True
        elif sink.takes_back:
            mark = store.mark
            await sink.rewind(mark)
            if mark is None and (mark := await sink.mark()) is not None:
                # From here on there is something to rewind to.
                with waiting_for("a tick", store.path):
                    await store.commit(store.epoch + 1, {}, {}, store.ahead, mark)
            self._holds = mark is not None
        self._begin_source()
        if not store.is_empty:
            self._keys.may_restore()
        self._run.figures.epoch = store.epoch

    def _begin_source(self) -> None:
        store, source = self._store, self._source
        seek = getattr(source, "seek", None)
        self._ahead = dict(store.ahead)
        if seek is None and not getattr(source, "stable", False):
            return  # each delivery is an event of its own
        self._unmet = {partition: dict.fromkeys(ahead) for partition, ahead in store.ahead.items()}
        self._tells_all = seek is None
        if seek is not None:
            seek(store.positions)
            if (remember := getattr(source, "remember", None)) is not None:
                remember(store.ahead)

    def restore(self, keys: list[Hashable]) -> list[Change]:
        """Give what is known of keys that open: from this run, or from the store."""
        found: list[Change] = [self._changes.get(key, _UNKNOWN) for key in keys]
        lacking = [number for number, state in enumerate(found) if state is _UNKNOWN]
        if lacking:
            loaded = self._store.load([keys[number] for number in lacking])
            for number, state in zip(lacking, loaded, strict=True):
                found[number] = state
        return found

    def absorbed(self, items: Sequence[Record | Bad]) -> int:
        """Count the records that an earlier run has absorbed, and `leave_out` leaves out."""
        return sum(map(self._is_absorbed, items)) if self._unmet else 0

    def leave_out(self, items: Sequence[Record | Bad]) -> Sequence[Record | Bad]:
        """Have records count as handled that an earlier run has absorbed."""
        if not self._unmet:
            return items
        return [self._left_out(item) for item in items]

    def _is_absorbed(self, item: Record | Bad) -> bool:
        record = record_of(item)
        return record.position in self._unmet.get(record.partition, ())

    def _left_out(self, item: Record | Bad) -> Record | Bad:
        if not self._is_absorbed(item):
            return item
        record = record_of(item)
        unmet = self._unmet[record.partition]
        del unmet[record.position]
        if not unmet:
            del self._unmet[record.partition]
        return Bad(record, _ABSORBED)

    def forget(self, partitions: set[Hashable]) -> None:
        """Forget what is known of partitions that another program has."""
        for partition in partitions:
            self._unmet.pop(partition, None)
            self._ahead.pop(partition, None)

    # Between ticks.

    def took(
        self,
        results: list[tuple[Any, Any]],
        marks: list[tuple[int, Hashable, bytes | bool | None]],
        first: int,
    ) -> list[tuple[Any, Any]]:
        """Note results, and what has become of keys; return the results that are not held.

        Args:
            results: Results with their keys.
            marks: Before which result, the key, and its change; True: what lies behind its last
                mark comes again.
            first: Which of the results is the one that marks count from.

        """
        before = len(self._held) + first
        if self._holds:
            self._held.add(results)
            results = []
            if len(self._held) >= _MOST_HELD:
                self._due.set()
        rolled_back: dict[Hashable, list[range]] = {}
        for index, key, change in marks:
            if change is True:
                behind = range(self._marks.get(key, 0), before + index)
                rolled_back.setdefault(key, []).append(behind)
            else:
                self._changes[key] = change
                self._marks[key] = before + index
        if rolled_back:
            self._held.drop(rolled_back)
        if (
            self._keys.dirty >= _MOST_DIRTY
            and time.monotonic() > self._last + _TIMES_COST * self._cost
        ):
            self._due.set()
        return results

    async def room(self) -> None:
        """Wait while so many results are held that no more records are to be fed."""
        while len(self._held) >= _MOST_HELD:
            self._due.set()
            self._freed.clear()
            await self._freed.wait()

    async def run(self) -> None:
        """Tick again and again."""
        while True:
            try:
                async with asyncio.timeout(max(self._every, _TIMES_COST * self._cost)):
                    await self._due.wait()
            except TimeoutError:
                pass
            await self.tick()

    # A tick.

    async def tick(self) -> None:
        """Store all that there is.

        Raises:
            CheckpointError: When it cannot be stored.
            Exception: Exceptions of source and sink.

        """
        async with self._ticking:
            if self._failed is not None:
                raise self._failed  # behind it, the next one would have a gap
            try:
                async with self._feeding:
                    began = time.monotonic()
                    cut = await self._cut()
                async with self.naming_who_took_over():
                    await self._keep(cut, began, time.monotonic() - began)
            except Exception as error:
                self._failed = error
                raise

    async def last_tick(self) -> None:
        """Store what is left when all keys have ended."""
        self._is_over = True
        self.look()
        await self.tick()

    async def _cut(self) -> _Cut:
        """Have keys saved, and close the cut: when all are, or when time is up."""
        loop = asyncio.get_running_loop()
        self._due.clear()
        self._cutting = loop.create_future()
        self._is_overdue = False
        self._keys.save_dirty(True)
        self._keys.nudge()
        timer = loop.call_later(self._patience, self._run_out)
        try:
            if self._is_over or self._run.is_at_rest():
                self.look()
            cut = await self._cutting
        finally:
            timer.cancel()
            self._cutting = None
        self._patience = (
            max(self._patience / 2, _LEAST_PATIENCE)
            if self._is_overdue
            else min(self._patience * 2, _PATIENCE, self._every / 4)
        )
        return cut

    def _run_out(self) -> None:
        self._is_overdue = True
        if self._run.is_at_rest():
            self.look()

    def look(self) -> None:
        """All results were taken: close the cut, if that is waited for and can be done."""
        cutting = self._cutting
        if cutting is None or cutting.done():
            return
        due = self._is_over or self._keys.save_dirty(False) == 0 or self._is_overdue
        if not due:
            return
        try:
            cut = self._close()
        except Exception as error:  # the tick raises it: a timer may have called this
            cutting.set_exception(error)
            return
        if cut is not None:
            cutting.set_result(cut)

    def _close(self) -> _Cut | None:
        closed = self._keys.cut(self._tells_all)
        if closed is None:
            return None
        positions, absorbed, late = closed
        self.has_late = bool(late)
        changes, self._changes = self._changes, {}
        self._store.expect(changes)  # from here on: keys may open before they are stored
        ahead = dict(absorbed)
        for partition, unmet in self._unmet.items():
            # Without `seek` nothing says that a record does not come any more.
            left = itertools.islice(unmet, _MOST_UNMET if self._tells_all else None)
            ahead[partition] = [*ahead.get(partition, ()), *left]
        return _Cut(self._release(late), changes, dict(positions), ahead)

    def _release(self, late: list[Hashable]) -> HeldResults:
        """Give the results up to the cut; those of late keys behind their last snapshot stay."""
        free, marks = self._held, self._marks
        self._marks = {}
        self._freed.set()
        behind = set(late)
        self._held = free.split(behind, marks)
        if len(self._held) > _MOST_BEHIND:
            self._check_behind()
        return free

    def _check_behind(self) -> None:
        """Raise if late keys have made more results than the limits allow."""
        counts = self._held.by_key()
        ((key, most),) = counts.most_common(1)
        if most > _MOST_BEHIND:
            who = f"the key {key!r} makes"
        elif len(self._held) > _MOST_BEHIND_IN_ALL:
            who = f"{len(counts):,} keys, of which {key!r} has most, make"
        else:
            return
        raise CheckpointError(
            f"{who} more and more results without asking for the next event, so that no tick can "
            "store them: the function has to ask for events, also where it makes results by the "
            "clock"
        )

    @contextlib.asynccontextmanager
    async def naming_who_took_over(self) -> AsyncIterator[None]:
        """Where a call of the sink or the source fails behind a takeover, raise `Superseded`."""
        try:
            yield
        except Superseded:
            raise
        except Exception as error:
            # A program that stood still may find its connections lost, or results of the other one
            # in the way of its own.
            if not isinstance(error, CheckpointError) and (taken := await self._superseded()):
                raise taken from error
            raise

    async def _superseded(self) -> Superseded | None:
        try:
            with waiting_for("the newest commit", self._store.path):
                await self._store.check()
        except Superseded as taken:
            return taken
        except Exception as error:
            _log.info("the checkpoint does not tell who has it: %s", error)
        return None

    async def _keep(self, cut: _Cut, began: float, paused: float) -> None:
        reached("tick", 1)
        store, sink = self._store, self._sink
        nothing = not (cut.changes or cut.positions or cut.results)
        if nothing and cut.ahead == self._ahead:
            self._last = time.monotonic()
            return
        if cut.results and not sink.commits:
            # Such a sink does not know that another program has taken over.
            with waiting_for("the newest commit", store.path):
                await store.check()
        for results in cut.results.batches(_MANY):
            await sink.write_each(results, self._run.refused)
        reached("tick", 2)
        await sink.flush()
        if self._letters is not None:
            await self._letters.flush()
        reached("tick", 3)
        takes_back = self._holds and not sink.commits
        mark = await sink.mark() if takes_back else None
        stores = time.monotonic()
        epoch = store.epoch + 1
        with waiting_for("a tick", store.path):
            await store.commit(
                epoch, cut.changes, cut.positions, cut.ahead, mark, undoable=sink.commits
            )
        self._ahead = cut.ahead
        self._last = time.monotonic()
        self._cost = paused + self._last - stores
        reached("tick", 4)
        if sink.commits:
            await sink.commit(epoch, store.positions)
        reached("tick", 5)
        if cut.positions:
            with waiting_for("`commit`", self._source):
                await self._source.commit(cut.positions)
        reached("tick", 6)
        figures = self._run.figures
        figures.commits += bool(cut.positions)
        figures.committed.update(cut.positions)
        figures.epoch, figures.tick_seconds = epoch, time.monotonic() - began
        figures.saved += sum(isinstance(change, bytes) for change in cut.changes.values())

    def live_keys(self, most: int) -> list[Hashable]:
        """Give some keys that have a state in the store, right after a tick."""
        return self._store.some_live(most)
