"""Object stores: the lines of all objects under a prefix, and a sink of objects, by obstore."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import SplitResult

from velo.connect.errors import ConnectError, NoSuchTopic, PositionLost, missing
from velo.connect.formats import Decode, Encode, encoder, line_decoder
from velo.connect.lines import Lines
from velo.connect.model import Bad, Batch, Partition, Position, Record, addressed
from velo.connect.rows import Rows
from velo.connect.settings import add_line
from velo.connect.web import parts_of

try:
    import obstore
    from obstore import exceptions as theirs
except ImportError as error:
    raise missing("`connect.objects`", "objects") from error

from velo.connect.object_store import OPTIONS, kind_of, opened, said

__all__ = ["Objects", "objects", "of_url"]

_MANY = 500
_CHUNK_BYTES = 256 * 1024
_PACKED = (".gz", ".zst", ".bz2", ".xz")


def objects(
    url: str,
    *,
    start: tuple[str, int] | None = None,
    suffix: str = "",
    decode: Decode = "json",
    encode: Encode = "json",
    max_line: int = 16 * 1024 * 1024,
    object_bytes: int = 64 * 1024 * 1024,
    options: Mapping[str, Any] | None = None,
    retries: int = 3,
    connect_timeout: float = 10.0,
) -> Objects:
    """Read the lines of all objects under a prefix, or write results to new objects there.

    Args:
        url: The address: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`, or
            `file:///folder`. A prefix ends where a name between slashes does; it may be an object.
        start: The position of a record, behind which to begin: the object, and the number of bytes
            up to the end of the line.
        suffix: Read objects alone whose names end with it.
        decode: The format of a line: "json", "text", "bytes", "csv" (the first line of an object is
            the header; see `velo.connect.csv`), or a function of bytes. Empty lines are skipped.
        encode: The format of a result, likewise.
        max_line: The most bytes of a line; longer lines are no events.
        object_bytes: The size at which an object of results is written; it also is at each flush.
        options: Settings of the store in obstore's names: `endpoint`, `region`, `access_key_id`,
            `secret_access_key` and so on. Others come from the environment, as `AWS_REGION`.
        retries: How often a request that fails is made again, with growing pauses.
        connect_timeout: The seconds that connecting may take.

    Raises:
        ValueError: When the URL or a setting does not fit.
        ImportError: When obstore is not installed.

    """
    if "msgpack" in (decode, encode):
        raise ValueError('"msgpack" is no format of lines: it may have line ends in it')
    if max_line < 1 or object_bytes < 1 or retries < 0:
        raise ValueError("`max_line` and `object_bytes` are at least 1, `retries` at least 0")
    place = opened(url, options, retries=retries, connect_timeout=connect_timeout)
    return Objects(
        *place,
        start,
        suffix,
        line_decoder(decode),
        encoder(encode),
        max_line,
        object_bytes,
    )


class Objects:
    """A source and a sink; see `objects`.

    Attributes:
        name: What it reads or writes.

    """

    def __init__(
        self,
        store: Any,
        prefix: str,
        shown: str,
        start: tuple[str, int] | None,
        suffix: str,
        new_decoder: Callable[[], Callable[[bytes], Any]],
        encode: Callable[[Any], bytes],
        max_line: int,
        object_bytes: int,
    ) -> None:
        self.name = f"objects {shown}"
        self._store = store
        self._prefix = prefix
        self._shown = shown
        self._start = start
        self._suffix = suffix
        self._new_decoder = new_decoder
        self._encode = encode
        self._max_line = max_line
        self._stopped = False
        self._thread: ThreadPoolExecutor | None = None
        # Results that are in no object yet.
        self._lines: list[bytes] = []
        self._bytes = 0
        self._object_bytes = object_bytes
        self._written = 0
        self._run = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{uuid.uuid4().hex[:8]}"
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        """Show the address."""
        return f"objects({self._shown!r})"

    # The source.

    async def __aiter__(self) -> AsyncIterator[Batch]:
        """Give the lines of the objects that are there now, in the order of their names."""
        try:
            for path, begin in self._behind_start(await self._call(self._listed)):
                batches = self._lines_of(path, begin)
                while (records := await self._call(next, batches, None)) is not None:
                    if records:
                        yield records
                    if self._stopped:
                        return
        finally:
            if not self._lines:
                self._end_thread()

    def _listed(self) -> dict[str, int]:
        """Give the names of the objects with their sizes, in order."""
        found: dict[str, int] = {}
        with self._named("list"):
            for some in obstore.list(self._store, prefix=self._prefix or None):
                found.update((each["path"], each["size"]) for each in some)
            if not found and self._prefix:
                # A prefix does not list the object of its own name.
                with contextlib.suppress(FileNotFoundError):
                    each = obstore.head(self._store, self._prefix)
                    found[each["path"]] = each["size"]
        if not found:
            raise NoSuchTopic(f"there is no object at {self._shown}")
        return {path: found[path] for path in sorted(found) if path.endswith(self._suffix)}

    def _behind_start(self, found: dict[str, int]) -> list[tuple[str, int]]:
        if self._start is None:
            return [(path, 0) for path, size in found.items() if size]
        name, begin = self._start
        if name not in found or found[name] < begin:
            why = "does not exist" if name not in found else f"has {found[name]:,} bytes"
            raise PositionLost(
                f"{self._shown} was read up to byte {begin:,} of `{name}`, which {why}: choose "
                "another `start`"
            )
        rest = [(path, 0) for path, size in found.items() if path > name and size]
        return [(name, begin), *rest] if begin < found[name] else rest

    def _lines_of(self, path: str, begin: int) -> Iterator[list[Record | Bad]]:
        if path.endswith(_PACKED):
            raise ConnectError(
                f"the object `{path}` of {self._shown} is packed, which `connect.objects` does not "
                "read: unpack it, or choose others by `suffix`"
            )
        lines, at, decode = Lines(self._max_line), begin, self._new_decoder()
        with self._named(f"read `{path}` of"):
            if begin and isinstance(decode, Rows) and not decode.begun:
                self._read_header(path, decode)
            range: Any = {"range": {"offset": begin}} if begin else None
            got = obstore.get(self._store, path, options=range)
            for chunk in got.stream(min_chunk_size=_CHUNK_BYTES):
                records: list[Record | Bad] = []
                for line, size in lines.sized(bytes(chunk)):
                    at += size
                    add_line(records, decode, line, None, path, self._shown, (path, at))
                    if len(records) == _MANY:
                        yield records
                        records = []
                yield records
        records = []
        for line in lines.last():
            add_line(records, decode, line, None, path, self._shown, (path, got.range[1]))
        yield records

    def _read_header(self, path: str, rows: Rows) -> None:
        lines = Lines(self._max_line)
        for chunk in obstore.get(self._store, path).stream(min_chunk_size=_CHUNK_BYTES):
            for line in lines.feed(bytes(chunk)):
                if line and isinstance(line, bytes):
                    rows(line)
                    return

    def seek(self, positions: Mapping[Partition, Position]) -> None:
        """Begin behind a position, as `start` does."""
        self._start = positions.get(self._shown, self._start)

    async def commit(self, positions: Mapping[Partition, Position]) -> None:
        """Keep nothing: a store has no place for positions."""

    def stop(self) -> None:
        """Read no more."""
        self._stopped = True

    # The sink.

    async def write(self, results: Sequence[tuple[Any, Any]]) -> None:
        """Take results; an object is written when `object_bytes` are there.

        Raises:
            ConnectError: When the store does not take an object.

        """
        lines = [self._encode(addressed(key, result).value) + b"\n" for key, result in results]
        if any(line.count(b"\n") > 1 for line in lines):
            raise ValueError("a result with a line end in it is no line")
        async with self._lock:
            self._lines.extend(lines)
            self._bytes += sum(map(len, lines))
            if self._bytes >= self._object_bytes:
                await self._put()

    async def flush(self) -> None:
        """Write the results to an object, and return once the store has it.

        Raises:
            ConnectError: As `write`.

        """
        async with self._lock:
            if self._lines:
                await self._put()

    def _path(self, number: int) -> str:
        name = f"{self._run}-{number:08}.ndjson"
        return f"{self._prefix}/{name}" if self._prefix else name

    async def mark(self) -> tuple[str, int]:
        """Tell which objects there are: those of a run, up to a number."""
        return self._run, self._written

    async def rewind(self, mark: tuple[str, int] | None) -> None:
        """Delete the objects that were written behind a mark, and go on with their numbers.

        Raises:
            ConnectError: When the store does not delete them.

        """
        if mark is not None:
            self._run, self._written = mark
            with self._named("delete objects of"):
                await self._call(self._delete_behind)

    def _delete_behind(self) -> None:
        first = self._path(self._written)
        found = obstore.list(self._store, prefix=self._prefix or None)
        names = [each["path"] for some in found for each in some]
        own = self._path(0).rpartition("-")[0]
        if behind := [name for name in names if name >= first and name.startswith(own)]:
            obstore.delete(self._store, behind)

    async def _put(self) -> None:
        path = self._path(self._written)
        with self._named(f"write `{path}` to"):
            await self._call(obstore.put, self._store, path, b"".join(self._lines))
        self._written += 1
        self._bytes = 0
        self._lines.clear()

    async def close(self) -> None:
        """Read no more."""
        self.stop()
        self._end_thread()

    # The asynchronous functions of obstore may abort the interpreter when that ends, from a thread
    # of theirs that still has a future of Python.
    async def _call(self, function: Any, *args: Any) -> Any:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "velo objects")
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    def _end_thread(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=False)
            self._thread = None

    @contextlib.contextmanager
    def _named(self, action: str) -> Any:
        try:
            yield
        except (theirs.BaseError, OSError) as error:
            raise kind_of(error)(f"cannot {action} {self._shown}: {said(error)}") from None


def _position(text: str) -> tuple[str, int]:
    name, _, begin = text.rpartition(":")
    if not name or not begin.isdigit():
        raise ValueError(f"{text!r} is no position: write OBJECT:BYTE")
    return name, int(begin)


_SETTINGS: dict[str, Callable[[str], Any]] = {
    "start": _position,
    "suffix": str,
    "decode": str,
    "encode": str,
    "max_line": int,
    "object_bytes": int,
    "retries": int,
    "connect_timeout": float,
}


def of_url(url: SplitResult, settings: dict[str, str]) -> Objects:
    """Make the endpoint of `s3://bucket/prefix?suffix=.ndjson&region=eu-central-1`."""
    address, values = parts_of(url._replace(query=""), settings, _SETTINGS | OPTIONS)
    options = {name: values.pop(name) for name in OPTIONS if name in values}
    return objects(address, options=options, **values)
