"""What connectors of the web share: addresses without secrets, logins, frames, and waits."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, TypeVar
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode

from velo.connect.errors import Disconnected, Unreachable
from velo.connect.formats import Encode, encoder
from velo.connect.model import Bad, Record
from velo.connect.settings import Outages, secret, settings_of
from velo.connect.urls import split

__all__ = [
    "Interrupted",
    "Interrupts",
    "address_of",
    "framed",
    "login_headers",
    "next_of",
    "parts_of",
    "read_on",
]

T = TypeVar("T")


class Interrupted(Exception):
    """The wait has ended because the source is to read no more."""


class Interrupts:
    """The waits of a source, which `stop` ends."""

    def __init__(self) -> None:
        self.stopped = False
        self._waits: set[asyncio.Task[Any]] = set()

    def stop(self) -> None:
        """End all waits, and those to come."""
        self.stopped = True
        for task in self._waits:
            task.cancel()

    async def wait(self, awaited: Coroutine[Any, Any, T]) -> T:
        """Wait for a result.

        Raises:
            Interrupted: When `stop` is called first.

        """
        if self.stopped:
            awaited.close()
            raise Interrupted
        task = asyncio.ensure_future(awaited)
        self._waits.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            own = asyncio.current_task()
            if self.stopped and not (own is not None and own.cancelling()):
                raise Interrupted from None
            raise
        finally:
            self._waits.discard(task)


async def next_of(items: AsyncIterator[T]) -> T | None:
    """Give the next item, or None at the end: `StopAsyncIteration` cannot leave a task."""
    return await anext(items, None)


async def read_on(
    response: Callable[[], AsyncGenerator[list[Record | Bad], None]],
    interrupts: Interrupts,
    outages: Outages,
    *,
    reconnect: bool,
    pause: Callable[[], float] | None = None,
) -> AsyncGenerator[list[Record | Bad], None]:
    """Give the records of a response, and of further ones where the server was lost.

    Args:
        response: Asks for a response, and gives its records in batches; first an empty one, once
            the server has answered.
        interrupts: The waits of the source. An interrupted one ends the records.
        outages: The outages of the server.
        reconnect: Whether to ask again where the server was lost.
        pause: After how many seconds to ask again behind the end of a response. None: that is the
            end.

    Raises:
        Unreachable: When there is no first answer.
        Disconnected: When the server is lost, and nothing is asked again.

    """
    answered = False
    while True:
        try:
            async with contextlib.aclosing(response()) as batches:
                async for records in batches:
                    answered = True
                    if records:
                        yield records
            if pause is None:
                return
            await interrupts.wait(asyncio.sleep(pause()))
        except Interrupted:
            return
        except Unreachable as error:
            if not answered:
                raise
            if not reconnect:
                raise Disconnected(str(error)) from error
            wait = outages.wait(error)
            with contextlib.suppress(Interrupted):
                await interrupts.wait(asyncio.sleep(wait))


def address_of(url: str, schemes: tuple[str, ...]) -> tuple[str, str, str | None, str | None]:
    """Take a URL apart: the URL without its login, the same without a query, user and password.

    The query may hold a secret of the server, and is never shown.

    Raises:
        ValueError: When it is no URL of one of these schemes.

    """
    parts = split(url)
    if parts.scheme not in schemes or not parts.hostname:
        # The URL may hold a password, so the message does not repeat it.
        raise ValueError(
            f"`url` is a URL that begins with {' or '.join(s + '://' for s in schemes)}"
        )
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="")
    user = None if parts.username is None else unquote(parts.username)
    password = None if parts.password is None else unquote(parts.password)
    return bare.geturl(), bare._replace(query="").geturl(), user, password


def login_headers(
    headers: Mapping[str, str] | None,
    user: str | None,
    password: str | None,
    password_file: str | None,
    token: str | None,
    token_file: str | None,
) -> dict[str, str]:
    """Give the headers of a request, with the one that logs in.

    Raises:
        ValueError: When there are two logins, or a user without a password.

    """
    found = dict(headers or {})
    password = secret(password, password_file)
    token = secret(token, token_file)
    if token is not None and user is not None:
        raise ValueError("give `user` or `token`, not both")
    if user is not None:
        if password is None:
            raise ValueError(f"user {user!r} has no password: give `password_file`")
        login = base64.b64encode(f"{user}:{password}".encode()).decode()
        found["Authorization"] = f"Basic {login}"
    elif token is not None:
        found["Authorization"] = f"Bearer {token}"
    return found


def framed(encode: Encode, binary: bool | None) -> Callable[[Any], str | bytes]:
    """Give the function that makes a WebSocket message of a result: `str` is sent as text.

    Raises:
        ValueError: When there is no such format.

    """
    encoded = encoder(encode)
    if binary is None:
        binary = encode not in ("json", "text")
    return encoded if binary else lambda value: encoded(value).decode()


def parts_of(
    url: SplitResult, settings: Mapping[str, Any], kinds: Mapping[str, Callable[[str], Any]]
) -> tuple[str, dict[str, Any]]:
    """Tell the settings in the query of a URL from the parameters of the server.

    Returns:
        The URL with the parameters of the server, and the settings.

    Raises:
        ValueError: When a setting beside the URL does not exist, or a value does not fit.

    """
    pairs = parse_qsl(url.query, keep_blank_values=True)
    theirs = [(name, value) for name, value in pairs if name not in kinds]
    names = {name for name, _ in theirs}
    own = {name: value for name, value in settings.items() if name not in names}
    return url._replace(query=urlencode(theirs)).geturl(), settings_of(own, kinds, url.scheme)
