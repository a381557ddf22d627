"""Errors and warnings of velo.

Every error that velo raises is a `VeloError`. An exception of a stream function reaches the caller
with its own type.
"""

from __future__ import annotations

__all__ = [
    "BufferFull",
    "CheckpointError",
    "EventTimeout",
    "EventTooLarge",
    "JournalFull",
    "NodeDied",
    "PoisonEvent",
    "PoolError",
    "RemoteError",
    "ReplayDiverged",
    "RingCorrupted",
    "SlowStepWarning",
    "StallWarning",
    "StreamBusy",
    "StreamClosed",
    "VeloError",
    "WorkerDied",
]


class VeloError(Exception):
    """The base class of all errors of velo."""

    def _repr_html_(self) -> str:
        from velo._html import table

        notes = [("note", note) for note in getattr(self, "__notes__", ())]
        known = [(name, repr(value)) for name, value in vars(self).items() if name[0] != "_"]
        return table(type(self).__name__, [("says", self), *known, *notes])


class StreamClosed(VeloError, RuntimeError):
    """A stream takes no more events, or has no more results; the message says why."""


class StreamBusy(VeloError):
    """A second task, thread or event loop uses a stream at the same time."""


class BufferFull(VeloError):
    """A stream with `full="error"` has `buffer` events that its function has not finished.

    Attributes:
        stream: The name of the stream.
        sent: How many events of a `send_batch` were accepted before; 0 for `send`.
        event: The event that was not accepted.

    """

    def __init__(self, stream: str, sent: int, event: object) -> None:
        super().__init__(stream, sent, event)
        self.stream = stream
        self.sent = sent
        self.event = event

    def __str__(self) -> str:
        return (
            f"stream `{self.stream}` has as many events queued as its `buffer` allows; receive its "
            'results, raise `buffer`, or choose another `full` than "error"'
        )


class CheckpointError(VeloError):
    """A checkpoint cannot be opened, read or written; the message says why, and what to do.

    What the checkpoint held before is still there.
    """


class EventTimeout(VeloError, TimeoutError):
    """A function spent more time on one event than `event_timeout` allows. Its stream has ended.

    A note shows where the function waited.

    Attributes:
        stream: The name of the stream.
        event: The number of the event, from 1.
        seconds: The limit.

    """

    def __init__(self, stream: str, event: int, seconds: float) -> None:
        super().__init__(stream, event, seconds)
        self.stream = stream
        self.event = event
        self.seconds = seconds

    def __str__(self) -> str:
        return (
            f"the function of stream `{self.stream}` was not done with event {self.event} within "
            f"{self.seconds:g} s, its `event_timeout`"
        )


class EventTooLarge(VeloError, ValueError):
    """An event, or a result, is larger than `max_bytes` allows. The stream goes on."""


class JournalFull(VeloError):
    """A stream with `recover="replay"` keeps as many bytes of events as its `journal_limit` allows.

    It has not accepted the event that was sent. The stream goes on with the events before: you can
    receive results, and end its input. A `feed` from a generator stops there: the events that it
    had read ahead are not sent either.

    Attributes:
        stream: The name of the stream.
        size: How many bytes it keeps.
        limit: The limit.

    """

    def __init__(self, stream: str, size: int, limit: int) -> None:
        super().__init__(stream, size, limit)
        self.stream = stream
        self.size = size
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"stream `{self.stream}` keeps {self.size} bytes of events to recover from, and its "
            f"`journal_limit` is {self.limit}; let the function take a second parameter, `state`, "
            "so that old events need not be kept, or raise `journal_limit`"
        )


class PoolError(VeloError):
    """No worker can run a stream; the message says what velo has tried."""


class RingCorrupted(VeloError, ValueError):
    """Memory shared with another process holds invalid data: that process has overwritten it."""


class SlowStepWarning(RuntimeWarning):
    """A step of a function held up its event loop, or other streams of its worker, for 50 ms."""


class StallWarning(RuntimeWarning):
    """A worker process made no progress for longer than its streams allow, and velo killed it."""


