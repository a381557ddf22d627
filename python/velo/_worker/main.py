"""A worker process: an event loop that runs the streams of its clients."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, cast

from velo import _core
from velo._diagnostics import slow_steps
from velo._function import exceptions
from velo._function.reference import load
from velo._function.signature import takes_state
from velo._worker import forked, introspection, lanes, last_errors, logs, output, report
from velo._worker.client import Client, OpenStream
from velo._worker.selector import LinkSelector
from velo._worker.session import Attachment
from velo._worker.sessions import Sessions
from velo._worker.surroundings import Surroundings

# How many seconds cancelled streams have for their `finally` blocks when the worker ends.
_GRACE = 1.5
# How long async generators that are left over may take to be closed then.
_LAST_GRACE = 0.5
# The most functions that a process's title names.
_MOST_NAMED = 3
# The most functions that are counted for it.
_MOST_KNOWN = 100
# The shortest time, in seconds, between two searches for streams after the supervisor has died.
_SHORTEST_LOOK = 0.05


def main(
    control: _core.WorkerControl, output_lock: int, served: int, keeper: int | None
) -> NoReturn:
    """Run until the supervisor says to stop, and end the process.

    Args:
        control: The line to the supervisor.
        output_lock: What the workers take turns by to write a line.
        served: The process that the supervisor is, or is in.
        keeper: The socket that leads to the keeper of its checkpoint, if it has one.

    """
    slow_steps.in_worker = True
    os.environ["VELO_WORKER"] = f"{os.getpid()}/{served}"
    report.write_to(control.report, control.stacks_signal)
    control.start_watchdog()
    output.unmix(output_lock)
    worker = _Worker(control, f"velo: worker {control.worker} of {served}", keeper)
    exceptions.note = last_errors.note_failure
    give_back = logs.take_over(logs.ForwardingHandler(worker.lines))
    runner = asyncio.Runner(loop_factory=worker.make_loop)
    forked.separate(runner.get_loop(), worker.selector, give_back, served)
    code = 1
    try:
        code = runner.run(worker.serve())
    except BaseException as error:
        forked.end_if_forked(error)
        traceback.print_exception(error)
    _end(code)


def _end(code: int) -> NoReturn:
    """End this process as the interpreter does, but for freeing its objects one by one.

    That can take seconds, in which nobody may still want anything of this worker.
    """
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    os._exit(code)


class _Worker:
    def __init__(self, control: _core.WorkerControl, title: str, keeper: int | None) -> None:
        self._control = control
        self._title = title
        self._named: list[str] = []
        _core.set_title(title)
        self.selector = LinkSelector()
        self._surroundings = Surroundings()
        self._clients: dict[int, Client] = {}
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._leaving: set[asyncio.Task[None]] = set()
        self._looking: asyncio.TimerHandle | None = None
        self._sessions = Sessions(control, self._function, self.lines, keeper)

    def links(self) -> list[_core.WorkerLink]:
        """Return the links to all clients."""
        return [client.link for client in self._clients.values()]

    def lines(self) -> list[logs.Line]:
        """Return where the log records of all clients go."""
        return [client.line for client in self._clients.values()]

    def make_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(self.selector)

    async def serve(self) -> int:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        # The loop may have more to do than its socket holds: it will look all the same.
        signal.set_wakeup_fd(self._loop._csock.fileno(), warn_on_full_buffer=False)  # type: ignore[attr-defined]
        self._loop.add_reader(self._control.fileno(), self._on_control)
        self._on_control()
        await self._stop.wait()
        for client in self._clients.values():
            client.link.close_entry()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GRACE):
                await self._sessions.store()
        tasks = {task for c in self._clients.values() for task in c.tasks.values()}
        await self._cancel([*tasks.union(self._sessions.tasks())])
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=_GRACE)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_GRACE):
                await self._loop.shutdown_asyncgens()
        return 0

    # The supervisor.

    def _on_control(self) -> None:
        order = _core.WorkerOrder
        for one in self._control.poll():
            match one:
                case order.Attach(link=number, end=link):
                    self._on_attach(number, link)
                case order.Detach(link=number):
                    self._on_detach(number)
                case order.Streams(ask=ask, since=since, detached=detached):
                    self._on_streams(ask, since, detached)
                case order.Inspect(ask=ask, stream=stream, key=key):
                    self._on_inspect(ask, stream, key)
                case order.End(ask=ask, stream=stream, why=why):
                    self._on_end(ask, stream, why)
                case order.ReleaseKey(key=key, grant=grant):
                    self._sessions.release(key, grant)
                case order.Retire():
                    self._sessions.retire()
                case order.Drain():
                    self._stop.set()
                case order.Lost():
                    self._on_lost()
                case order.Orphaned():
                    self._on_orphaned()
                case _:
                    raise AssertionError(f"unknown order {one!r}")

    def _on_attach(self, number: int, link: _core.WorkerLink) -> None:
        # All clients of a worker that is not shared are event loops of one program.
        program = number if self._control.shared else 0
        self._clients[number] = Client(number, link, program)
        self._watch_links()

    def _on_detach(self, number: int) -> None:
        if number not in self._clients:
            return
        self.selector.process()  # its last messages count
        client = self._clients.pop(number)
        self._sessions.leave(client)
        self._watch_links()
        logs.apply_levels(self.lines())
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
        self.selector.process()
        third = self._control.MOST_TOLD // 3 - 64
        opened = introspection.opened_since(self._clients.values(), since, third)
        sessions = self._sessions.detached_since(detached, third)
        shown = lanes.describe_all(self._clients.values(), third)
        self._control.tell(ask, f'{{"open": {opened}, "detached": {sessions}, "lanes": {shown}}}')

    def _on_inspect(self, ask: int, which: str, key: str | None) -> None:
        self.selector.process()
        clients = self._clients.values()
        answers = list(lanes.inspect_keys(clients, which, key))
        if key is None:
            answers += [lanes.inspect(c, s) for c in clients for s in introspection.find(c, which)]
            answers += map(introspection.inspect, self._sessions.find_detached(which))
            answers += last_errors.failures(which)
        else:
            found = [s for c in clients for s in introspection.find_key(c, which, key)]
            found += [
                session
                for session in self._sessions.find_detached(key)
                if introspection.is_named(session.function, which)
            ]
            answers += map(introspection.inspect, found)
        self._control.tell(ask, introspection.pack(answers, self._control.MOST_TOLD))

    def _on_end(self, ask: int, which: str, why: str) -> None:
        self.selector.process()
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
                (functools.partial(self._function, client), functools.partial(self._obey, client)),
            )
            for client in self._clients.values()
        ]
        self.selector.watch.watch(self._loop, watched)

    async def _cancel(self, tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_GRACE)

    # The clients.

    def _obey(self, client: Client, message: _core.ClientMessage) -> None:
        kind = _core.ClientMessage
        match message:
            case kind.Define(function=function, definition=definition):
                client.functions[function] = definition
            case kind.Forget(function=function):
                client.functions.pop(function, None)
            case kind.Levels(packed=packed):
                self._do_levels(client, packed)
            case kind.Surroundings(packed=packed):
                self._do_surroundings(client, packed)
            case kind.Started(slot=slot, function=function, task=task, lane=lane):
                self._do_started(client, slot, function, task)
                if lane:
                    client.lanes[slot] = cast("_core.LaneRunner", task.get_coro())
            case kind.Attach(request=request):
                self._sessions.open(Attachment(client, request))
            case kind.Detach(slot=slot, stream=stream):
                self._sessions.detach(client, (slot, stream))
            case kind.Snapshot(slot=slot, stream=stream):
                client.link.snapshot(slot, stream)
            case kind.Cancel(slot=slot):
                self._do_cancel(client, slot)
            case _:
                raise AssertionError(f"unknown message {message!r}")

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
            function = client.context.copy().run(load, known)
            known = client.functions[number] = (function, takes_state(function))
            self._show(introspection.name_of(known))
        return known

    def _show(self, function: str) -> None:
        """Have `ps` and `top` show which functions this worker runs."""
        name = function.rpartition(":")[2]
        if name not in self._named and len(self._named) < _MOST_KNOWN:
            self._named.append(name)
            more = len(self._named) - _MOST_NAMED
            shown = ", ".join(self._named[:_MOST_NAMED]) + (f", {more} more" if more > 0 else "")
            _core.set_title(f"{self._title} ({shown})")

    def _do_levels(self, client: Client, packed: bytes) -> None:
        client.line.told(packed)
        logs.apply_levels(self.lines())

    def _do_surroundings(self, client: Client, packed: bytes) -> None:
        if self._control.shared:
            client.line.program = _core.loads(packed)["pid"]
        else:
            self._surroundings.follow(packed)

    def _do_cancel(self, client: Client, slot: int) -> None:
        client.link.cancel(slot)
        if (task := client.tasks.get(slot)) is not None:
            task.cancel()


def _forget(client: Client, slot: int, done: asyncio.Task[None]) -> None:
    if client.tasks.get(slot) is done:
        del client.tasks[slot], client.opened[slot]
        client.lanes.pop(slot, None)
    if not done.cancelled() and (error := done.exception()) is not None:
        traceback.print_exception(error)
