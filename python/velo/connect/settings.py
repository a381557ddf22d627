"""What connectors share: passwords, settings of a URL, records of bytes, and outages."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote

from velo._diagnostics import waits
from velo.connect.errors import ConnectError, Unreachable
from velo.connect.model import Bad, Record
from velo.connect.rows import NO_EVENT

__all__ = [
    "Outages",
    "add_line",
    "boolean",
    "cancelled",
    "decoded",
    "log",
    "login_of",
    "secret",
    "settings_of",
    "wait_of",
]

log = logging.getLogger("velo.connect")


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task, and wait for its end. The wait itself can be cancelled.

    Raises:
        Exception: What the task has failed with, unless that is a `ConnectError`.

    """
    task.cancel()
    await asyncio.wait([task])
    failure = None if task.cancelled() else task.exception()
    if failure is not None and not isinstance(failure, ConnectError):
        raise failure


def secret(password: str | None, password_file: str | None) -> str | None:
    """Give the password, out of its file where there is one.

    Raises:
        ValueError: When both are given.
        OSError: When the file cannot be read.

    """
    if password_file is None:
        return password
    if password is not None:
        raise ValueError("give `password` or `password_file`, not both")
    return Path(password_file).read_text().rstrip("\r\n")


def login_of(url: SplitResult) -> dict[str, str]:
    """Give `user` and `password` of a URL, as far as it has them."""
    login = {"user": url.username, "password": url.password}
    return {name: unquote(value) for name, value in login.items() if value is not None}


def settings_of(
    settings: Mapping[str, Any], kinds: Mapping[str, Callable[[str], Any]], scheme: str
) -> dict[str, Any]:
    """Convert the settings of a URL. What is no text is a value already.

    Raises:
        ValueError: When there is no such setting, or its value does not fit.

    """
    values: dict[str, Any] = {}
    for name, text in settings.items():
        if name not in kinds:
            raise ValueError(
                f"a {scheme} URL has no setting `{name}`; it has {', '.join(sorted(kinds))}"
            )
        try:
            values[name] = kinds[name](text) if isinstance(text, str) else text
        except ValueError as error:
            raise ValueError(f"setting `{name}` of a {scheme} URL: {error}") from None
    return values


def boolean(text: str) -> bool:
    """Read a setting that is on or off."""
    if text.lower() in {"1", "true", "yes", "on"}:
        return True
    if text.lower() in {"0", "false", "no", "off"}:
        return False
    raise ValueError(f"{text!r} is neither `true` nor `false`")


def decoded(decode: Callable[[bytes], Any], data: bytes, *origin: Any) -> Record | Bad:
    """Make a record of bytes, or say why they are no event.

    Args:
        decode: Makes an event of bytes; see `formats.decoder`.
        data: The bytes.
        origin: What follows the value in `Record`: key, topic, partition and so on.

    Raises:
        ConnectError: A schema registry is away, or refuses, which is not the record's fault.

    """
    try:
        return Record(decode(data), *origin)
    except Unreachable as error:
        # By another kind: a source would take it for a lost connection of its own.
        raise ConnectError(str(error)) from error
    except ConnectError:
        raise
    except Exception as error:
        return Bad(Record(data, *origin), error)


def add_line(
    records: list[Record | Bad],
    decode: Callable[[bytes], Any],
    line: bytes | ValueError,
    *origin: Any,
) -> None:
    """Add the record of a line; nothing for an empty one, or a header.

    Args:
        records: What it is added to.
        decode: Makes an event of a line; see `formats.line_decoder`.
        line: The line, or why it is none.
        origin: As for `decoded`.

    """
    if isinstance(line, ValueError):
        records.append(Bad(Record(b"", *origin), line))
    elif line:
        record = decoded(decode, line, *origin)
        if isinstance(record, Bad) or record.value is not NO_EVENT:
            records.append(record)


def wait_of(attempt: int, most: float = 10.0) -> float:
    """Give the seconds before an attempt to connect, doubled from 0.1, with a random part."""
    return min(most, 0.1 * 2.0 ** min(attempt, 10)) * random.uniform(0.5, 1.0)


class Outages:
    """The outages of one connection: each is logged once, at its beginning and its end.

    Attributes:
        count: How often the connection was made again.

    """

    def __init__(self, name: str, server: str) -> None:
        self.count = 0
        self._name = name
        self._server = server
        self._attempts = 0
        self._wait: waits.Wait | None = None

    def wait(self, error: object) -> float:
        """Note that the connection is lost or not made; the seconds before the next attempt."""
        if self._attempts == 0:
            log.warning("%s: lost the server %s: %s; reconnecting", self._name, self._server, error)
            self._wait = waits.begin(self._name, str(error), self._server)
        self._attempts += 1
        return wait_of(self._attempts - 1)

    def over(self) -> None:
        """Note that the connection stands."""
        if self._attempts:
            self.count += 1
            log.warning("%s: connected to %s again", self._name, self._server)
            waits.end(self._wait)
        self._attempts = 0
