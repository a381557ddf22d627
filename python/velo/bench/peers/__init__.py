"""The alternatives to velo, each in its fastest way of use.

A peer works in another process: it applies a plain function to each object and sends the
result back. Its *opener* is a context manager that starts that process and gives a `Connection`;
`send` and `recv` move one object, which may be a list of many events that was batched by hand.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

__all__ = ["PEERS", "Connection", "Peer", "Work", "choose", "connected"]

Work = Callable[[Any], Any]


class Connection(Protocol):
    """A connection to another process and back."""

    def send(self, item: Any) -> None:
        """Send an object; may wait."""

    def recv(self) -> Any:
        """Receive the next result."""


class Peer(NamedTuple):
    """One peer.

    Attributes:
        opener: Its opener, as `module:function`; None for a peer that is not a connection.
        module: The module that it needs; None if Python has it.

    """

    opener: str | None
    module: str | None = None

    def open(self, work: Work) -> contextlib.AbstractContextManager[Connection]:
        """Start its process."""
        assert self.opener is not None
        module, _, function = self.opener.partition(":")
        opener = getattr(importlib.import_module(f"velo.bench.peers.{module}"), function)
        connection: contextlib.AbstractContextManager[Connection] = opener(work)
        return connection


PEERS = {
    "multiprocessing.Pipe": Peer("stdlib:pipe"),
    "multiprocessing.Queue": Peer("stdlib:queue"),
    "ProcessPoolExecutor": Peer("stdlib:pool"),
    "faster-fifo": Peer("fifo:fifos", "faster_fifo"),
    "pyzmq": Peer("zeromq:push_pull", "zmq"),
    "iceoryx2": Peer("iceoryx:publish_subscribe", "iceoryx2"),
    "Ray": Peer("ray_actor:actor", "ray"),
    "Bytewax": Peer(None, "bytewax"),
    "velo-stream": Peer(None),
}


def choose(wanted: frozenset[str] | None) -> tuple[dict[str, Peer], dict[str, str]]:
    """Return the peers that can be measured, and the commands that install the missing ones."""
    there, missing = {}, {}
    for name, peer in PEERS.items():
        if wanted is not None and name not in wanted:
            continue
        if peer.module is not None and importlib.util.find_spec(peer.module) is None:
            missing[name] = "pip install 'velo-stream[bench]'"
            continue
        there[name] = peer
    return there, missing


def connected(wanted: frozenset[str] | None) -> list[str]:
    """Return the names of the connections that can be measured."""
    return [name for name, peer in choose(wanted)[0].items() if peer.opener is not None]
