"""Streams that are kept under a key: one user after the other attaches to them.

Inline, the streams of an event loop are kept here, with the line of those who wait for each. In
process mode that is the supervisor's: see `velo-supervisor/src/pool/keys.rs`.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from velo import _core
from velo._api.stream import Stream
from velo._function.exceptions import log_failure
from velo._function.reference import describe, import_path
from velo._process.key_requests import Taken
from velo.errors import StreamBusy

if TYPE_CHECKING:
    from velo._api.function import Key, StreamFn
    from velo._config import StreamConfig

__all__ = ["Attachment", "Keeping"]

# What a stream is made of, and what is to be called when its end was seen.
_Opened = tuple[_core.Opened, Callable[[], None]]

# So many characters of a key are shown.
_LONGEST = 200

In = TypeVar("In")
Out = TypeVar("Out")


class Attachment(Stream[In, Out], Generic[In, Out]):
    """A user's stream on one that is kept: closing it detaches it."""

    __slots__ = ("_ends", "_left", "_why")

    def __init__(
        self,
        opened: _core.Opened,
        name: str,
        config: StreamConfig,
        key: Key,
        left: Callable[[], None],
    ) -> None:
        super().__init__(opened, name, config, asyncio.get_running_loop(), _nothing)
        self._left = left
        self._why = f"detached from key `{key!s}`"
        self._ends = False

    def end(self) -> _core.Operation[None]:
        """End the input for good: see `Stream.end`."""
        self._ends = True
        return super().end()

    def _try_end(self, why: str) -> bool:
        return super()._try_end(why) if self._ends else self._try_detach(self._why)

    async def _discard(self) -> None:
        """Wait until what was sent is handled, and drop results that nobody receives."""
        while self._has_receiver and not self._over:
            sent, handled = self._progress()
            if sent == handled:
                await asyncio.sleep(0)  # it needs a turn to take them
                break
            await self._wait_until_handled()
        await super()._discard()

    async def _stop(self) -> None:
        """Detach without waiting: what was sent is handled before the next one attaches."""
        if self._ends:
            return await super()._stop()
        self._done = True
        if not self._over:
            self._cancel()

    def _give_back(self) -> None:
        if self._over and not self._released:
            self._left()
        super()._give_back()


class Keeping:
    """How the streams of one stream function are kept.

    Attributes:
        config: Its settings while somebody is attached: only a parked stream times out.

    """

    def __init__(self, fn: StreamFn[Any, Any]) -> None:
        if fn.config.recover != "none":
            raise ValueError(
                '`open(key=...)` does not go together with `recover="replay"`: whoever sends '
                "events keeps them for that, and a stream with a key outlives its senders"
            )
        self.config = fn.config.replace(timeout=None)
        self._fn = fn

    async def open(self, key: Key) -> Attachment[Any, Any]:
        """Attach to what is kept under `key`, or open it."""
        name = f"{self._fn._name}-{next(self._fn._numbers)}"
        inline = self.config.mode == "inline"
        opened, left = await (self._open_inline if inline else self._open_in_worker)(key, name)
        self._fn._ledger.enter(opened)
        stream: Attachment[Any, Any] = Attachment(opened, name, self.config, key, left)
        return stream

    async def _open_in_worker(self, key: Key, name: str) -> _Opened:
        from velo._process.clients import client_of

        fn = self._fn
        client = client_of(asyncio.get_running_loop(), self.config.supervisor)
        name_of_key = hashlib.sha256(self._identity + encode(key)).digest()
        try:
            return await client.grants.open(
                name_of_key, shown(key), fn._reference, fn.config, name, fn._take_place
            )
        except Taken:
            raise busy(fn, key) from None

    async def _open_inline(self, key: Key, name: str) -> _Opened:
        loop = asyncio.get_running_loop()
        place = (self._local_identity, encode(key))
        entries = _entries.get(loop)
        if entries is None:
            entries = _entries[loop] = {}
        entry = entries.get(place)
        if entry is None:
            entry = entries[place] = _Entry(loop, entries, place)
        await entry.take(self._fn, key)
        try:
            return await entry.attach(self._fn, name), _nothing
        except BaseException:
            entry.give_back()
            raise

    @functools.cached_property
    def _identity(self) -> bytes:
        return _tagged(b"f", _described(describe(self._fn._function)))

    @functools.cached_property
    def _local_identity(self) -> Any:
        return _local(self._fn._function)


def _local(function: Any) -> Any:
    """Return what a function is known by in this process."""
    from velo._api.compose import Chain

    if isinstance(function, Chain):
        return tuple(_local(part) for part in function.parts)
    return import_path(function) or _Same(function)


