"""Sessions, as their users see them: one attachment after the other, under a key.

Inline, each event loop has its sessions here, with a queue of those that want to attach. In process
mode the supervisor has the queues: see `velo-supervisor/src/pool/keys.rs`.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import time
import weakref
from collections.abc import Callable
from logging import WARNING
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from velo import _core
from velo._api import key_claims
from velo._api.stream import Stream
from velo._diagnostics import lifecycle_log
from velo._function.chain import Chain
from velo._function.limiter import Limiter
from velo._function.reference import describe, import_path
from velo._function.session import Session
from velo.errors import CheckpointError, StreamBusy

if TYPE_CHECKING:
    from velo._config import StreamConfig
    from velo._function.spec import FunctionSpec

__all__ = ["Attachment", "Key", "Sessions"]

# A value that names a session of a function.
Key = str | bytes | int | tuple["Key", ...]

# What a stream is made of, and what to call once its end was received.
_Opened = tuple[_core.Opened, Callable[[], None]]

# How many characters of a key are shown.
_LONGEST = 200
# The seconds in line after which the log names the holder of the key.
_LOOK_AFTER = 5.0

In = TypeVar("In")
Out = TypeVar("Out")


class Attachment(Stream[In, Out], Generic[In, Out]):
    """One use of a session: closing it detaches it."""

    __slots__ = ("_began", "_ends", "_on_left", "_why")

    def __init__(
        self,
        opened: _core.Opened,
        name: str,
        config: StreamConfig,
        key: Key,
        on_left: Callable[[], None],
    ) -> None:
        self._began = time.monotonic()
        super().__init__(opened, name, config, asyncio.get_running_loop(), _nothing)
        self._on_left = on_left
        self._why = f"detached from key `{key!s}`"
        self._ends = False

    def end(self) -> _core.Operation[None]:
        """End the input for good: see `Stream.end`."""
        self._ends = True
        return super().end()

    def _try_end(self, why: str) -> bool:
        return super()._try_end(why) if self._ends else self._try_detach(self._why)

    async def _discard(self) -> None:
        """Wait until all events are handled, and drop results that are not received."""
        while self._has_receiver and not self._over:
            sent, handled = self._progress()
            if sent == handled:
                await asyncio.sleep(0)  # the receiving task needs a turn to take them
                break
            await self._wait_until_handled()
        await super()._discard()

    async def _stop(self) -> None:
        """Detach without waiting: the events are handled before the next attachment begins."""
        if self._ends:
            return await super()._stop()
        self._done = True
        if not self._over:
            self._cancel()

    def _give_back(self) -> None:
        if self._over and not self._released:
            self._on_left()
        super()._give_back()


class Sessions:
    """The sessions of one stream function.

    Attributes:
        config: The settings of an attachment: it has no timeout, only a detached session has.

    """

    def __init__(self, spec: FunctionSpec) -> None:
        if spec.config.recover != "none":
            raise ValueError(
                '`open(key=...)` does not go together with `recover="replay"`: a stream that '
                "recovers keeps its events with the program that sends them, and a session "
                "outlives that program"
            )
        self.config = spec.config.replace(timeout=None)
        self._spec = spec
        self._claimed = False

    async def attach(self, key: Key) -> Attachment[Any, Any]:
        """Attach to the session under `key`, or begin it."""
        name = self._spec.next_name()
        inline = self.config.mode == "inline"
        address = (self._local_identity, encode(key))
        loop = asyncio.get_running_loop()
        look = loop.call_later(_LOOK_AFTER, self._say_what_it_waits_for, name, key, address)
        try:
            opened, on_left = await (self._attach_inline if inline else self._attach_in_worker)(
                key, name
            )
        finally:
            look.cancel()
        self._spec.stats.enter(opened)
        attachment: Attachment[Any, Any] = Attachment(opened, name, self.config, key, on_left)
        _attached[address] = attachment
        return attachment

    def _say_what_it_waits_for(self, name: str, key: Key, address: Any) -> None:
        holder = _attached.get(address)
        if holder is not None and not holder._released:
            held = time.monotonic() - holder._began
            what = (
                f"stream `{holder.name}` of this process has been attached to it for {held:.0f} s"
            )
        elif self.config.mode == "inline":
            what = "a detached session is about to end, or all permits are taken (`max_concurrent`)"
        else:
            what = "another program may be attached to it, or no worker is ready"
        lifecycle_log.stream(
            WARNING,
            name,
            "has waited for %g s to attach to key `%s` of `%s`: %s",
            *(_LOOK_AFTER, shown(key), self._spec.name, what),
        )

    def _claim(self) -> None:
        """Find other processes with sessions of this function, once."""
        if self._claimed:
            return
        self._claimed = True
        inline = self.config.mode == "inline"
        if not inline:
            from velo._process import supervisors

            if supervisors.address_of(self.config.supervisor) is not None:
                return
        key_claims.claim(_origin(self._spec.function), self._spec.name, inline=inline)

    async def _attach_in_worker(self, key: Key, name: str) -> _Opened:
        from velo._process.clients import client_of
        from velo._process.key_requests import KeyTaken

        spec = self._spec
        self._claim()
        client = client_of(asyncio.get_running_loop(), self.config.supervisor)
        digest = hashlib.sha256(self._identity + encode(key)).digest()
        try:
            return await client.key_requests.open(digest, shown(key), spec, name, self._stored(key))
        except KeyTaken:
            raise busy(spec, key) from None

    async def _attach_inline(self, key: Key, name: str) -> _Opened:
        self._claim()
        loop = asyncio.get_running_loop()
        address = (self._local_identity, encode(key))
        slots = _slots.get(loop)
        if slots is None:
            slots = _slots[loop] = {}
        slot = slots.get(address)
        if slot is None:
            slot = slots[address] = _Slot(loop, slots, address)
        await slot.acquire(self._spec, key)
        try:
            return await slot.attach(self._spec, name), _nothing
        except BaseException:
            slot.release()
            raise

    def _stored(self, key: Key) -> bytes:
        """Return how a checkpoint knows a session, if its function has a state."""
        spec = self._spec
        if not spec.has_state:
            return b""
        from velo._checkpoint.keys import pack

        packed = refusal = None
        try:
            packed = pack(key)
        except CheckpointError as error:
            refusal = str(error)
        form = (spec.config.state_version, self._migrate, refusal)
        return _core.dumps((_stored_name(spec.function), packed, *form))

    @functools.cached_property
    def _migrate(self) -> tuple[str, Any] | None:
        migrate = self._spec.config.migrate
        return None if migrate is None else describe(migrate)

    @functools.cached_property
    def _identity(self) -> bytes:
        return _tagged(b"f", _described(describe(self._spec.function)))

    @functools.cached_property
    def _local_identity(self) -> Any:
        return _local(self._spec.function)


def _local(function: Any) -> Any:
    """Return a value that is equal for the same function in this process."""
    if isinstance(function, Chain):
        return tuple(_local(part) for part in function.parts)
    return import_path(function) or _Same(function)


def _origin(function: Any) -> str:
    """Return where a function is defined, which is the same in each process of a program."""
    if isinstance(function, Chain):
        return " | ".join(_origin(part) for part in function.parts)
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    code = getattr(function, "__code__", None)
    return f"{module}:{name}:{code.co_filename if code else ''}"


def _stored_name(function: Any) -> str:
    """Return the name of a function in checkpoints: the same for a script and for its import."""
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    code = getattr(function, "__code__", None)
    if module in ("__main__", "__mp_main__") and code is not None:
        module = Path(code.co_filename).stem
    return f"{module}:{name}"


class _Same:
    """Equal for the same object only, which it keeps alive."""

    def __init__(self, thing: object) -> None:
        self._thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other._thing is self._thing

    def __hash__(self) -> int:
        return id(self._thing)


class _InlineSession(Session):
    """A session of this event loop.

    Args:
        loop: The event loop.
        timeout: See `Session.timeout`.
        release: Gives back its permit among `max_concurrent`.
        may_attach: Permits one attachment, or the end of the session.

    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timeout: float | None,
        release: Callable[[], None],
        may_attach: Limiter,
    ) -> None:
        super().__init__(loop, timeout)
        self.release = release
        self._may_attach = may_attach

    def may_expire(self) -> bool:
        """Take the permit to attach, which the session holds to its end."""
        return self._may_attach.try_acquire()


