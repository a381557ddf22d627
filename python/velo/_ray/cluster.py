"""The nodes of a cluster, and an actor on each."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import math
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from velo._ray.carrier import Carrier
from velo._ray.failures import check_version, no_node, not_started
from velo._ray.library import load

__all__ = ["Cluster", "NodeInfo", "alive", "cluster_of", "connect", "pinned"]

# A node whose actor has gone is not tried again for so many seconds, as long as there are others:
# Ray takes a while to notice that a node has gone.
_AVOID = 10.0
# An actor is to answer within so many seconds: its process has to start.
_START = 60.0
# What Ray is told of may be so many seconds old.
_STALE = 1.0


@dataclass(frozen=True)
class NodeInfo:
    """A node that lives.

    Attributes:
        id: Its id.
        place: The node, for messages.
        cores: How many cores Ray counts there.

    """

    id: str
    place: str
    cores: int


class Cluster:
    """The nodes, as one event loop uses them."""

    def __init__(self) -> None:
        self._carriers: dict[str, Carrier] = {}
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._failed: dict[str, float] = {}
        self._error: Exception | None = None
        self._looking = asyncio.Lock()
        self._looked = -math.inf

    async def ready(self, patience: float = 0.0) -> list[Carrier]:
        """Look for nodes, and return what carries frames to those whose actors have answered.

        Without any, it waits for one.

        Args:
            patience: How many seconds to wait for the other nodes that live.

        Raises:
            PoolError: When there is no node, or none has an actor that answers.

        """
        until = time.monotonic() + patience
        gives_up = time.monotonic() + _START
        await self._look()
        while self._starting:
            left = until - time.monotonic()
            if self._carriers and left <= 0:
                break
            waits = asyncio.FIRST_COMPLETED
            timeout = left if self._carriers else None
            await asyncio.wait(self._starting.values(), timeout=timeout, return_when=waits)
            if not self._carriers and not self._starting and time.monotonic() < gives_up:
                await self._look()
        if not self._carriers:
            raise self._error or no_node()
        return list(self._carriers.values())

    async def _look(self) -> None:
        """Connect to Ray, and start actors on nodes that have none."""
        async with self._looking:
            if time.monotonic() - self._looked > _STALE:
                await asyncio.to_thread(connect)
                nodes = await asyncio.to_thread(alive)
                self._looked = time.monotonic()
                self._start(nodes)

    def _start(self, nodes: list[NodeInfo]) -> None:
        loop, now = asyncio.get_running_loop(), time.monotonic()
        known = self._carriers.keys() | self._starting.keys()
        lacking = [node for node in nodes if node.id not in known]
        tried = [n for n in lacking if now - self._failed.get(n.id, -math.inf) >= _AVOID]
        for node in tried if tried or known else lacking:
            task = self._starting[node.id] = loop.create_task(self._begin(node))
            task.add_done_callback(functools.partial(self._started, node.id))

    def _started(self, node: str, task: asyncio.Task[None]) -> None:
        del self._starting[node]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed[node] = time.monotonic()
            _actors.pop(node, None)
            self._error = error if isinstance(error, Exception) else None
            self._looked = -math.inf

    async def _begin(self, node: NodeInfo) -> None:
        """Start the actor of a node.

        Raises:
            PoolError: When it does not answer, or has another version of velo.

        """
        ray = load()
        try:
            async with asyncio.timeout(_START):
                version, pid, cores = await _actor_on(node).hello.remote()
        except (ray.exceptions.RayError, TimeoutError) as error:
            raise not_started(node.place, "streams", error, _START) from None
        check_version(version, node.place)
        about = (pid, min(cores, node.cores) or 1)
        actor = _actors[node.id]
        self._carriers[node.id] = Carrier(actor, node.id, node.place, about, self._lost)

    def _lost(self, carrier: Carrier) -> None:
        if self._carriers.get(carrier.node) is carrier:
            del self._carriers[carrier.node]
            self._failed[carrier.node] = time.monotonic()
            _actors.pop(carrier.node, None)
            self._looked = -math.inf


_clusters: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Cluster] = (
    weakref.WeakKeyDictionary()
)
# The actors of this process, by node; and the session of Ray that they are of.
_actors: dict[str, Any] = {}
_session: list[str] = []
_connecting = threading.Lock()


def cluster_of(loop: asyncio.AbstractEventLoop) -> Cluster:
    """Return the cluster as this event loop uses it."""
    if (cluster := _clusters.get(loop)) is None:
        for reference in _clusters.keyrefs():
            if (known := reference()) is not None and known.is_closed():
                _clusters.pop(known, None)  # what is known of it has references to it
        cluster = _clusters[loop] = Cluster()
    return cluster


def connect(address: str | None = None) -> None:
    """Connect to Ray as `ray.init` does by itself, unless the program has.

    That is: to `address`, else to `RAY_ADDRESS`, else to a cluster that runs on this machine, else
    to a new one of this process.
    """
    ray = load()
    with _connecting:
        if not ray.is_initialized():
            with _keeping_sigterm():
                ray.init(address=address)
    job = ray.get_runtime_context().get_job_id()
    if _session != [job]:  # it was connected to another cluster before
        _session[:] = [job]
        _actors.clear()


@contextlib.contextmanager
def _keeping_sigterm() -> Iterator[None]:
    """Leave SIGTERM as it is: Ray's handler aborts a program that takes longer than 3 s to drain.

    It takes a SIGTERM for a crash (`absl::InstallFailureSignalHandler`): it writes a stack, has
    SIGALRM abort the process 3 s later, and then calls the handler before it.
    """
    if sys.platform == "win32":  # a process is ended there, and drains nothing
        yield
        return
    libc = ctypes.CDLL(None)
    kept = ctypes.create_string_buffer(1024)  # a `struct sigaction`, which is smaller everywhere
    libc.sigaction(signal.SIGTERM, None, kept)
    try:
        yield
    finally:
        libc.sigaction(signal.SIGTERM, kept, None)


def alive() -> list[NodeInfo]:
    """Return the nodes that live, as far as Ray knows."""
    nodes = []
    for node in load().nodes():
        if node["Alive"]:
            id, address = node["NodeID"], node["NodeManagerAddress"]
            cores = int(node["Resources"].get("CPU", 0))
            nodes.append(NodeInfo(id, f"node {id[:12]} ({address})", cores))
    return nodes


def _actor_on(node: NodeInfo) -> Any:
    if (actor := _actors.get(node.id)) is None:
        from velo._ray.node import Node

        actor = _actors[node.id] = pinned(Node, node)
    return actor


def pinned(kind: type, node: NodeInfo, *arguments: Any, **options: Any) -> Any:
    """Return an actor of a class on a node, started now.

    It takes no part in Ray's count of cores, so that it starts wherever a program needs it.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node.id, soft=False)
    remote = load().remote(kind).options(num_cpus=0, scheduling_strategy=there, **options)
    return remote.remote(*arguments)
