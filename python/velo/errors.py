"""What velo raises.

Every error that velo itself makes is a `VeloError`. What a stream function raises reaches the
caller as its own type.
"""

from __future__ import annotations

__all__ = [
    "BufferFull",
    "EventTimeout",
    "EventTooLarge",
    "JournalFull",
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
    """The base of all errors of velo."""


class StreamClosed(VeloError):
    """Nothing more can be sent to, or received from, a stream; the message says why."""


class StreamBusy(VeloError):
    """Two tasks, threads or event loops use one stream in a way that would mix them up."""


class BufferFull(VeloError):
    """A stream with `full="error"` has `buffer` events that its function is not done with.

    Attributes:
        stream: The name of the stream.
        sent: How many events of a `send_batch` went in before; 0 for `send`.
        event: The event that did not go in.

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


class EventTimeout(VeloError, TimeoutError):
    """A function was longer at one event than `event_timeout` allows. Its stream has ended.

    A note says where it was waiting.

    Attributes:
        stream: The name of the stream.
        event: Which event it was, counted from 1.
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

    The event that was being sent was not accepted. The stream lives, with all that it has accepted:
    results can be received, and its input can end.

    Attributes:
        stream: The name of the stream.
        size: How many bytes are kept.
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
    """There is no worker for a stream, and the message says what was tried."""


class RingCorrupted(VeloError, ValueError):
    """Memory that is shared with another process holds what nobody sent."""


class SlowStepWarning(RuntimeWarning):
    """A step of a function held its event loop, or its worker's other streams, up for 50 ms."""


class StallWarning(RuntimeWarning):
    """A worker process stood still for longer than its streams allow, and was killed for it."""


class WorkerDied(VeloError):
    """The worker process of a stream is gone, and with it the stream's local variables.

    A worker runs the functions of many streams, one at a time. The one that ran when the worker
    died is the likely culprit; where it was killed from outside, it is only the one that was there.

    Attributes:
        stream: The name of the stream.
        pid: The process id that the worker had.
        signal: The number of the signal that ended it, or None.
        exit_code: Its exit code, or None if a signal ended it or nobody knows.
        in_flight: How many events the function had not finished.
        culprit: Whether this stream's function was the one that ran (True), or another stream's
            (False). None: nobody knows. No function ran, what fell was a thread beside them, or it
            had too much memory, whoever that was.
        culprit_stream: The name of the stream whose function ran, this one's or another's. None
            when nobody knows, and when it belongs to another event loop or process.
        event: Which event that function had taken last, counted from 1 in the order in which
            events came to it; None before its first.
        stack: The stacks of the worker's threads at that moment, as text; empty when they could not
            be written, as after `SIGKILL` from outside or `os._exit`.
        why: What velo killed the worker for, or None when it did not.

    """

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


class PoisonEvent(WorkerDied):
    """A function has ended its worker at the same event again and again, and is given up.

    The attributes of `WorkerDied` are those of the last death, which is also the `__cause__`.

    Attributes:
        number: Which event it was, counted from 1.
        poison: The event itself; None if it cannot be made here.
        restarts: How many workers were tried after the first one.

    """

    number: int = 0
    poison: object = None
    restarts: int = 0

    @classmethod
    def of(cls, died: WorkerDied, number: int, poison: object, restarts: int) -> PoisonEvent:
        """Return the error for an event, made of the last death."""
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
    """A function that ran again on the same events gave other results than the first time.

    What was received before cannot be taken back, so the stream is over. A function with
    `recover="replay"` must not depend on time, randomness, or anything else that may change.

    Attributes:
        stream: The name of the stream.
        result: Which result it is, counted from 1.
        differs: True if it is another one than before, False if there is none.

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
    """Where the first stack of a text ends: `in f (file.py:12)`."""
    import re

    found = re.search(r'^  File "(.*)", line (\d+) in (.*)$', stack, re.MULTILINE)
    return f"in `{found[3]}` ({found[1]}:{found[2]})" if found else ""


class RemoteError(VeloError):
    """A stream function raised something that cannot travel between processes.

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
