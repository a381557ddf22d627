"""A worker process: an event loop that runs the streams which clients open on it."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import signal
import traceback
from collections.abc import Callable
from typing import Any

from velo import _core
from velo._diagnostics import slow_steps
from velo._function import exceptions
from velo._function.reference import load
from velo._function.signature import takes_state
from velo._worker import introspection, logs, output, report, sessions
from velo._worker.selector import LinkSelector

# How long cancelled streams may take to run their `finally` blocks when the worker is to end.
_GRACE = 1.5
# A worker that has outlived its supervisor looks for streams every so many seconds at most.
_SHORTEST_LOOK = 0.05


def main(seat: _core.WorkerSeat, output_lock: int) -> int:
    """Run until the supervisor says to stop; returns the exit code."""
    slow_steps.in_worker = True
    report.write_to(seat.report, seat.stacks_signal)
    seat.start_watchdog()
    output.unmix(output_lock)
    worker = _Worker(seat)
    exceptions.note = introspection.note_failure
    logging.root.addHandler(logs.ForwardingHandler(worker.links))
    with asyncio.Runner(loop_factory=worker.make_loop) as runner:
        return runner.run(worker.serve())


class Client:
    """One client's link, its functions and its running streams."""

    def __init__(self, number: int, link: _core.WorkerLink) -> None:
        self.number = number
        self.link = link
        self.functions: dict[int, bytes | tuple[Callable[..., Any], bool]] = {}
        self.context = contextvars.copy_context()
        self.context.run(logs.link_of_stream.set, link)
        self.tasks: dict[int, asyncio.Task[None]] = {}
        # Under which number the function of each slot's stream is known, at which moment it was
        # opened, the last one last, and under which key it is kept, for those who look.
        self.opened: dict[int, tuple[int, int, str | None]] = {}


