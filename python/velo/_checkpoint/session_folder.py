"""The folder of a supervisor's sessions: a checkpoint for each function, opened when it is used."""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from velo import _core
from velo._checkpoint.failing import torn
from velo._checkpoint.folder import checkpoints_in, claim, exists, is_own
from velo._checkpoint.keys import unpack
from velo._checkpoint.store import Row, Store, Tick
from velo._function.key_text import shown
from velo.errors import CheckpointError

__all__ = ["Change", "Name", "SessionFolder"]

# A session: the name of its function, and the bytes of its key.
Name = tuple[str, bytes]

_MOST_FINISHED = 65_536
_NO_POSITIONS = _core.dumps(({}, {}, None))


class Change(NamedTuple):
    """What is to be stored of a session.

    Attributes:
        state: Its state, encoded; None: its function has returned, and it is forgotten.
        version: The version of the state.

    """

    state: bytes | None
    version: int


class SessionFolder:
    """The folder, for one process. `load` and `commit` may be called from two threads.

    Args:
        path: The folder; it is created where there is none.
        ttl: The seconds without a change after which a key is unknown; None: never.

    Raises:
        CheckpointError: When another process has it, it cannot be written to, or it holds something
            else than checkpoints, or one that is torn or of a newer velo.

    """

    def __init__(self, path: Path, ttl: float | None) -> None:
        self.path = path
        self._ttl = ttl
        self._open: dict[str, _OfFunction] = {}
        self._claim = claim(path, of_functions=True)
        try:
            # By function: its folder, which may have the name that the function had before.
            self._folders = _folders_in(path)
        except BaseException:
            self._claim.release()
            raise

    def load(self, name: Name) -> Change | None:
        """Return what is stored of a session; None: nothing.

        Raises:
            CheckpointError: When its checkpoint cannot be opened or read, or its state is torn.

        """
        function, key = name
        if function not in self._folders:
            return None  # `commit` creates its checkpoint
        found = self._of(function).load(key)
        return None if found is None or found.changed < self._oldest() else _change(found)

    def commit(self, changes: Mapping[Name, Change]) -> None:
        """Store changes: those of each function in one transaction.

        Raises:
            CheckpointError: When that fails for a function; those of the others are stored. It may
                be called again, with later changes as well.

        """
        of_functions: dict[str, list[tuple[bytes, Change]]] = {}
        for (function, key), change in changes.items():
            of_functions.setdefault(function, []).append((key, change))
        oldest = None if self._ttl is None else int(self._oldest())
        failed: CheckpointError | None = None
        for function, some in of_functions.items():
            try:
                self._of(function).commit(some, oldest)
            except CheckpointError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def _oldest(self) -> float:
        return -1.0 if self._ttl is None else time.time() - self._ttl

    @property
    def functions(self) -> list[str]:
        """The functions that have a checkpoint."""
        return sorted(self._folders)

    def _of(self, function: str) -> _OfFunction:
        known = self._open.get(function)
        if known is None:
            folder = self._folders.get(function) or self._new_folder(function)
            known = self._open[function] = _OfFunction(folder, function)
            self._folders[function] = folder
        return known

    def _new_folder(self, function: str) -> Path:
        name = re.sub("[^A-Za-z0-9_.-]+", ".", function)[:100].strip(".") or "function"
        folder, number = self.path / name, 1
        while not _is_free(folder):  # of another function
            number += 1
            folder = self.path / f"{name}-{number}"
        return folder

    def close(self) -> None:
        """Close all checkpoints, and unlock the folder."""
        for one in self._open.values():
            one.close()
        self._claim.release()


class _OfFunction:
    """The checkpoint of one function."""

    def __init__(self, folder: Path, function: str) -> None:
        with contextlib.ExitStack() as opened:
            self._claim = claim(folder)
            opened.callback(self._claim.release)
            self._store = Store(folder, writes=True)
            opened.callback(self._store.close)
            with self._store.errors():
                about = self._store.about()
                self._version: int = about.get("state_version", 0)
                if not about:
                    name = f"{folder.name}-{secrets.token_hex(4)}"
                    about = {"function": function, "name": name, "created": time.time()}
                    self._store.note(about | {"state_version": 1})
                last = self._store.last()
            self._epoch = 0 if last is None else last.epoch
            self._close = opened.pop_all().close

    def load(self, key: bytes) -> Row | None:
        with self._store.errors():
            row = self._store.rows([key]).get(key)
        if row is not None and row.is_torn:
            why = f"the state of the key {shown(unpack(key))} is not what was written"
            raise torn(self._store.path, why)
        return row

    def commit(self, changes: list[tuple[bytes, Change]], oldest: int | None) -> None:
        made = time.time()
        rows = [
            Row.of(key, change.state, change.version, int(made))
            for key, change in changes
            if change.state is not None
        ]
        gone = [key for key, change in changes if change.state is None]
        version = max((row.version for row in rows), default=0)
        if version > self._version:
            self._store.note({"state_version": version})
            self._version = version
        tick = Tick(self._epoch + 1, made, False, _NO_POSITIONS)
        self._store.put(tick, rows, gone, most_finished=_MOST_FINISHED, oldest=oldest)
        self._epoch += 1
        self._store.give_back()

    def close(self) -> None:
        self._close()


def _folders_in(path: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in checkpoints_in(path):
        function = _function_of(folder)
        if function is None:
            continue
        if (other := found.get(function)) is not None:
            raise CheckpointError(
                f"`{other}` and `{folder}` are both checkpoints of `{function}`: move one of them "
                "away"
            )
        found[function] = folder
    return found


def _function_of(folder: Path) -> str | None:
    """Return the function of a checkpoint; None if it was not finished, or was reset."""
    store = Store(folder, writes=False)
    try:
        with store.errors():
            function: str | None = store.about().get("function")
    finally:
        store.close()
    return function


def _is_free(folder: Path) -> bool:
    """Whether a folder is missing, or has no function, as after a full disk or a crash."""
    if exists(folder):
        return _function_of(folder) is None
    return not folder.exists() or is_own(folder)


def _change(row: Row) -> Change | None:
    return None if row.state is None else Change(row.state, row.version)
