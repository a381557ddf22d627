"""The SQLite file of a checkpoint.

| table | holds |
| --- | --- |
| `about` | the function, the version of its states, the creation; of a working copy: its commit |
| `epochs` | positions and mark of the last epoch, and of the one before where it can be undone |
| `keys` | each key's state, NULL once its function has returned; when it changed last |
| `before` | the rows that the last epoch has replaced, if it can be undone |

One transaction makes an epoch. Rows are written a thousand at a time: between two steps of SQLite a
thread gives up the GIL, and gets it back from a busy event loop only after milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from velo._checkpoint.failing import Torn, file_errors, foreign, sqlite_errors, torn
from velo._checkpoint.folder import STATE
from velo._files import sync
from velo.errors import CheckpointError

__all__ = ["FORMAT", "Row", "Store", "Tick", "Values"]

FORMAT = 1
"""The version of this format; `PRAGMA user_version` holds it."""

_APPLICATION = int.from_bytes(b"velo")
_TABLES = """
CREATE TABLE about (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE epochs (epoch INTEGER PRIMARY KEY, made REAL, undoable INTEGER, cut BLOB, crc INTEGER);
CREATE TABLE keys (key BLOB PRIMARY KEY, state BLOB, version INTEGER, changed INTEGER, crc INTEGER)
    WITHOUT ROWID;
CREATE INDEX finished ON keys (changed) WHERE state IS NULL;
CREATE TABLE before (key BLOB, known INTEGER, state BLOB, version INTEGER, changed INTEGER,
    crc INTEGER);
"""
_COLUMNS = "key, state, version, changed, crc"
# Cheaper than `INSERT OR REPLACE`, which removes the row first.
_OR_UPDATE = (
    "ON CONFLICT (key) DO UPDATE SET state = excluded.state, version = excluded.version, "
    "changed = excluded.changed, crc = excluded.crc"
)
# A statement takes 1,000 rows, and the rest of them 100, 10 or 1: so SQLite prepares four
# statements of each kind, once.
_SIZES = (1000, 100, 10, 1)
# The log of changes is cut to this size when it was moved to the file; bytes.
_LOG = 64 << 20
# Free pages are given back if they are more than this number, and than one page in four.
_FREE_PAGES, _FREE_PART = 4096, 4
# The name in `about` of the commit whose state a working copy has. Other changes remove it.
_STATE = "commit"
# Rows with a checksum: what gives them an order, and which they are.
_SUMMED = (("key", "keys WHERE true"), ("rowid", "before WHERE known"))
_KINDS = "typeof(key) = 'blob' AND typeof(state) IN ('blob', 'null') AND typeof(crc) = 'integer'"
# Those with at most so many bytes of state are checked so many at a time.
_SMALL, _CHECKED_AT_A_TIME = 16 * 1024, 1000
# The most pages that are given back, and keys whose age is checked, in one tick.
_PAGES_AT_A_TIME, _KEYS_AT_A_TIME = 1024, 4096


Values = tuple[bytes, bytes | None, int, int, int]
"""The values of a `Row`: a plain tuple is made in half the time."""


class Row(NamedTuple):
    """A key of the checkpoint.

    Attributes:
        key: Its bytes.
        state: Its state, encoded; None when its function has returned.
        version: The version of the state.
        changed: When it changed last, in seconds since the epoch of Unix.
        crc: A checksum of key and state.

    """

    key: bytes
    state: bytes | None
    version: int
    changed: int
    crc: int

    @classmethod
    def of(cls, key: bytes, state: bytes | None, version: int, changed: int) -> Row:
        """Make the row of a key."""
        return cls(key, state, version, changed, _checksum(key, state))

    @property
    def is_torn(self) -> bool:
        """Whether it differs from the row that was written."""
        return _checksum(self.key, self.state) != self.crc


def _checksum(key: bytes, state: bytes | None) -> int:
    return zlib.crc32(state or b"", zlib.crc32(key))


@dataclass(frozen=True)
class Tick:
    """An epoch without its keys.

    Attributes:
        epoch: Its number, from 1.
        made: When it was made, in seconds since the epoch of Unix.
        undoable: Whether the rows that it has replaced are kept.
        cut: Positions and mark, encoded.

    """

    epoch: int
    made: float
    undoable: bool
    cut: bytes

    def plain(self) -> Tick:
        """Return the same without a way back."""
        return replace(self, undoable=False)


class Store:
    """An open file: one connection that writes, from one thread at a time, and one that reads.

    Args:
        path: The folder.
        writes: Whether to write to it; the caller has claimed the folder.
        shown: What messages call it; None: by its folder.

    Raises:
        CheckpointError: When there is none, or it is torn, foreign or of a newer velo.

    """

    def __init__(self, path: Path, *, writes: bool, shown: str | None = None) -> None:
        self.path = path
        self.shown = shown or str(path)
        self._swept = b""  # keys up to this one were looked at for their age
        self._writer: sqlite3.Connection | None = None
        with self.errors():
            if writes:
                self._writer = self._open_writer()
            try:
                self._reader = self._open_reader()
                self._check()
            except BaseException:
                self.close()
                raise

    # Opening.

    def _open_writer(self) -> sqlite3.Connection:
        file = self.path / STATE
        if not file.exists():
            with file_errors(self.path):
                self._create(file)
        if not os.access(file, os.W_OK):  # SQLite would fail at the first tick
            raise CheckpointError(
                f"the checkpoint `{self.path}` cannot be written to; give this user the right to, "
                "or name another folder"
            )
        connection = _connect(file, "rw")
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA journal_size_limit = {_LOG}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _create(self, file: Path) -> None:
        """Make an empty checkpoint, which is there as a whole or not at all."""
        new = _new(file)
        with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as connection:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.executescript(
                f"BEGIN; {_TABLES} PRAGMA application_id = {_APPLICATION}; "
                f"PRAGMA user_version = {FORMAT}; COMMIT;"
            )
            # Last: closing empties the log, and does not tell that a full disk keeps it from that.
            connection.execute("PRAGMA journal_mode = WAL")
        _rename(new, file)

    def _open_reader(self) -> sqlite3.Connection:
        file = self.path / STATE
        if not file.exists():
            raise CheckpointError(f"there is no checkpoint at `{self.shown}`")
        connection = _connect(file, "ro")
        try:
            connection.execute("SELECT 1 FROM sqlite_master").fetchall()
        except sqlite3.OperationalError:
            # The folder is read-only, so SQLite cannot have its files beside this one.
            connection.close()
            log = file.with_name(f"{STATE}-wal")
            if os.access(self.path, os.W_OK) or (log.exists() and log.stat().st_size):
                raise
            connection = _connect(file, "ro&immutable=1")
        return connection

    def _check(self) -> None:
        """Check that this is a checkpoint that this velo reads."""
        reader = self._reader
        reader.execute("PRAGMA trusted_schema = OFF")
        (application,) = reader.execute("PRAGMA application_id").fetchone()
        (format,) = reader.execute("PRAGMA user_version").fetchone()
        if application != _APPLICATION:
            raise foreign(self.shown)
        if format > FORMAT:
            raise CheckpointError(
                f"the checkpoint `{self.shown}` was written by a newer velo, in format {format}; "
                f"this one reads up to format {FORMAT}: update velo"
            )
        tables = reader.execute("SELECT sql FROM sqlite_master WHERE sql NOT NULL").fetchall()
        made = {" ".join(sql.split()) for (sql,) in tables}
        if made != {" ".join(sql.split()) for sql in _TABLES.split(";") if sql.strip()}:
            raise foreign(self.shown)

    def close(self) -> None:
        """Close the file. Further use raises."""
        for connection in (getattr(self, "_reader", None), self._writer):
            if connection is not None:
                connection.close()

    def errors(self) -> contextlib.AbstractContextManager[None]:
        """Turn errors of SQLite into a `CheckpointError` that says what to do."""
        return sqlite_errors(self.shown)

    # Reading.

    def about(self) -> dict[str, Any]:
        """Return the function, its state version, the name and the time of creation."""
        about = dict(self._reader.execute("SELECT name, value FROM about"))
        about.pop(_STATE, None)
        return about

    def state(self) -> str | None:
        """Tell of which commit of an object store it has the state; None: of none."""
        return _state_in(self._reader)

    @staticmethod
    def state_in(copy: Path) -> str | None:
        """Tell the same of a file that `copy_into` has made."""
        with contextlib.closing(_connect(copy, "ro&immutable=1")) as connection:
            return _state_in(connection)

    def last(self) -> Tick | None:
        """Give the last epoch; None when there was no tick yet."""
        found = self._reader.execute(
            "SELECT epoch, made, undoable, cut, crc FROM epochs ORDER BY epoch DESC LIMIT 1"
        ).fetchone()
        if found is None:
            return None
        epoch, made, undoable, cut, crc = found
        if zlib.crc32(cut) != crc:
            raise _torn_cut(self.shown, epoch)
        return Tick(epoch, made, bool(undoable), cut)

    def rows(self, keys: Sequence[bytes]) -> dict[bytes, Row]:
        """Give the rows of those of these keys that are there."""
        found: dict[bytes, Row] = {}
        for some in _parts(keys):
            marks = ",".join("?" * len(some))
            rows = self._reader.execute(f"SELECT {_COLUMNS} FROM keys WHERE key IN ({marks})", some)
            found.update((row[0], Row(*row)) for row in rows.fetchall())
        return found

    def all_rows(self) -> Iterator[Row]:
        """Give all rows, in the order of their bytes, as they were at the first one."""
        with self.errors():
            for row in self._reader.execute(f"SELECT {_COLUMNS} FROM keys ORDER BY key"):
                yield Row(*row)

    def counts(self) -> tuple[int, int]:
        """Give how many keys have a state, and how many functions have returned."""
        (finished,) = self._reader.execute(
            "SELECT count(*) FROM keys WHERE state IS NULL"
        ).fetchone()
        (all_keys,) = self._reader.execute("SELECT count(*) FROM keys").fetchone()
        return all_keys - finished, finished

    def is_empty(self) -> bool:
        """Whether it holds no key."""
        return self._reader.execute("SELECT 1 FROM keys LIMIT 1").fetchone() is None

    def some_live(self, most: int, oldest: float) -> list[bytes]:
        """Give some keys that have a state, and have changed since `oldest`."""
        found = self._reader.execute(
            "SELECT key FROM keys WHERE state NOT NULL AND changed >= ? LIMIT ?", [oldest, most]
        )
        return [key for (key,) in found]

    def other_version(self, version: int) -> Row | None:
        """Give a key whose state is of another version than this."""
        found = self._reader.execute(
            f"SELECT {_COLUMNS} FROM keys WHERE state NOT NULL AND version != ? LIMIT 1", [version]
        ).fetchone()
        return None if found is None else Row(*found)

    def problems(self) -> list[str]:
        """Read the whole file, and return the faults that SQLite finds."""
        return [text for (text,) in self._reader.execute("PRAGMA integrity_check") if text != "ok"]

    def copy_to(self, path: Path) -> None:
        """Copy the last epoch to another folder, also while a run uses this one."""
        self.copy_into(path / STATE)

    def copy_into(self, file: Path, state: str | None = None) -> None:
        """Copy the last epoch to a file, also while a run uses this one.

        Args:
            file: The file.
            state: Of which commit of an object store the copy has the state; None: as this one.

        """
        with file_errors(file.parent), sqlite_errors(file.parent):
            new = _new(file)
            with contextlib.closing(sqlite3.connect(new)) as copy:
                self._reader.backup(copy)
                if state is not None:
                    _stamp(copy, state)
                    copy.commit()
            sync(new)
            _rename(new, file)

    @staticmethod
    def check_copy(copy: Path) -> None:
        """Read the whole of a file that `copy_into` has made.

        Raises:
            CheckpointError: When something in it is not what was written.

        """
        with (
            sqlite_errors(copy.parent),
            contextlib.closing(_connect(copy, "ro&immutable=1")) as reader,
        ):
            (said,) = reader.execute("PRAGMA quick_check(1)").fetchone()
            if said != "ok":
                raise torn(copy.parent, said)
            for epoch, cut, crc in reader.execute("SELECT epoch, cut, crc FROM epochs"):
                if zlib.crc32(cut) != crc:
                    raise _torn_cut(copy.parent, epoch)
            if any(_has_torn(reader, *summed) for summed in _SUMMED):
                raise torn(copy.parent, "a state is not what was written")

    # Writing.

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run statements that count together or not at all."""
        assert self._writer is not None
        writer = self._writer
        with self.errors():
            writer.execute("BEGIN IMMEDIATE")
            try:
                yield writer
                writer.execute("COMMIT")
            except BaseException:
                if writer.in_transaction:
                    writer.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def hurried(self) -> Iterator[None]:
        """Have transactions outlive a power cut only in the end, all up to some one of them."""
        assert self._writer is not None
        with self.errors():
            self._writer.execute("PRAGMA synchronous = NORMAL")
            try:
                yield
            finally:
                self._writer.execute("PRAGMA synchronous = FULL")

    def note(self, about: dict[str, Any]) -> None:
        """Write some of the values that `about` returns."""
        with self.transaction() as writer:
            writer.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", list(about.items()))

    def put(
        self,
        tick: Tick,
        rows: Sequence[Values],
        gone: list[bytes],
        *,
        most_finished: int,
        oldest: int | None = None,
        state: str | None = None,
    ) -> None:
        """Make an epoch.

        Args:
            tick: The epoch, one above the last.
            rows: Keys that have changed.
            gone: Keys that have ended.
            most_finished: How many keys whose functions have returned are remembered: of those that
                earlier epochs have, the oldest ones beyond it are forgotten.
            oldest: Keys that have not changed since then are removed, of the few that are looked at
                in one tick.
            state: Of which commit of an object store it is the state then.

        Raises:
            CheckpointError: When that fails; then everything is as before.

        """
        rows = sorted(rows)
        gone.sort()
        with self.transaction() as writer:
            writer.execute("DELETE FROM before")
            kept = tick.epoch - 1 if tick.undoable else tick.epoch
            writer.execute("DELETE FROM epochs WHERE epoch < ?", [kept])
            writer.execute("UPDATE epochs SET undoable = 0")
            if tick.undoable:
                self._keep(writer, sorted([*(row[0] for row in rows), *gone]))
            self._forget_finished(writer, most_finished)
            if oldest is not None:
                self._sweep(writer, oldest)
            self._write(writer, rows, gone)
            _stamp(writer, state)
            writer.execute(
                "INSERT INTO epochs VALUES (?, ?, ?, ?, ?)",
                [tick.epoch, tick.made, tick.undoable, tick.cut, zlib.crc32(tick.cut)],
            )

    def _write(
        self, writer: sqlite3.Connection, rows: Sequence[Values], gone: Iterable[bytes]
    ) -> None:
        for some in _parts(rows):
            marks = ",".join(["(?,?,?,?,?)"] * len(some))
            values = list(chain.from_iterable(some))
            writer.execute(f"INSERT INTO keys VALUES {marks} {_OR_UPDATE}", values)
        for keys in _parts(list(gone)):
            marks = ",".join("?" * len(keys))
            writer.execute(f"DELETE FROM keys WHERE key IN ({marks})", keys)

    def _keep(self, writer: sqlite3.Connection, keys: list[bytes]) -> None:
        for some in _parts(keys):
            marks = ",".join(["(?)"] * len(some))
            writer.execute(
                "INSERT INTO before "
                "SELECT column1, keys.key NOT NULL, state, version, changed, crc "
                f"FROM (VALUES {marks}) LEFT JOIN keys ON keys.key = column1",
                some,
            )

    def _forget_finished(self, writer: sqlite3.Connection, most: int) -> None:
        (count,) = writer.execute("SELECT count(*) FROM keys WHERE state IS NULL").fetchone()
        if count > most:
            writer.execute(
                "DELETE FROM keys WHERE key IN "
                "(SELECT key FROM keys WHERE state IS NULL ORDER BY changed LIMIT ?)",
                [count - most],
            )

    def _sweep(self, writer: sqlite3.Connection, oldest: int) -> None:
        count, end = writer.execute(
            "SELECT count(*), max(key) FROM (SELECT key FROM keys WHERE key > ? LIMIT ?)",
            [self._swept, _KEYS_AT_A_TIME],
        ).fetchone()
        if count:
            writer.execute(
                "DELETE FROM keys WHERE key > ? AND key <= ? AND changed < ?",
                [self._swept, end, oldest],
            )
        self._swept = end if count == _KEYS_AT_A_TIME else b""

    def undo(self, epoch: int) -> None:
        """Go back to the epoch before this one, which is the last one."""
        with self.transaction() as writer:
            writer.execute("DELETE FROM keys WHERE key IN (SELECT key FROM before)")
            writer.execute(f"INSERT INTO keys SELECT {_COLUMNS} FROM before WHERE known")
            writer.execute("DELETE FROM before")
            writer.execute("DELETE FROM epochs WHERE epoch = ?", [epoch])
            _stamp(writer, None)

    def change(self, rows: list[Row], gone: list[bytes]) -> None:
        """Change keys by hand, between two runs: also in the epoch that `undo` goes back to."""
        with self.transaction() as writer:
            self._write(writer, rows, gone)
            _stamp(writer, None)
            keys = [(key,) for key in (*(row.key for row in rows), *gone)]
            writer.executemany("DELETE FROM before WHERE key = ?", keys)
            if writer.execute("SELECT 1 FROM epochs WHERE undoable").fetchone() is not None:
                before = [(row.key, 1, *row[1:]) for row in rows]
                before += [(key, 0, None, 0, 0, 0) for key in gone]
                writer.executemany("INSERT INTO before VALUES (?, ?, ?, ?, ?, ?)", before)

    def give_back(self) -> None:
        """Give free pages back to the disk, where they are many."""
        assert self._writer is not None
        with self.errors():
            (free,) = self._writer.execute("PRAGMA freelist_count").fetchone()
            (pages,) = self._writer.execute("PRAGMA page_count").fetchone()
            if free > _FREE_PAGES and free > pages // _FREE_PART:
                # `execute` would stop after the first page.
                self._writer.executescript(f"PRAGMA incremental_vacuum({_PAGES_AT_A_TIME})")

    def compact(self, oldest: int | None) -> None:
        """Remove keys that have not changed since `oldest`; write the file anew without gaps."""
        assert self._writer is not None
        if oldest is not None:
            with self.transaction() as writer:
                writer.execute("DELETE FROM keys WHERE changed < ?", [oldest])
        with self.errors():
            self._writer.execute("VACUUM")
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def clear(self) -> None:
        """Remove everything."""
        with self.transaction() as writer:
            for table in ("keys", "before", "epochs", "about"):
                writer.execute(f"DELETE FROM {table}")


def _torn_cut(path: str | Path, epoch: int) -> Torn:
    return torn(path, f"the positions of epoch {epoch} are not what was written")


def _has_torn(reader: sqlite3.Connection, place: str, table: str) -> bool:
    """Whether one of the rows with a checksum is not what was written."""
    if reader.execute(f"SELECT 1 FROM {table} AND NOT ({_KINDS}) LIMIT 1").fetchone() is not None:
        return True
    large = reader.execute(f"SELECT key, state, crc FROM {table} AND length(state) > {_SMALL}")
    rows = chain(large, _small_rows(reader, place, table))
    return any(_checksum(key, state) != crc for key, state, crc in rows)


def _small_rows(
    reader: sqlite3.Connection, place: str, table: str
) -> Iterator[tuple[bytes, bytes, int]]:
    """Give rows, many with each step of SQLite."""
    behind: Any = -1  # smaller than any bytes
    while True:
        behind, rows = reader.execute(
            "SELECT max(place), group_concat(hex(key) || ' ' || hex(state) || ' ' || crc, ',') "
            f"FROM (SELECT {place} AS place, key, state, crc FROM {table} AND {place} > ? "
            f"AND ifnull(length(state), 0) <= {_SMALL} ORDER BY {place} LIMIT ?)",
            [behind, _CHECKED_AT_A_TIME],
        ).fetchone()
        if rows is None:
            return
        for row in rows.split(","):
            key, state, crc = row.split(" ")
            yield bytes.fromhex(key), bytes.fromhex(state), int(crc)


def _state_in(connection: sqlite3.Connection) -> str | None:
    found = connection.execute("SELECT value FROM about WHERE name = ?", [_STATE]).fetchone()
    return None if found is None else found[0]


def _stamp(writer: sqlite3.Connection, state: str | None) -> None:
    if state is None:
        writer.execute("DELETE FROM about WHERE name = ?", [_STATE])
    else:
        writer.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", [_STATE, state])


def _new(file: Path) -> Path:
    """Make an empty file beside this one, which only this user may read."""
    new = file.with_name(f"{file.name}.new")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    return new


def _rename(new: Path, file: Path) -> None:
    """Put a file that is whole in its place, also for the time after a power cut."""
    os.rename(new, file)
    for path in (file.parent, file.parent.parent):
        with contextlib.suppress(PermissionError):  # a folder that may be passed through only
            sync(path)


def _connect(file: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{file.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.execute("PRAGMA cell_size_check = ON")
    return connection


def _parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Cut in few sizes, so that few statements do."""
    at = 0
    for size in _SIZES:
        while len(items) - at >= size:
            yield items[at : at + size]
            at += size
