"""What velo raises.

Every error that velo itself makes is a `VeloError`. What a stream function raises reaches the
caller as its own type.
"""

from __future__ import annotations

__all__ = [
    "BufferFull",
    "EventTooLarge",
    "PoolError",
    "RemoteError",
    "RingCorrupted",
    "SlowStepWarning",
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


class EventTooLarge(VeloError, ValueError):
    """An event, or a result, is larger than `max_bytes` allows. The stream goes on."""


class PoolError(VeloError):
    """There is no worker for a stream, and the message says what was tried."""


class RingCorrupted(VeloError, ValueError):
    """Memory that is shared with another process holds what nobody sent."""


class SlowStepWarning(RuntimeWarning):
    """A step of an inline function held up its event loop for more than 50 ms."""


class WorkerDied(VeloError):
    """The worker process of a stream is gone, and with it the stream's local variables.

    Attributes:
        stream: The name of the stream.
        pid: The process id that the worker had.
        signal: The number of the signal that ended it, or None.
        exit_code: Its exit code, or None if a signal ended it or nobody knows.
        in_flight: How many events the function had not finished.

    """

    def __init__(
        self,
        stream: str,
        pid: int,
        signal: int | None = None,
        exit_code: int | None = None,
        in_flight: int = 0,
    ) -> None:
        super().__init__(stream, pid, signal, exit_code, in_flight)
        self.stream = stream
        self.pid = pid
        self.signal = signal
        self.exit_code = exit_code
        self.in_flight = in_flight

    def __str__(self) -> str:
        events = "1 event" if self.in_flight == 1 else f"{self.in_flight} events"
        return (
            f"the worker of stream `{self.stream}` (pid {self.pid}) {self._how()} "
            f"with {events} in flight"
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
