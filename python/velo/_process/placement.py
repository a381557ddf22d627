"""Which worker gets a stream: an idle one, else a new one, else the one with the fewest streams."""

from __future__ import annotations

import asyncio

from velo import _core
from velo._process import supervisors
from velo._process.connection import Connection
from velo._process.links import Link
from velo.errors import PoolError

__all__ = ["Placement"]


class Placement:
    """Chooses the workers of one client's streams, and asks the supervisor for new workers.

    Args:
        connection: The connection to the supervisor.
        links: The client's links by number, which the client changes.

    """

    def __init__(self, connection: Connection, links: dict[int, Link]) -> None:
        self._connection = connection
        self._links = links
        self._requests: dict[int, asyncio.Future[Link | None]] = {}
        self._changed: asyncio.Future[None] | None = None
        # The number of streams that wait for a choice.
        self._waiting = 0

    async def choose(self, workers: int, avoid: Link | None = None) -> Link:
        """Choose the worker of a stream.

        Args:
            workers: The most workers for streams of this function.
            avoid: The link to choose only if there is no other.

        Raises:
            PoolError: When there is no worker, and none could be started.

        """
        self._waiting += 1
        try:
            return await self._choose(workers, avoid)
        finally:
            self._waiting -= 1

    async def _choose(self, workers: int, avoid: Link | None) -> Link:
        links = self._links.values()  # a live view
        while True:
            if self._connection.most_workers:
                workers = min(workers, self._connection.most_workers)
            if (free := _core.choose_link(links, workers, avoid)) is not None:
                return free
            had_links = bool(links)
            if _core.count_usable(links, workers, avoid) + len(self._requests) < workers:
                try:
                    link = await self._acquire(workers)
                except supervisors.NoSupervisor:
                    if (least := _core.least_loaded_link(links, workers)) is None:
                        raise
                    return least
                if link is not None:
                    return link
            if self._requests:
                below = _core.link_below_share(links, workers, avoid, self._waiting)
                if below is not None:
                    return below  # the new worker is for other streams
            least = _core.least_loaded_link(links, workers, avoid)
            least = least or _core.least_loaded_link(links, workers)
            if self._requests or (least is None and links):
                await self._change()  # a worker is about to start, or to end
            elif least is not None:
                return least
            elif not links and not had_links:
                raise PoolError("all workers are taken, and no more may be started")

    def choose_free(self, workers: int) -> Link | None:
        """Choose an idle worker without waiting. None: use `choose`."""
        if self._connection.most_workers:
            workers = min(workers, self._connection.most_workers)
        return _core.choose_link(self._links.values(), workers)

    async def _change(self) -> None:
        """Wait for reports of the supervisor."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._changed)

    def on_heard(self) -> None:
        """Let streams that wait for a worker choose again."""
        changed, self._changed = self._changed, None
        if changed is not None and not changed.done():
            changed.set_result(None)

    async def _acquire(self, workers: int) -> Link | None:
        """Ask for a link to one more worker. None: there are as many as allowed.

        If a standalone supervisor ends meanwhile, it connects again.
        """
        while True:
            supervisor = self._connection.connect()
            await self._connection.greet()
            if supervisor is not self._connection.supervisor:
                continue
            try:
                number = supervisor.acquire(workers)
            except PoolError:
                self._connection.poll()  # it has ended, which was not noticed yet
                if supervisor is self._connection.supervisor:
                    raise
                continue
            request = self._requests[number] = asyncio.get_running_loop().create_future()
            link: Link | None = await asyncio.shield(request)
            if link is not None or supervisor is self._connection.supervisor:
                return link

    def on_answer(self, request: int, answer: Link | PoolError | None) -> None:
        """Answer a request for a link. None: there are as many workers as allowed."""
        future = self._requests.pop(request, None)
        if future is None or future.done():
            return
        if isinstance(answer, PoolError):
            future.set_exception(answer)
            future.exception()  # the task that waits for it may have been cancelled
        else:
            future.set_result(answer)

    def on_lost(self, error: PoolError | None) -> None:
        """Answer all requests after the loss of the supervisor. None: they ask the next one."""
        for request in list(self._requests):
            self.on_answer(request, error)