class _Worker:
    def __init__(self, seat: _core.WorkerSeat) -> None:
        self._seat = seat
        self._selector = LinkSelector()
        self._clients: dict[int, Client] = {}
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._leaving: set[asyncio.Task[None]] = set()
        self._looking: asyncio.TimerHandle | None = None
        self._keys = sessions.Keys(seat, self._function, self.links)
        self._handlers: dict[str, Callable[..., None]] = {
            "define": self._do_define,
            "levels": self._do_levels,
            "started": self._do_started,
            "keep": self._do_keep,
            "snapshot": self._do_snapshot,
            "cancel": self._do_cancel,
            "detach_kept": self._do_detach_kept,
        }

    def links(self) -> list[_core.WorkerLink]:
        """Return the links to all clients."""
        return [client.link for client in self._clients.values()]

    def make_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(self._selector)

    async def serve(self) -> int:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        self._loop.add_reader(self._seat.fileno(), self._on_seat)
        self._on_seat()
        await self._stop.wait()
        for client in self._clients.values():
            client.link.close_entry()
        tasks = {task for c in self._clients.values() for task in c.tasks.values()}
        await self._cancel([*tasks.union(self._keys.tasks())])
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=_GRACE)
        return 0

    # The supervisor.

    def _on_seat(self) -> None:
        for what, *rest in self._seat.poll():
            getattr(self, f"_on_{what}")(*rest)

    def _on_attach(self, number: int, link: _core.WorkerLink) -> None:
        self._clients[number] = Client(number, link)
        self._watch_links()

    def _on_detach(self, number: int) -> None:
        if number not in self._clients:
            return
        self._selector.process()  # what it has said before it went counts
        client = self._clients.pop(number)
        self._keys.leave(client)
        self._watch_links()
        task = self._loop.create_task(self._leave(client))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _leave(self, client: Client) -> None:
        kept = set(self._keys.tasks())  # which go on
        await self._cancel([task for task in client.tasks.values() if task not in kept])
        self._seat.detached(client.number)

    # Somebody looks: at what was opened before they asked, whichever way the news of that takes.

    def _on_streams(self, ask: int, since: int, parked: int) -> None:
        self._selector.process()
        half = self._seat.MOST_TOLD // 2 - 64
        opened = introspection.opened_since(self._clients.values(), since, half)
        told = self._keys.parked_since(parked, half)
        self._seat.tell(ask, f'{{"open": {opened}, "parked": {told}}}')

    def _on_inspect(self, ask: int, which: str) -> None:
        self._selector.process()
        found = [s for c in self._clients.values() for s in introspection.find(c, which)]
        found += self._keys.find_parked(which)
        said = [*map(introspection.inspect, found), *introspection.failures(which)]
        self._seat.tell(ask, introspection.packed(said, self._seat.MOST_TOLD))

    def _on_end(self, ask: int, which: str, why: str) -> None:
        self._selector.process()
        ended = []
        for client in self._clients.values():
            for stream in introspection.find(client, which):
                if stream.slot is not None and client.link.end(stream.slot, why):
                    stream.task.cancel()
                    ended.append(introspection.described(stream))
        ended += map(introspection.described, self._keys.end_parked(which))
        self._seat.tell(ask, introspection.packed(ended, self._seat.MOST_TOLD))

    # Keys.

    def _on_release_key(self, key: bytes, grant: int) -> None:
        self._keys.release(key, grant)

    def _on_retire(self) -> None:
        self._keys.retire()

    def _do_keep(self, client: Client, *opening: Any) -> None:
        self._keys.open(sessions.Opening(client, *opening))

    def _do_detach_kept(self, client: Client, slot: int, stream: int) -> None:
        self._keys.detach(client, (slot, stream))

    def _on_drain(self) -> None:
        self._stop.set()

    def _on_lost(self) -> None:
        self._loop.remove_reader(self._seat.fileno())
        self._stop.set()

    # A standalone supervisor has died: its clients are served on until they are gone, or idle.

    def _on_orphaned(self) -> None:
        self._loop.remove_reader(self._seat.fileno())
        self._keys.retire()  # nobody could find them any more
        for number in list(self._clients):
            if (process := self._seat.client_fileno(number)) is not None:
                self._loop.add_reader(process, self._on_client_gone, number, process)
        self._look_for_streams(0.0)

    def _on_client_gone(self, number: int, process: int) -> None:
        self._loop.remove_reader(process)
        self._on_detach(number)
        self._look_for_streams(0.0)

    def _look_for_streams(self, idle: float) -> None:
        """End when there is no client, or when none has had a stream for a while."""
        links, patience = self.links(), self._seat.outlive
        if not links or (idle >= patience and all(link.try_retire() for link in links)):
            self._stop.set()
            return
        if self._looking is not None:
            self._looking.cancel()
        pause = max(patience / 4, _SHORTEST_LOOK)
        idle = 0.0 if any(link.streams for link in links) else idle + pause
        self._looking = self._loop.call_later(pause, self._look_for_streams, idle)

    def _watch_links(self) -> None:
        watched = [
            (
                *(client.link, client.context, client.functions),
                (functools.partial(self._function, client), functools.partial(self._do, client)),
            )
            for client in self._clients.values()
        ]
        self._selector.watch.watch(self._loop, watched)

    async def _cancel(self, tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_GRACE)

    # The clients.

    def _do(self, client: Client, what: str, *rest: Any) -> None:
        self._handlers[what](client, *rest)

    def _do_define(self, client: Client, function: int, definition: bytes) -> None:
        client.functions[function] = definition

    def _do_started(
        self, client: Client, slot: int, function: int, task: asyncio.Task[None]
    ) -> None:
        client.tasks[slot] = task
        client.opened[slot] = (function, introspection.moment(), None)
        task.add_done_callback(functools.partial(_forget, client, slot))

    def _function(self, client: Client, number: int) -> tuple[Callable[..., Any], bool]:
        """Return a function, and whether it is called with a state."""
        known = client.functions[number]
        if isinstance(known, bytes):
            function = load(known)
            known = client.functions[number] = (function, takes_state(function))
        return known

    def _do_levels(self, client: Client, packed: bytes) -> None:
        logs.apply_levels(packed)

    def _do_snapshot(self, client: Client, slot: int, stream: int) -> None:
        client.link.snapshot(slot, stream)

    def _do_cancel(self, client: Client, slot: int) -> None:
        client.link.cancel(slot)
        if (task := client.tasks.get(slot)) is not None:
            task.cancel()


def _forget(client: Client, slot: int, done: asyncio.Task[None]) -> None:
    if client.tasks.get(slot) is done:
        del client.tasks[slot], client.opened[slot]
    if not done.cancelled() and (error := done.exception()) is not None:
        traceback.print_exception(error)