class WorkerDied(VeloError):
    """The worker process of a stream has died, and the stream's local variables with it.

    A worker runs the functions of many streams, one at a time. The function that ran when the
    worker died is the likely culprit, unless something outside velo killed the worker.

    Attributes:
        stream: The name of the stream.
        pid: The process id that the worker had.
        signal: The number of the signal that ended it, or None.
        exit_code: Its exit code, or None if a signal ended it or the code is unknown.
        in_flight: How many events the function had not finished.
        culprit: Whether this stream's function ran (True), or another stream's (False). None:
            unknown. No function ran, another thread crashed, or the worker used too much memory,
            for which velo cannot blame one function.
        culprit_stream: The name of the stream whose function ran. None if that is unknown, or if
            the stream belongs to another event loop or process.
        event: The number of the event that this function had taken last, from 1; None before its
            first.
        stack: The stacks of the worker's threads at that moment, as text; empty if they could not
            be written, as after `SIGKILL` from outside or `os._exit`.
        why: The reason for which velo killed the worker, or None if it did not.
        node: In ray mode, the node that is gone; see `NodeDied`. Otherwise None.

    """

    node: str | None = None

    def __init__(
        self,
        stream: str,
        pid: int,
        signal: int | None = None,
        exit_code: int | None = None,
        in_flight: int = 0,
        culprit: bool | None = None,
        culprit_stream: str | None = None,
        event: int | None = None,
        stack: str = "",
        why: str | None = None,
    ) -> None:
        known = (culprit, culprit_stream, event, stack, why)
        super().__init__(stream, pid, signal, exit_code, in_flight, *known)
        self.stream = stream
        self.pid = pid
        self.signal = signal
        self.exit_code = exit_code
        self.in_flight = in_flight
        self.culprit, self.culprit_stream, self.event, self.stack, self.why = known

    def __str__(self) -> str:
        events = "1 event" if self.in_flight == 1 else f"{self.in_flight} events"
        lines = [
            f"the worker of stream `{self.stream}` (pid {self.pid}) {self._how()} "
            f"with {events} in flight",
            self._who(),
        ]
        if self.why:
            lines.insert(1, f"velo killed it: {self.why}")
        return "\n".join(lines)

    def _who(self) -> str:
        at = "before its first event" if self.event is None else f"at event {self.event}"
        if self.culprit:
            where = _innermost(self.stack)
            return f"it was running this stream's function, {at}{where and f', {where}'}"
        if self.culprit is None:
            return "none of its stream functions is known to be the cause"
        if self.culprit_stream is None:
            return "it was running a function of another stream, which this one only lived beside"
        return (
            f"it was running the function of stream `{self.culprit_stream}`, {at}, which this one "
            "only lived beside"
        )

    def _how(self) -> str:
        if self.signal is not None:
            import signal

            try:
                return f"was killed by {signal.Signals(self.signal).name}"
            except ValueError:
                return f"was killed by signal {self.signal}"
        if self.exit_code is not None:
            return f"exited with code {self.exit_code}"
        return "died"


class NodeDied(WorkerDied):
    """In ray mode: a node has gone, or the actor on it, with the functions that ran there.

    No function is to blame: `culprit` is False, and `pid` is the process of the actor.
    """

    def __str__(self) -> str:
        events = "1 event" if self.in_flight == 1 else f"{self.in_flight} events"
        return (
            f"{self.node or 'the node'} of stream `{self.stream}` is gone, with {events} in flight"
        )


class PoisonEvent(WorkerDied):
    """A function has ended its worker at the same event too often, and velo has given it up.

    The attributes of `WorkerDied` are those of the last death, which is also the `__cause__`.

    Attributes:
        number: The number of the event, from 1.
        poison: The event itself; None if it cannot be decoded in this process.
        restarts: How many more workers have run the function after the first one.

    """

    number: int = 0
    poison: object = None
    restarts: int = 0

    @classmethod
    def of(cls, died: WorkerDied, number: int, poison: object, restarts: int) -> PoisonEvent:
        """Return the error for an event, with the attributes of the last death."""
        error = cls(*died.args)
        error.number, error.poison, error.restarts = number, poison, restarts
        return error

    def __str__(self) -> str:
        again = "once more" if self.restarts == 1 else f"{self.restarts} times more"
        return (
            f"stream `{self.stream}` is given up: its function ended its worker at event "
            f"{self.number}, and {again} when that was tried again; choose another `on_poison` "
            f'than "fail" to go on without such events\nthe last time, {super().__str__()}'
        )


class ReplayDiverged(VeloError):
    """A function that ran again on the same events yielded other results than the first time.

    The caller has received the first results already, so the stream has ended. A function with
    `recover="replay"` must not depend on time, randomness, or anything else that may change.

    Attributes:
        stream: The name of the stream.
        result: The number of the result, from 1.
        differs: True if the result is different, False if it is missing.

    """

    def __init__(self, stream: str, result: int, differs: bool) -> None:
        super().__init__(stream, result, differs)
        self.stream = stream
        self.result = result
        self.differs = differs

    def __str__(self) -> str:
        what = "is another one" if self.differs else "did not come"
        return (
            f"stream `{self.stream}` cannot go on in another worker: result {self.result} {what} "
            "when its function ran again; it must give the same results for the same events"
        )


def _innermost(stack: str) -> str:
    """Return the innermost frame of the first stack in a text: `in f (file.py:12)`."""
    import re

    found = re.search(r'^  File "(.*)", line (\d+) in (.*)$', stack, re.MULTILINE)
    return f"in `{found[3]}` ({found[1]}:{found[2]})" if found else ""


class RemoteError(VeloError):
    """A stream function raised an exception that cannot be pickled.

    Attributes:
        type_name: The qualified name of the exception's type.
        message: The exception's own message.
        traceback: The traceback in the worker, as text.

    """

    def __init__(self, type_name: str, message: str, traceback: str = "") -> None:
        super().__init__(type_name, message, traceback)
        self.type_name = type_name
        self.message = message
        self.traceback = traceback

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}"