class _Slot:
    """The place of one key of one function in an event loop: its session, and a queue for it.

    Args:
        loop: The event loop.
        slots: All slots of the event loop.
        address: Which of them it is.

    """

    def __init__(self, loop: asyncio.AbstractEventLoop, slots: _Slots, address: Any) -> None:
        self._loop = loop
        self._slots = slots
        self._address = address
        self._session: _InlineSession | None = None
        # Held by the attachment, or by a session whose input has ended, until the function has.
        self._permit = Limiter(1)
        self._attached = False

    async def acquire(self, spec: FunctionSpec, key: Key) -> None:
        """Wait in line for the permit to attach. A cancelled wait has taken nothing."""
        if not self._permit.try_acquire():
            ends = self._session is not None and self._session.ending
            if spec.config.overflow == "error" and (not ends or self._permit.contended):
                raise busy(spec, key)
            try:
                await self._permit.acquire()
            except asyncio.CancelledError:
                self._on_idle()  # the permit may have been handed over at the same moment
                raise
        self._attached = True

    async def attach(self, spec: FunctionSpec, name: str) -> _core.Opened:
        """Attach to the session, or begin it, with the permit that `acquire` has taken."""
        config = spec.config
        limits = (config.buffer, config.full)
        if self._session is not None:
            self._session.on_attached()
            return self._session.core.attach_inline(limits, name)
        release = await spec.acquire()
        try:
            session = _InlineSession(self._loop, config.timeout, release, self._permit)
            function = (spec.runs, spec.has_state)
            on_free = functools.partial(_on_free, weakref.ref(self))
            opened, session.core = _core.open_inline_session(
                self._loop, function, limits, name, config.event_timeout, on_free
            )
        except BaseException:
            release()
            raise
        self._session = session
        return opened

    def release(self) -> None:
        """Let the next in line attach, or else start the timer of the session."""
        if self._attached:
            self._attached = False
            self._permit.release()
        self._on_idle()

    def _on_idle(self) -> None:
        if not self._permit.idle:
            return
        if self._session is not None:
            self._session.on_detached()
        elif self._slots.get(self._address) is self:
            del self._slots[self._address]

    def on_free(self, ended: bool, error: BaseException | None) -> None:
        """Note the end of an attachment, or of the function; in the middle of its step."""
        session = self._session
        if ended and session is not None:
            self._session = None
            self._attached |= session.ending  # the permit was held by the session itself
            session.release()
            session.on_ended(error)
        self.release()


# The attachments of this process, by function and key.
_attached: weakref.WeakValueDictionary[Any, Attachment[Any, Any]] = weakref.WeakValueDictionary()

_Slots = dict[Any, _Slot]
_slots: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Slots] = weakref.WeakKeyDictionary()


def _on_free(
    slot_of: weakref.ref[_Slot], ended: bool, error: BaseException | None, _failed: bool
) -> None:
    if (slot := slot_of()) is not None:
        slot.on_free(ended, error)


def busy(spec: FunctionSpec, key: Key) -> StreamBusy:
    """Return the error for a key with an attachment."""
    return StreamBusy(
        f"key `{key!s}` of `{spec.name}` has an attachment; with "
        '`StreamConfig(overflow="wait")`, `open` waits in line'
    )


def shown(key: Key) -> str:
    """Return a key as `velo status` and `velo top` show it: on one line, and not endless."""
    text = str(key)
    if not text.isprintable():
        text = repr(text[: _LONGEST + 1])[1:-1]
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def encode(key: Key) -> bytes:
    """Return bytes that are equal for equal keys, in every process, and differ for others.

    Raises:
        TypeError: When `key` is no string, bytes, integer, or tuple of those.

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
