"""The lanes of many keys, spread over the nodes of a cluster."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from velo import _core
from velo._ray.cluster import cluster_of
from velo.errors import NodeDied

if TYPE_CHECKING:
    from velo._function.spec import FunctionSpec
    from velo._ray.carrier import Carrier

__all__ = ["Lanes"]

# So often nodes that have come are looked for; seconds.
_LOOK = 1.0
# The first lane waits so many seconds for the actors of all nodes: keys are spread over those.
_PATIENCE = 10.0


class Lanes:
    """The lanes of the keys of one function: one for each worker of each node.

    Args:
        spec: The function.
        pending: How many events may be in flight.

    """

    def __init__(self, spec: FunctionSpec, pending: int) -> None:
        self._spec = spec
        self._pending = pending
        self._opened: list[tuple[str, _core.RemoteLane]] = []
        self._opening: list[str] = []

    async def open(self, keys: _core.Keys) -> None:
        """Give the keys one more lane, on the node with the fewest for its cores.

        Raises:
            PoolError: When there is no node.
            Exception: When no worker can run the function.

        """
        cluster = cluster_of(asyncio.get_running_loop())
        while True:
            ready = await cluster.ready(0.0 if self._opened else _PATIENCE)
            keys.set_most_lanes(sum(map(self._most_on, ready)))
            carrier = min(ready, key=lambda carrier: self._on(carrier) / self._most_on(carrier))
            self._opening.append(carrier.node)
            try:
                name = self._spec.next_name()
                lane = await carrier.open(self._spec, name, self._pending)
            except NodeDied:
                continue  # to another one
            finally:
                self._opening.remove(carrier.node)
            self._opened.append((carrier.node, lane))
            return keys.add_remote_lane(lane)

    async def watch(self, keys: _core.Keys) -> None:
        """Have lanes opened on nodes that come."""
        cluster = cluster_of(asyncio.get_running_loop())
        while True:
            await asyncio.sleep(_LOOK)
            with contextlib.suppress(Exception):  # a cluster that is about to end, for example
                keys.set_most_lanes(sum(map(self._most_on, await cluster.ready())))

    def _most_on(self, carrier: Carrier) -> int:
        return self._spec.config.workers or carrier.workers

    def _on(self, carrier: Carrier) -> int:
        self._opened = [known for known in self._opened if not known[1].is_over]
        here = sum(node == carrier.node for node, _ in self._opened)
        return here + self._opening.count(carrier.node)
