"""Recordings: the events and results of a stream's function, in a file.

A file begins with `MAGIC`. Frames follow: the length of a payload, its CRC-32, and the payload, a
pair that `_core.dumps` has encoded. The first one is ("head", {...}); each other one is a step of
the function, in order:

    ("event", event)    it received an event
    ("tick", None)      it received a tick
    ("end", None)       its input ended
    ("result", result)  it yielded
    ("returned", None)  it returned
    ("raised", (type, message))
    ("cancelled", None) its stream was cancelled, or closed for good
    ("lost", (step, text))  as the named step, but the value could not be encoded

An event is in the file before the function receives it. So the last one in the file of a stream
that crashed is the one at which it crashed. A file that breaks off within a frame is read up to it.
"""

from __future__ import annotations

import contextlib
import datetime
import inspect
import logging
import os
import platform
import re
import struct
import sys
import threading
import zlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any, ClassVar

from velo import _core
from velo._function.context import stream_name
from velo._system import OWN_FILE
from velo.events import TICK

__all__ = ["MAGIC", "Recorded", "frames"]

MAGIC = b"velorec\x01"
SUFFIX = ".velorec"
_FRAME = struct.Struct("<II")
# Results are written with the next event, or once they have this many bytes.
_HELD = 64 * 1024
_OPEN = 64
_NOT_IN_NAMES = re.compile(r"[^\w.-]+")

_log = logging.getLogger("velo.recording")


class Recorded:
    """A stream function whose events and results are recorded.

    Each call, and so each stream, has its own file.

    Args:
        function: The function.
        folder: The folder of the files.

    """

    def __init__(self, function: Callable[..., AsyncIterator[Any]], folder: str) -> None:
        self.inner = function
        self.folder = folder
        self.__qualname__ = getattr(function, "__qualname__", type(function).__qualname__)
        # Its signature is that of the function.
        self.__wrapped__ = function

    def __call__(self, events: Any, *state: Any) -> AsyncGenerator[Any, None]:
        """Run the function."""
        results = self._run(events, *state)
        results.__qualname__ = self.__qualname__  # type: ignore[attr-defined]  # for warnings
        return results

    async def _run(self, events: Any, *state: Any) -> AsyncGenerator[Any, None]:
        file = _File(self.folder, stream_name.get() or self.__qualname__)
        file.step("head", _head(self.inner, state))
        results = self.inner(_Heard(events, file), *state)
        async with contextlib.AsyncExitStack() as stack:
            if isinstance(results, AsyncGenerator):
                await stack.enter_async_context(contextlib.aclosing(results))
            try:
                async for result in results:
                    file.step("result", result)
                    yield result
            except Exception as error:
                file.last("raised", (type(error).__qualname__, str(error)))
                raise
            except BaseException:
                file.last("cancelled")
                raise
            file.last("returned")

    def __reduce__(self) -> Any:
        from velo._function.reference import describe

        return _restore, (describe(self.inner), self.folder)


def _restore(described: Any, folder: str) -> Recorded:
    from velo._function.reference import build

    return Recorded(build(described), folder)


def frames(data: bytes) -> Iterator[bytes]:
    """Yield the payloads of a recording, up to the first incomplete one.

    Raises:
        ValueError: When it is no recording, or has another version.

    """
    if not data.startswith(MAGIC):
        if data.startswith(MAGIC[:-1]) and len(data) >= len(MAGIC):
            raise ValueError(f"its version is {data[len(MAGIC) - 1]}; this velo reads {MAGIC[-1]}")
        raise ValueError("it is no recording")
    at = len(MAGIC)
    while at + _FRAME.size <= len(data):
        length, check = _FRAME.unpack_from(data, at)
        at += _FRAME.size
        payload = data[at : at + length]
        at += length
        if len(payload) < length or zlib.crc32(payload) != check:
            return
        yield payload


