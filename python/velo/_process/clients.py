"""The clients of this process, one for each event loop and supervisor."""

from __future__ import annotations

import asyncio
import atexit
import os
import weakref

from velo import _core
from velo._process import supervisors
from velo._process.client import Client

__all__ = ["client_of", "close_clients", "shutdown", "streams_at", "workers_of"]


class Clients:
    """The clients of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        number = id(loop)
        self.loop = weakref.ref(loop, lambda _: _clients.pop(number, None))
        self.by_address: dict[str | None, Client] = {}
        # Reading `VELO_SUPERVISOR` takes longer than the rest of `client_of`, so it happens once.
        self.by_setting: dict[str, Client] = {}

    def find(self, loop: asyncio.AbstractEventLoop, supervisor: str) -> Client:
        """Return the client for a setting; create it if there is none yet."""
        address = supervisors.address_of(supervisor)
        client = self.by_address.get(address)
        if client is None:
            client = self.by_address[address] = Client(loop, address, streams_at)
        self.by_setting[supervisor] = client
        return client


# By the id of the loop: a `WeakKeyDictionary` would take a large part of the time to open a stream.
_clients: dict[int, Clients] = {}


def close_clients(loop: asyncio.AbstractEventLoop) -> None:
    """Give back the links of an event loop that is about to close."""
    if (clients := _clients.pop(id(loop), None)) is not None:
        for client in clients.by_address.values():
            client.close()


def client_of(loop: asyncio.AbstractEventLoop, supervisor: str = "auto") -> Client:
    """Return the client of an event loop for a supervisor, as `StreamConfig.supervisor` names it.

    The first one for `"embedded"` starts the supervisor of this process.
    """
    clients = _clients.get(id(loop))
    if clients is None or clients.loop() is not loop:
        for number, other in list(_clients.items()):
            if (known := other.loop()) is None or known.is_closed():
                _clients.pop(number, None)  # its loop may have gone meanwhile
        clients = _clients[id(loop)] = Clients(loop)
    return clients.by_setting.get(supervisor) or clients.find(loop, supervisor)


def workers_of(loop: asyncio.AbstractEventLoop) -> int:
    """Return how many workers an event loop has links to."""
    clients = _clients.get(id(loop))
    return sum(len(client.links) for client in clients.by_address.values()) if clients else 0


def streams_at(address: str | None) -> int:
    """Return how many streams this process has open at a supervisor, over all event loops."""
    clients = [known.by_address.get(address) for known in list(_clients.values())]
    links = [link for client in clients if client for link in list(client.links.values())]
    return sum(link.end.streams for link in links)


def shutdown() -> None:
    """End the workers before the interpreter exits, when no task can receive any more."""
    _clients.clear()
    _core.shutdown(supervisors.EXIT_BOUND)


os.register_at_fork(after_in_child=_clients.clear)
atexit.register(shutdown)
