"""Opening the streams of one function, in either mode."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType

from velo import _core
from velo._environment import check as check_environment
from velo._function.spec import FunctionSpec
from velo._types import TYPE_CHECKING, Any, Generic, TypeVar
from velo.errors import VeloError

if TYPE_CHECKING:
    from velo._api.session import Key
    from velo._api.stream import Stream

__all__ = ["Opening", "StreamOpener"]

In = TypeVar("In")
Out = TypeVar("Out")


class StreamOpener(Generic[In, Out]):
    """Opens streams of one function.

    Args:
        spec: The function.

    """

    def __init__(self, spec: FunctionSpec) -> None:
        self.spec = spec

    def open(self, key: Key | None = None) -> Coroutine[Any, Any, Stream[In, Out]]:
        """Open a stream, or attach one to the session under `key`: see `StreamFn.open`."""
        if key is not None:
            attaching: Coroutine[Any, Any, Stream[In, Out]] = self._sessions.attach(key)
            return attaching
        # Without a limit there is one coroutine fewer to create.
        return self.open_with(_nothing) if self.spec.limiter is None else self._open_with_permit()

    async def _open_with_permit(self) -> Stream[In, Out]:
        return await self.open_with(await self.spec.acquire())

    async def open_with(self, release: Callable[[], None]) -> Stream[In, Out]:
        """Open a stream under a permit that was acquired, which `release` gives back."""
        try:
            get_running_loop, stream_type, client_of = self._late
            loop = get_running_loop()
            spec = self.spec
            name, config = spec.next_name(), spec.config
            if config.mode == "ray":
                raise VeloError(
                    f'`{spec.name}` has `mode="ray"`, in which a stream needs a key by which a '
                    "node is chosen: `open(key=...)`; or use `run`, `keyed` or `keys`"
                )
            if config.mode == "inline":
                opened = _core.open_inline(
                    *(loop, spec.runs, spec.has_state, (config.buffer, config.full)),
                    *(name, config.event_timeout),
                )
            else:
                client = client_of(loop, config.supervisor)
                reference = spec.reference
                now = client.open_now(loop, reference, config, name)
                opened = now or await client.open(reference, config, name)
            spec.stats.enter(opened)
            stream: Stream[In, Out] = stream_type(opened, name, config, loop, release)
            return stream
        except BaseException:
            release()
            raise

    @functools.cached_property
    def _late(self) -> tuple[Any, Any, Any]:
        """What opening a stream needs of asyncio, whose import takes longer than all of velo."""
        find: Any = None
        check_environment()
        if self.spec.config.mode == "process":
            from velo._process import supervisors

            supervisors.expect(self.spec.config.supervisor)
            from velo._process.clients import client_of as find
        import asyncio

        from velo._api.stream import Stream

        return asyncio.get_running_loop, Stream, find

    @functools.cached_property
    def _sessions(self) -> Any:
        if self.spec.config.mode == "ray":
            from velo._api.remote_session import RemoteSessions

            return RemoteSessions(self.spec)
        from velo._api.session import Sessions

        return Sessions(self.spec)


class Opening(Generic[In, Out]):
    """A stream that is to be opened: `await` it, or enter it with `async with`."""

    __slots__ = ("_key", "_opener", "_stream", "_used")

    def __init__(self, opener: StreamOpener[In, Out], key: Key | None = None) -> None:
        self._opener = opener
        self._key = key
        self._stream: Stream[In, Out] | None = None
        self._used = False

    def __await__(self) -> Generator[Any, None, Stream[In, Out]]:
        self._used = True
        return self._opener.open(self._key).__await__()

    async def __aenter__(self) -> Stream[In, Out]:
        self._used = True
        self._stream = await self._opener.open(self._key)
        return self._stream

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._stream is not None
        await self._stream.__aexit__(kind, error, traceback)

    if not TYPE_CHECKING:  # for type checkers it has no other attributes

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):
                raise AttributeError(name=name, obj=self)
            raise AttributeError(
                f"`open()` of `{self._opener.spec.name}` is not a stream yet and has no `{name}`: "
                "write `async with fn.open() as stream`",
                name=name,
                obj=self,
            )

    def __del__(self) -> None:
        if self._used:
            return
        try:
            import warnings
        except ImportError:  # the interpreter ends
            return
        name = self._opener.spec.name
        warnings.warn(
            f"`open()` of `{name}` was never awaited, so no stream was opened: write "
            "`async with fn.open() as stream`",
            RuntimeWarning,
            stacklevel=2,
        )


def _nothing() -> None:
    pass