def _frame(step: str, value: Any) -> bytes:
    try:
        payload = _core.dumps((step, value))
    except Exception:
        # Recording must not fail the stream: a value that cannot be encoded is recorded as text.
        payload = _core.dumps(("lost", (step, _shown(value))))
    return _FRAME.pack(len(payload), zlib.crc32(payload)) + payload


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except Exception:
        return f"a {type(value).__qualname__}"


def _head(function: Any, state: tuple[Any, ...]) -> dict[str, Any]:
    return {
        "function": _origins(function),
        "stream": stream_name.get(),
        "state": state,
        "velo": _core.__version__,
        "python": platform.python_version(),
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "pid": os.getpid(),
        "hash_seed": os.environ.get("PYTHONHASHSEED") or "random",
    }


def _origins(function: Any) -> list[list[str | None]]:
    """Return module, name and file of a function, or of each part of a composed one."""
    parts = getattr(function, "parts", [function])
    found = []
    for part in map(inspect.unwrap, parts):
        module = getattr(part, "__module__", None)
        file = getattr(sys.modules.get(module or ""), "__file__", None)
        found.append([module, getattr(part, "__qualname__", None), file and os.path.abspath(file)])
    return found


class _Heard(AsyncIterator[Any]):
    """Records events on their way to the function."""

    def __init__(self, events: Any, file: _File) -> None:
        self._events = events
        self._file = file

    async def __anext__(self) -> Any:
        try:
            event = await anext(self._events)
        except StopAsyncIteration:
            self._file.step("end")
            raise
        if event is TICK:
            self._file.step("tick", now=True)
        else:
            self._file.step("event", event, now=True)
        return event

    def ticks(self, seconds: float) -> AsyncIterator[Any]:
        return _Heard(self._events.ticks(seconds), self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._events, name)


class _File:
    """A recording that is being written.

    A process may have more streams than files. The files that were written last stay open.
    """

    _open: ClassVar[OrderedDict[_File, int]] = OrderedDict()
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, folder: str, name: str) -> None:
        self._held = bytearray(MAGIC)
        self._broken = False
        now = datetime.datetime.now(datetime.UTC)
        name = _NOT_IN_NAMES.sub("_", name)
        self._path = os.path.join(folder, f"{name}.{now:%Y%m%d-%H%M%S}-{os.getpid()}{SUFFIX}")
        # Others may be able to write to the folder: links are not followed.
        self._flags = os.O_WRONLY | os.O_APPEND | OWN_FILE
        self._identity: tuple[int, int] | None = None
        with self._errors():
            os.makedirs(folder, mode=0o700, exist_ok=True)

    def step(self, step: str, value: Any = None, *, now: bool = False) -> None:
        """Add a step. With `now`, it is in the file when this returns."""
        if self._broken:
            return
        self._held += _frame(step, value)
        if now or len(self._held) > _HELD:
            with self._errors(), self._lock:
                self._write()

    def last(self, step: str, value: Any = None) -> None:
        """Add the last step."""
        self.step(step, value, now=True)
        with self._lock:
            if (fd := self._open.pop(self, None)) is not None:
                os.close(fd)

    def _write(self) -> None:
        fd = self._open.pop(self, None)
        if fd is None:
            while len(self._open) >= _OPEN:
                os.close(self._open.popitem(last=False)[1])
            fd = self._create_or_open()
        self._open[self] = fd
        if os.write(fd, self._held) < len(self._held):
            raise OSError("the disk is full")  # readers stop at the incomplete frame
        self._held.clear()

    def _create_or_open(self) -> int:
        if self._identity is not None:
            fd = os.open(self._path, self._flags)
            if _identify(fd) != self._identity:
                os.close(fd)
                raise OSError("another file has taken its name")
            return fd
        while True:
            try:
                fd = os.open(self._path, self._flags | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:  # a stream of the same name, in the same second
                self._path = f"{self._path.removesuffix(SUFFIX)}+{SUFFIX}"
                continue
            self._identity = _identify(fd)
            return fd

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Stop recording when that fails; the function goes on."""
        try:
            yield
        except OSError as error:
            self._broken = True
            _log.warning("recording to `%s` ends: %s", self._path, error)


def _identify(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino
