"""A worker process: an event loop that runs the streams of its clients."""

from __future__ import annotations

import asyncio
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
from velo._worker import introspection, last_errors, logs, output, report
from velo._worker.client import Client, OpenStream
from velo._worker.selector import LinkSelector
from velo._worker.session import Attachment
from velo._worker.sessions import Sessions

# How many seconds cancelled streams have for their `finally` blocks when the worker ends.
_GRACE = 1.5
# The shortest time, in seconds, between two searches for streams after the supervisor has died.
_SHORTEST_LOOK = 0.05


def main(control: _core.WorkerSeat, output_lock: int) -> int:
    """Run until the supervisor stops this worker, and return the exit code."""
    slow_steps.in_worker = True
    report.write_to(control.report, control.stacks_signal)
    control.start_watchdog()
    output.unmix(output_lock)
    worker = _Worker(control)
    exceptions.note = last_errors.note_failure
    logging.root.addHandler(logs.ForwardingHandler(worker.links))
    with asyncio.Runner(loop_factory=worker.make_loop) as runner:
        return runner.run(worker.serve())


class _Worker:
    def __init__(self, control: _core.WorkerSeat) -> None:
        self._control = control
        self._selector = LinkSelector()
        self._clients: dict[int, Client] = {}
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._leaving: set[asyncio.Task[None]] = set()
        self._looking: asyncio.TimerHandle | None = None
        self._sessions = Sessions(control, self._function, self.links)

    def links(self) -> list[_core.WorkerLink]:
        """Return the links to all clients."""
        return [client.link for client in self._clients.values()]

    def make_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(self._selector)

    async def serve(self) -> int:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        self._loop.add_reader(self._control.fileno(), self._on_control)
        self._on_control()
        await self._stop.wait()
        for client in self._clients.values():
            client.link.close_entry()
        tasks = {task for c in self._clients.values() for task in c.tasks.values()}
        await self._cancel([*tasks.union(self._sessions.tasks())])
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=_GRACE)
        return 0

    # The supervisor.

    def _on_control(self) -> None:
        for kind, *fields in self._control.poll():
            match kind:
                case "attach":
                    self._on_attach(*fields)
                case "detach":
                    self._on_detach(*fields)
                case "streams":
                    self._on_streams(*fields)
                case "inspect":
                    self._on_inspect(*fields)
                case "end":
                    self._on_end(*fields)
                case "release_key":
                    self._sessions.release(*fields)
                case "retire":
                    self._sessions.retire()
                case "drain":
                    self._stop.set()
                case "lost":
                    self._on_lost()
                case "orphaned":
                    self._on_orphaned()
                case _:
                    raise AssertionError(f"unknown order `{kind}`")

    def _on_attach(self, number: int, link: _core.WorkerLink) -> None:
        self._clients[number] = Client(number, link)
        self._watch_links()

    def _on_detach(self, number: int) -> None:
        if number not in self._clients:
            return
        self._selector.process()  # its last messages count
        client = self._clients.pop(number)
        self._sessions.leave(client)
        self._watch_links()
        task = self._loop.create_task(self._leave(client))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _leave(self, client: Client) -> None:
        sessions = set(self._sessions.tasks())  # they go on
        await self._cancel([task for task in client.tasks.values() if task not in sessions])
        self._control.detached(client.number)

    # Questions of `velo status`, `velo top` and `velo inspect`: about the streams that were opened
    # before, whichever way the news of that takes.

    def _on_streams(self, ask: int, since: int, detached: int) -> None:
        self._selector.process()
        half = self._control.MOST_TOLD // 2 - 64
        opened = introspection.opened_since(self._clients.values(), since, half)
        sessions = self._sessions.detached_since(detached, half)
        self._control.tell(ask, f'{{"open": {opened}, "parked": {sessions}}}')

    def _on_inspect(self, ask: int, which: str) -> None:
        self._selector.process()
        found = [s for c in self._clients.values() for s in introspection.find(c, which)]
        found += self._sessions.find_detached(which)
        answers = [*map(introspection.inspect, found), *last_errors.failures(which)]
        self._control.tell(ask, introspection.pack(answers, self._control.MOST_TOLD))

    def _on_end(self, ask: int, which: str, why: str) -> None:
        self._selector.process()
        ended = []
        for client in self._clients.values():
            for stream in introspection.find(client, which):
                if stream.slot is not None and client.link.end(stream.slot, why):
                    stream.task.cancel()
                    ended.append(introspection.describe(stream))
        ended += map(introspection.describe, self._sessions.end_detached(which))
        self._control.tell(ask, introspection.pack(ended, self._control.MOST_TOLD))

    def _on_lost(self) -> None:
        self._loop.remove_reader(self._control.fileno())
        self._stop.set()

    # After the death of a standalone supervisor, the worker serves its clients until they leave or
    # are idle.

    def _on_orphaned(self) -> None:
        self._loop.remove_reader(self._control.fileno())
        self._sessions.retire()  # no client could find them any more
        for number in list(self._clients):
            if (process := self._control.client_fileno(number)) is not None:
                self._loop.add_reader(process, self._on_client_gone, number, process)
        self._look_for_streams(0.0)

    def _on_client_gone(self, number: int, process: int) -> None:
        self._loop.remove_reader(process)
        self._on_detach(number)
        self._look_for_streams(0.0)

    def _look_for_streams(self, idle: float) -> None:
        """Stop when there is no client, or when none has had a stream for a while."""
        links, patience = self.links(), self._control.outlive
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

    def _do(self, client: Client, what: str, *fields: Any) -> None:
        match what:
            case "define":
                self._do_define(client, *fields)
            case "levels":
                logs.apply_levels(*fields)
            case "started":
                self._do_started(client, *fields)
            case "keep":
                self._sessions.open(Attachment(client, *fields))
            case "detach_kept":
                self._sessions.detach(client, fields)
            case "snapshot":
                client.link.snapshot(*fields)
            case "cancel":
                self._do_cancel(client, *fields)
            case _:
                raise AssertionError(f"unknown message `{what}`")

    def _do_define(self, client: Client, function: int, definition: bytes) -> None:
        client.functions[function] = definition

    def _do_started(
        self, client: Client, slot: int, function: int, task: asyncio.Task[None]
    ) -> None:
        client.tasks[slot] = task
        client.opened[slot] = OpenStream(function, introspection.moment(), None)
        task.add_done_callback(functools.partial(_forget, client, slot))

    def _function(self, client: Client, number: int) -> tuple[Callable[..., Any], bool]:
        """Return a function, and whether it is called with a state."""
        known = client.functions[number]
        if isinstance(known, bytes):
            function = load(known)
            known = client.functions[number] = (function, takes_state(function))
        return known

    def _do_cancel(self, client: Client, slot: int) -> None:
        client.link.cancel(slot)
        if (task := client.tasks.get(slot)) is not None:
            task.cancel()


def _forget(client: Client, slot: int, done: asyncio.Task[None]) -> None:
    if client.tasks.get(slot) is done:
        del client.tasks[slot], client.opened[slot]
    if not done.cancelled() and (error := done.exception()) is not None:
        traceback.print_exception(error)
