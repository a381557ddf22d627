"""One client of a worker: its link, its functions and its running streams."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any, NamedTuple

from velo import _core
from velo._worker import logs

__all__ = ["Client", "OpenStream"]


class OpenStream(NamedTuple):
    """The data of the stream in a slot, for introspection.

    Attributes:
        function: The number of its function.
        moment: When it was opened; each stream of a worker has a moment of its own.
        key: What the session is called that it is attached to, if it is.

    """

    function: int
    moment: int
    key: str | None


class Client:
    """One client.

    Attributes:
        number: The number of its link.
        link: The worker's end of the link.
        line: Where its log records go.
        functions: By number: the definition, and once it was loaded the function, and whether it
            has a state.
        context: In which its functions run.
        tasks: By slot: what runs the stream.
        opened: By slot: what is known of the stream. The last one is the newest.
        lanes: By slot: the streams that run the keys of a function.

    """

    def __init__(self, number: int, link: _core.WorkerLink, program: object) -> None:
        self.number = number
        self.link = link
        self.line = logs.Line(link, program)
        self.functions: dict[int, bytes | tuple[Callable[..., Any], bool]] = {}
        self.context = contextvars.copy_context()
        self.context.run(logs.line_of_stream.set, self.line)
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.opened: dict[int, OpenStream] = {}
        self.lanes: dict[int, _core.LaneRunner] = {}