class _Same:
    """Equal for the same object only, which it keeps alive."""

    def __init__(self, thing: object) -> None:
        self._thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other._thing is self._thing

    def __hash__(self) -> int:
        return id(self._thing)


class _Entry:
    """What an event loop keeps under one key of one function."""

    def __init__(self, loop: asyncio.AbstractEventLoop, entries: _Entries, place: Any) -> None:
        self._loop = loop
        self._entries = entries
        self._place = place
        self._kept: _core.Kept | None = None
        # Somebody is attached, or about to be.
        self._taken = False
        # The input was ended: whoever comes next waits for the end, and begins anew.
        self._ending = False
        self._line: deque[asyncio.Future[None]] = deque()
        self._timeout: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._release: Callable[[], None] = _nothing

    async def take(self, fn: StreamFn[Any, Any], key: Key) -> None:
        """Wait in line until nobody is attached. A cancelled wait has taken nothing."""
        if not self._taken and not self._ending:
            self._taken = True
            return
        if fn.config.overflow == "error" and (self._taken or self._line):
            raise busy(fn, key)
        turn = self._loop.create_future()
        self._line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._line:
                self._line.remove(turn)
            elif not turn.cancelled():
                self.give_back()  # it was handed over at the same moment
            raise

    async def attach(self, fn: StreamFn[Any, Any], name: str) -> _core.Opened:
        """Attach who has taken it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        config = fn.config
        limits = (config.buffer, config.full)
        if self._kept is not None:
            return self._kept.attach_inline(limits, name)
        release = await fn._take_place()
        try:
            function = (fn._runs, fn._has_state)
            tell = functools.partial(_tell, weakref.ref(self))
            opened, self._kept = _core.keep_inline(
                self._loop, function, limits, name, config.event_timeout, tell
            )
        except BaseException:
            release()
            raise
        self._timeout = config.timeout
        self._release = release
        return opened

    def give_back(self) -> None:
        """Nobody is attached any more: the next in line is, or the time of the stream begins."""
        self._taken = False
        if self._ending:
            return
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                self._taken = True
                turn.set_result(None)
                return
        if self._kept is None:
            self._entries.pop(self._place, None)
        elif self._timeout is not None:
            self._timer = self._loop.call_later(self._timeout, self._expire)

    def tell(self, over: bool, error: BaseException | None) -> None:
        """Hear that an attachment is over, or the function; in the middle of its step."""
        if over:
            self._kept = None
            self._ending = False
            release, self._release = self._release, _nothing
            release()
        if error is not None:
            self._loop.call_soon(log_failure, error)
        self.give_back()

    def _expire(self) -> None:
        self._timer = None
        if self._kept is not None and not self._taken:
            self._ending = True
            self._kept.end_input()


_Entries = dict[Any, _Entry]
_entries: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Entries] = (
    weakref.WeakKeyDictionary()
)


def _tell(entry_of: weakref.ref[_Entry], over: bool, error: BaseException | None) -> None:
    if (entry := entry_of()) is not None:
        entry.tell(over, error)


def busy(fn: StreamFn[Any, Any], key: Key) -> StreamBusy:
    """Return the error for a key that somebody is attached to."""
    return StreamBusy(
        f"somebody is attached to key `{key!s}` of `{fn._name}`; with "
        '`StreamConfig(overflow="wait")`, `open` waits in line'
    )


def shown(key: Key) -> str:
    """Return a key as people who look at streams see it: on one line, and not endless."""
    text = str(key)
    if not text.isprintable():
        text = repr(text[: _LONGEST + 1])[1:-1]
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def encode(key: Key) -> bytes:
    """Return bytes that are the same for the same key, in every process, and for no other.

    Raises:
        TypeError: When it is no string, bytes, integer, or tuple of those.

    """
    if type(key) is str:
        return _tagged(b"s", key.encode("utf-8", "surrogatepass"))
    if type(key) is bytes:
        return _tagged(b"b", key)
    if type(key) is int:
        return _tagged(b"i", str(key).encode())
    if type(key) is tuple:
        return _tagged(b"t", b"".join(encode(part) for part in key))
    raise TypeError(
        f"a key is a string, bytes, an integer, or a tuple of those, not {type(key).__name__}; "
        "`str(...)` makes one of most things"
    )


def _tagged(tag: bytes, what: bytes) -> bytes:
    return tag + str(len(what)).encode() + b":" + what


def _described(described: tuple[str, Any]) -> bytes:
    kind, what = described
    if kind == "chain":
        return _tagged(b"c", b"".join(map(_described, what)))
    return encode((kind, what))


def _nothing() -> None:
    pass
