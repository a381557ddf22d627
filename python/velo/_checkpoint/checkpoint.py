"""The checkpoint of a driver: a run begins with its last epoch, and adds one at each tick."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zlib import crc32

from velo import _core
from velo._checkpoint.address import address_of, is_address
from velo._checkpoint.changes import Changes
from velo._checkpoint.failing import Torn, torn
from velo._checkpoint.folder import Claim, claim, claim_beside
from velo._checkpoint.keys import pack, unpack
from velo._checkpoint.store import Row, Store, Tick, Values
from velo._core import dumps, pickle_in
from velo._function.key_text import shown
from velo._function.pickle_imports import imports_of
from velo._function.state_form import Migrate, StateForm
from velo.errors import CheckpointError

if TYPE_CHECKING:
    from velo._checkpoint.remote import Remote

__all__ = ["MOST_FINISHED", "Change", "Checkpoint", "PickledCut", "cut_of"]

Change = bytes | Literal[False] | None
"""A key's state, encoded; False: its function has returned; None: there is no such key."""

_UNKNOWN: Any = object()
MOST_FINISHED = 65_536
"""The most keys whose functions have returned that are remembered, as in a run."""


class PickledCut(CheckpointError):
    """The positions or the mark of an epoch hold a pickle, and are not trusted.

    Attributes:
        imports: What the pickle imports, as in a message.

    """

    def __init__(self, message: str, imports: str) -> None:
        super().__init__(message)
        self.imports = imports


class Checkpoint:
    """An open checkpoint: of one function, for one process.

    Attributes:
        path: The folder, or the URL.
        function: The name of the function.
        name: A name that no other checkpoint has. It stays when the folder is moved or copied.
        epoch: The number of the last tick; 0 before the first one.
        made: When that was, in seconds since the epoch of Unix; None before the first one.
        undoable: Whether `undo` can go back to the epoch before it.
        positions: By partition: the position that all keys have absorbed.
        ahead: By partition: the positions behind it that are absorbed as well.
        mark: The mark of the sink; None: it has given none.

    """

    def __init__(
        self,
        store: Store,
        claimed: Claim,
        *,
        state_version: int,
        migrate: Migrate | None,
        trusted: bool,
        ttl: float | None,
        remote: Remote | None = None,
    ) -> None:
        self.path = str(store.path) if remote is None else remote.url
        self._store = store
        self._remote = remote
        self._claim = claimed
        self._state_version = state_version
        self._migrate = migrate
        self._trusted = trusted
        self._ttl = ttl
        self._thread = ThreadPoolExecutor(1, "velo checkpoint")
        # The changes of the next commit, until that has written them.
        self._pending: Mapping[Hashable, Change] = {}

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        function: str,
        *,
        state_version: int = 1,
        migrate: Migrate | None = None,
        trusted: bool = False,
        ttl: float | None = None,
        beside: bool = False,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> Checkpoint:
        """Open the checkpoint in a folder or an object store, or create it.

        The one in an object store is taken over from the program that has it. This may take long.

        Args:
            path: The folder, or the URL.
            function: The name of the function.
            state_version: The version of the function's states.
            migrate: Makes a state of this version from one of an earlier version.
            trusted: Whether states may hold pickles, which run code when they are loaded.
            ttl: The seconds without a change after which a key is unknown; None: never.
            beside: Whether to take a working copy beside one that is in use, of a URL.
            is_wanted: Whether somebody waits for it. One that nobody waits for any more is not
                taken over, because another program may have done so meanwhile.

        Raises:
            CheckpointError: When another process has it, it cannot be written to, is torn, foreign
                or of a newer velo, or belongs to another function or version of its states. When it
                is not wanted any more.
            ValueError: When a URL, or a setting in it, does not fit.

        """
        remote = None
        if is_address(path):
            from velo._checkpoint.remote import Remote  # obstore only where it is needed

            remote = Remote(address_of(os.fspath(path)), most_finished=MOST_FINISHED)
        folder = Path(path) if remote is None else remote.folder
        with contextlib.ExitStack() as undoing:
            if remote is not None:
                undoing.callback(remote.close)
            if remote is not None and beside:
                folder, claimed = claim_beside(folder)
                remote.folder = folder
            else:
                claimed = claim(folder)
            undoing.callback(claimed.release)
            found = None if remote is None else remote.bring(folder)
            if remote is not None and found is None and not beside:
                remote.check_is_whole()
            store = Store(folder, writes=True)
            undoing.callback(lambda: checkpoint._store.close())
            checkpoint = cls(
                store,
                claimed,
                state_version=state_version,
                migrate=migrate,
                trusted=trusted,
                ttl=ttl,
                remote=remote,
            )
            checkpoint._begin(function)
            if not is_wanted():
                raise CheckpointError(f"`{checkpoint.path}` is not wanted any more")
            if remote is not None and not remote.take_over(found, checkpoint._about):
                store.close()
                remote.bring_claimed(folder)
                checkpoint._store = Store(folder, writes=True)
                checkpoint._begin(function)
            if remote is not None:  # here as well: a short run ends with its first tick
                remote.begin_base()
            undoing.pop_all()
        return checkpoint

    def _begin(self, function: str) -> None:
        with self._store.errors():
            self._check(function)
            self._empty = self._store.is_empty()
            self._read_last()

    def _check(self, function: str) -> None:
        """Check that the checkpoint belongs to this function and these states."""
        store = self._store
        self._about = about = store.about()
        if not about:
            about.update(
                function=function,
                name=_new_name(function),
                state_version=self._state_version,
                created=time.time(),
            )
            store.note(about)
        if about["function"] != function:
            raise CheckpointError(
                f"the checkpoint `{self.path}` belongs to the function `{about['function']}`, and "
                f"this one is `{function}`; if it was renamed, `velo checkpoint rename {self.path} "
                f"{function}` says so, and otherwise name another place"
            )
        self.function = function
        self._form = StateForm(
            function, str(self.path), self._state_version, self._migrate, self._trusted
        )
        self.name: str = about["name"]
        self._known_version: int = about["state_version"]
        if self._known_version > self._state_version:
            raise CheckpointError(
                f"the checkpoint `{self.path}` has states of version {self._known_version}, and "
                f"`{function}` has `state_version={self._state_version}`: run the newer code, or "
                "restore a copy of the folder from before it"
            )
        if self._known_version < self._state_version and self._migrate is None:
            row = store.other_version(self._state_version)
            if row is not None:
                raise self._form.other_version(unpack(row.key), row.version)

    def _read_last(self) -> None:
        last = self._store.last()
        self.epoch = 0 if last is None else last.epoch
        self.made = None if last is None else last.made
        self.undoable = last is not None and last.undoable
        cut = (
            ({}, {}, None)
            if last is None
            else cut_of(last, self._store.path, trusted=self._trusted)
        )
        self.positions: dict[Hashable, Any] = cut[0]
        self.ahead: dict[Hashable, list[Any]] = cut[1]
        self.mark: Any = cut[2]

    @property
    def is_empty(self) -> bool:
        """Whether it holds no key, so that there is nothing to load."""
        return self._empty

    @property
    def is_remote(self) -> bool:
        """Whether it is in an object store, so that calls may take long."""
        return self._remote is not None

    def load(self, keys: Sequence[Hashable]) -> list[Change]:
        """Return the states of keys, with those that the next commit writes.

        Returns:
            For each key: its state, encoded; None: it is unknown; False: its function has returned.

        Raises:
            CheckpointError: When a state is torn, holds a pickle and is not trusted, or is of
                another version without `migrate`; when a key cannot be stored.

        """
        pending = self._pending
        found = [pending.get(key, _UNKNOWN) for key in keys]
        packed = {
            number: pack(keys[number]) for number, state in enumerate(found) if state is _UNKNOWN
        }
        if not packed:
            return found
        oldest = self._oldest()
        with self._errors():
            rows = self._store.rows(list(packed.values()))
            for number, key in packed.items():
                row = rows.get(key)
                known = row is not None and row.changed >= oldest
                found[number] = (
                    self._state(keys[number], row) if row is not None and known else None
                )
        return found

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Say what to do about an error; have a working copy that is torn fetched again."""
        try:
            with self._store.errors():
                yield
        except Torn as error:
            if self._remote is None:
                raise
            raise self._remote.distrust(error) from error

    def some_live(self, most: int) -> list[Hashable]:
        """Return some of the keys that have a state after the last commit."""
        with self._store.errors():
            return [unpack(key) for key in self._store.some_live(most, self._oldest())]

    def _oldest(self) -> float:
        """Return the time before which a change is too old to count."""
        return -1.0 if self._ttl is None else time.time() - self._ttl

    def _state(self, key: Hashable, row: Row) -> Change:
        if row.is_torn:
            raise torn(
                self._store.path, f"the state of the key {shown(key)} is not what was written"
            )
        if row.state is None:
            return False
        return self._form.current(key, row.state, row.version)

    def expect(self, changes: Mapping[Hashable, Change]) -> None:
        """Have `load` give these changes, which are those of the next commit."""
        self._pending = changes

    async def commit(
        self,
        epoch: int,
        changes: Mapping[Hashable, Change],
        positions: Mapping[Hashable, Any],
        ahead: Mapping[Hashable, Sequence[Any]],
        mark: Any = None,
        *,
        undoable: bool = False,
    ) -> None:
        """Make an epoch, in one transaction; return once it is on the disk.

        The epoch is made also when this is cancelled; `close` waits for that.

        Args:
            epoch: Its number, one above the last one.
            changes: By key: its new state, encoded; None: it has ended, and is forgotten; False:
                its function has returned. It is not to be changed until the next call.
            positions: The positions of partitions that have advanced.
            ahead: All positions that are absorbed behind those.
            mark: The mark of the sink.
            undoable: Whether to keep the rows that it replaces, for `undo`.

        Raises:
            CheckpointError: When it cannot be written, for example to a full disk: then the epoch
                before is as it was, and the call may be made again. When a key cannot be stored, or
                a state holds a pickle and is not trusted. When an object store does not take it.
            Superseded: When another program has taken the checkpoint over.

        """
        if epoch != self.epoch + 1:
            raise ValueError(f"epoch {epoch} does not follow epoch {self.epoch}")
        if any(state is not None for state in changes.values()):
            self._empty = False
        self.expect(changes)
        cut = ({**self.positions, **positions}, dict(ahead), mark)
        making = asyncio.get_running_loop().run_in_executor(
            self._thread, self._commit, epoch, changes, cut, undoable
        )
        # Where this is cancelled, no task takes an error: the next run makes the epoch again.
        making.add_done_callback(lambda made: made.exception())
        # Awaited itself, a call that its thread has not begun would be cancelled with this.
        await asyncio.wait([making])
        making.result()

    def _commit(
        self,
        epoch: int,
        changes: Mapping[Hashable, Change],
        cut: tuple[dict[Hashable, Any], dict[Hashable, Any], Any],
        undoable: bool,
    ) -> None:
        made = time.time()
        rows, gone = self._rows(changes, int(made))
        tick = Tick(epoch, made, undoable, self._encoded(cut))
        oldest = None if self._ttl is None else int(made - self._ttl)
        state = None
        with self._errors():
            if self._known_version != self._state_version:
                self._store.note({"state_version": self._state_version})
                self._known_version = self._about["state_version"] = self._state_version
            if self._remote is not None:  # first, so that the working copy is never ahead
                state = self._remote.add(Changes(tick, rows, gone), self._about)
            self._store.put(
                *(tick, rows, gone), most_finished=MOST_FINISHED, oldest=oldest, state=state
            )
        if self._remote is not None:
            self._remote.begin_base()
        self.epoch, self.made, self.undoable = epoch, made, undoable
        self.positions, self.ahead, self.mark = cut
        self._pending = {}
        self._store.give_back()

    def _rows(
        self, changes: Mapping[Hashable, Change], changed: int
    ) -> tuple[list[Values], list[bytes]]:
        rows: list[Values] = []
        gone: list[bytes] = []
        # The event loop stands still meanwhile: so there are few steps for most keys.
        add, version, trusted = rows.append, self._state_version, self._trusted
        for key, state in changes.items():
            kind = type(key)
            packed = dumps(key) if kind is str or kind is int else pack(key)
            if state:
                if not trusted and pickle_in(state) is not None:
                    self._form.refuse_pickle(key, state)
                add((packed, state, version, changed, crc32(state, crc32(packed))))
            elif state is None:
                gone.append(packed)
            else:
                add(Row.of(packed, None, version, changed))
        return rows, gone

    def _encoded(self, cut: tuple[dict[Hashable, Any], dict[Hashable, Any], Any]) -> bytes:
        packed = _core.dumps(cut)
        if not self._trusted and (pickled := _core.pickle_in(packed)) is not None:
            raise CheckpointError(
                f"a position of the source or the mark of the sink of `{self.function}` is no "
                f"plain value (it imports {imports_of(pickled)}), and cannot be kept in the "
                f"checkpoint `{self.path}`"
            )
        return packed

    def note_partitions(self, count: int) -> int | None:
        """Note, from the next commit on, how many partitions the topic of a shard has.

        Returns:
            How many there were, as it was noted last; None: it was not.

        """
        before: int | None = self._about.get("partitions")
        if before is None or before < count:
            self._about["partitions"] = count
        return before

    async def check(self) -> None:
        """Raise if another program has taken the checkpoint over.

        Raises:
            Superseded: When one has.
            CheckpointError: When the object store does not tell.

        """
        if self._remote is not None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._thread, self._remote.check)

    def undo(self) -> None:
        """Go back to the epoch before the last one, which was made with `undoable`.

        Raises:
            ValueError: When it was not.

        """
        if not self.undoable:
            raise ValueError(f"epoch {self.epoch} cannot be undone")
        with self._errors():
            self._store.undo(self.epoch)
            self._empty = self._store.is_empty()
            self._read_last()

    def close(self) -> None:
        """Wait for the commit that is under way, close the file, and unlock the folder."""
        if self._remote is not None:
            self._remote.give_up()
        self._thread.shutdown()
        if self._remote is not None:
            self._remote.close()
        self._store.close()
        self._claim.release()


def _new_name(function: str) -> str:
    return f"{re.sub('[^A-Za-z0-9_.]+', '-', function)}-{secrets.token_hex(4)}"


def cut_of(
    tick: Tick, path: str | Path, *, trusted: bool
) -> tuple[dict[Hashable, Any], dict[Hashable, list[Any]], Any]:
    """Give positions, positions ahead, and the mark of an epoch.

    Raises:
        PickledCut: When they hold a pickle, and are not trusted.
        CheckpointError: When they are torn.

    """
    try:
        if not trusted and (pickled := pickle_in(tick.cut)) is not None:
            imports = imports_of(pickled)
            raise PickledCut(
                f"the positions or the mark of epoch {tick.epoch} of the checkpoint `{path}` hold "
                f"a pickle, which runs code when it is loaded (it imports {imports}); to load it, "
                "say that nobody else writes to the checkpoint, by `trusted=True` or `--trust`",
                imports,
            )
        positions, ahead, mark = _core.loads(tick.cut, trusted)
    except ValueError as error:
        raise torn(path, f"the positions of epoch {tick.epoch}: {error}") from None
    return positions, ahead, mark
