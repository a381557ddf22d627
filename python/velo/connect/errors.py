"""Errors of connectors: what a reader can do about each."""

from __future__ import annotations

from velo.errors import VeloError

__all__ = [
    "AuthenticationFailed",
    "ConnectError",
    "Disconnected",
    "NoSuchTopic",
    "PermissionDenied",
    "PositionLost",
    "Superseded",
    "Unreachable",
    "missing",
]


class ConnectError(VeloError):
    """A connector cannot do its work. The message names the server, never a password."""


class Unreachable(ConnectError, ConnectionError):
    """There is no server at the address, or it speaks no TLS, or its certificate is refused."""


class Disconnected(ConnectError, ConnectionError):
    """The other side has closed the connection, before it had everything or sent everything."""


class AuthenticationFailed(ConnectError, PermissionError):
    """The server refuses the user or the password."""


class PermissionDenied(ConnectError, PermissionError):
    """The user may not read from, write to or commit for this topic or group."""


class NoSuchTopic(ConnectError, LookupError):
    """The topic, stream, queue, table or path does not exist."""


class PositionLost(ConnectError):
    """A committed position is no longer there: the source has deleted what follows it.

    Going on would skip events in silence. Choose where to begin with `start=`. Of a sink: it does
    not have the results that a checkpoint tells of.
    """


class Superseded(ConnectError):
    """Another program has taken this one's place: it goes on with the same checkpoint."""


def missing(what: str, extra: str) -> ImportError:
    """Make the error of a package that is not installed."""
    return ImportError(f"{what} needs a package: pip install 'velo-stream[{extra}]'")
