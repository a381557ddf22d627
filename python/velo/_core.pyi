"""The Rust half of velo. Private: what users need is in `velo`, `velo.errors`."""

from asyncio import AbstractEventLoop, Task
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Sequence,
)
from contextvars import Context
from typing import Any, Generic, SupportsIndex, TypeVar

T = TypeVar("T")
In = TypeVar("In", contravariant=True)
Out = TypeVar("Out", covariant=True)

__version__: str

class Operation(Awaitable[T], Generic[T]):
    """A stream operation that happens when it is awaited, and once."""

    def __await__(self) -> Generator[Any, None, T]: ...
    def send(self, value: None, /) -> Any: ...
    def throw(self, kind: Any, value: Any = None, traceback: Any = None, /) -> Any: ...
    def close(self) -> None: ...

class Results(AsyncIterator[T], Generic[T]):
    """The results of a stream, one by one."""

    def __aiter__(self) -> Results[T]: ...
    def __anext__(self) -> Awaitable[T]: ...
    def _all_sent(self) -> None: ...

class Events(AsyncIterator[T], Generic[T]):
    """The events of a stream, as its function sees them."""

    def __aiter__(self) -> Events[T]: ...
    def __anext__(self) -> Awaitable[T]: ...

class Opened:
    """What a `Stream` is made of."""

class StreamBase(Generic[In, Out]):
    """The operations of `Stream` whose speed matters."""

    def __new__(cls, opened: Opened, *args: Any, **kwargs: Any) -> StreamBase[In, Out]: ...
    def send(self, event: In) -> Operation[None]:
        """Send one event; wait while `buffer` events are queued.

        What `full` says happens instead of waiting. A cancelled `send` has sent nothing.

        Raises:
            StreamClosed: When nothing can be sent any more; the message says why.
            StreamBusy: When another task is waiting to send, or from another thread or event loop.
            BufferFull: When `buffer` events are queued, with `full="error"`.
            EventTooLarge: When the event is over half of `max_bytes` (process mode).
            TypeError: When the event cannot travel to another process; the message names the part.

        """

    def recv(self, *, copy: bool = False) -> Operation[Out]:
        """Receive the next result.

        In process mode large arrays and buffers arrive as read-only views of shared memory, and in
        inline mode a result is the function's own object. With `copy`, everything in it is the
        receiver's alone, to be written to: a copy from the ring, or `copy.deepcopy`.

        A cancelled `recv` has taken nothing.

        Raises:
            StreamClosed: After the last result.
            StreamBusy: When another task is waiting to receive, or from another thread or event
                loop.
            WorkerDied: When the stream's worker process is gone, after the results before that.
            Exception: What the function raised, after the results that came before it.

        """

    def send_batch(self, events: Iterable[In]) -> Operation[None]:
        """Send every event of an iterable, in order, as `send` would.

        An event is taken from the iterable when there is room for it. A cancelled `send_batch` may
        have sent a part of them; an event that was taken and not sent goes before whatever is sent
        next.

        Raises:
            BufferFull: With `full="error"`; its `sent` says how many went in before.
            Exception: What `send` raises, and what the iterable raises; events before it are sent.

        """

    def loan(self, shape: SupportsIndex | Sequence[SupportsIndex], dtype: Any) -> Operation[Any]:
        """Lend a NumPy array to fill in place: `frame = await stream.loan(shape, dtype)`.

        In process mode its memory is shared with the worker, and sending it, alone, anywhere inside
        an event, or a contiguous part of it, copies nothing: the function gets a read-only view. It
        may be sent never, once or several times. In inline mode it is an ordinary array, and so it
        is below 16 KiB. What it holds at first is arbitrary, as with `numpy.empty`.

        Once it was sent without a copy, the array is read-only. Views that were made of it before
        can still be written through, and the function may see that or not.

        It is copied, and stays writable, when it is sent on another stream, or in parts that do not
        lie in one piece.

        The memory is lent again when neither side holds the array any more, nor a view of it. It
        stays valid as long as any of them does, also when the stream is closed or its worker has
        died. All that is on loan may take `max_bytes`, beside what is queued. Beyond that `loan`
        waits, whatever `full` says, until the function or the caller lets go of something; a caller
        that keeps all of it waits for itself. A function that keeps half of it gets copies from
        then on.

        A cancelled `loan` has taken nothing.

        Raises:
            StreamClosed: When nothing can be sent any more.
            StreamBusy: When another task waits for a loan, or from another thread or event loop.
            WorkerDied: When the stream's worker process is gone.
            EventTooLarge: When it takes more than half of `max_bytes` (process mode).
            TypeError: When the items of `dtype` are not plain bytes, as those of `object`.
            ValueError: When a dimension is negative, or all of them are too large.

        """

    def recv_batch(self, max: int = 256, *, copy: bool = False) -> Operation[list[Out]]:
        """Receive at least one result, and as many more as are there, at most `max`.

        Waits for the first one only. `copy` is as for `recv`. A cancelled `recv_batch` has taken
        nothing.

        Raises:
            ValueError: When `max` is less than 1.
            Exception: What `recv` raises; results before it are received first.

        """

    def __aiter__(self) -> Results[Out]:
        """Iterate over all results, up to the end of the stream.

        Raises what `recv` raises, but for `StreamClosed`, which ends the iteration.
        """

    def _feed(self, source: Iterable[In]) -> Results[Out]: ...
    def _run(self, source: Iterable[In]) -> Awaitable[list[Out]]: ...
    def _feed_beside(self) -> Results[Out]: ...
    def _wait_for_end(self) -> Operation[None]: ...
    @property
    def _cancelled(self) -> bool: ...
    @property
    def _has_receiver(self) -> bool: ...
    def _try_end(self, why: str) -> bool: ...
    def _end(self, why: str) -> Operation[None]: ...
    def _offer(self, event: In) -> bool: ...
    def _put_back(self, event: In) -> None: ...
    def _drain(self, max: int) -> tuple[list[Out], bool]: ...
    def _cancel(self) -> None: ...
    def _touch(self) -> None: ...
    def _age(self, seconds: float) -> None: ...
    def _idle(self) -> float: ...
    def _progress(self) -> tuple[int, int]: ...
    def _metrics(self) -> tuple[Any, ...]: ...
    @property
    def _canceller(self) -> Callable[[], None]: ...
    @property
    def _closed(self) -> str | None: ...
    @property
    def _over(self) -> bool: ...
    @property
    def _input_ended(self) -> bool: ...

class StreamGroup:
    """Streams that one task waits for."""

    def __new__(cls) -> StreamGroup: ...
    def watch(self, stream: StreamBase[Any, Any], token: Any, space: bool = False) -> None: ...
    def take(self) -> list[Any]: ...
    def nudge(self) -> None: ...
    def __await__(self) -> Generator[Any, None, list[Any]]: ...

class Ledger:
    """What all streams of one function have done."""

    def __new__(cls) -> Ledger: ...
    def enter(self, opened: Opened) -> None: ...
    def figures(self) -> tuple[Any, ...]: ...

class StreamPort:
    """The function's half of a stream."""

    def load_and_start(
        self, load: Callable[[], Callable[..., AsyncIterator[Any]]]
    ) -> Coroutine[Any, Any, None] | None: ...
    def attach(
        self, pump: Coroutine[Any, Any, None], task: Task[None], context: Context
    ) -> None: ...

def open_inline(
    event_loop: AbstractEventLoop,
    function: Callable[..., Any],
    buffer: int,
    full: str,
    name: str,
    event_timeout: float | None = None,
) -> Opened: ...

class SupervisorClient:
    """One event loop's connection to the supervisor."""

    def __new__(
        cls,
        command: Sequence[str],
        env: Sequence[tuple[str, str]],
        *,
        idle_timeout: float = 10.0,
        max_workers: int | None = None,
        min_workers: int = 0,
    ) -> SupervisorClient: ...
    def fileno(self) -> int: ...
    def preload(self, modules: Sequence[str], paths: Sequence[str]) -> None: ...
    def acquire(self, max_workers: int) -> int: ...
    def release(self, link: int) -> None: ...
    def watch(self, link: int, stall: float) -> None: ...
    def release_broken(self, link: int) -> None: ...
    def poll(self) -> list[tuple[Any, ...]]: ...

class ClientLink:
    """A client's end of the shared memory between it and one worker."""

    def fileno(self) -> int: ...
    def on_doorbell(self) -> None: ...
    def set_nap(self, start: Callable[[], None]) -> None: ...
    def set_wake_soon(self, soon: Callable[[], object]) -> None: ...
    def wake(self) -> None: ...
    def set_broken(self, call: Callable[[], object]) -> None: ...
    def check_up(self) -> None: ...
    def set_log(self, deliver: Callable[[bytes], object]) -> None: ...
    def set_levels(self, packed: bytes) -> None: ...
    def nap_over(self) -> None: ...
    def define(self, function: int, definition: bytes) -> None: ...
    def open(
        self,
        event_loop: AbstractEventLoop,
        function: int,
        limits: tuple[int, int, str],
        budgets: tuple[float | None, float | None],
        name: str,
    ) -> Opened | None: ...
    def take_unwatched(self) -> bool: ...
    def culprit(self) -> tuple[int, str | None, int] | None: ...
    def fail(self, make: Callable[[str, int, int], BaseException]) -> None: ...
    @property
    def streams(self) -> int: ...
    @property
    def dead(self) -> bool: ...

class WorkerSeat:
    """A worker's line to its supervisor."""

    def fileno(self) -> int: ...
    @property
    def worker(self) -> int: ...
    @property
    def report(self) -> int: ...
    @property
    def stacks_signal(self) -> int: ...
    def start_watchdog(self) -> None: ...
    def poll(self) -> list[tuple[Any, ...]]: ...
    def detached(self, link: int) -> None: ...

class WorkerLink:
    """A worker's end of the shared memory between it and one client."""

    def process_ready(self) -> list[tuple[Any, ...]]: ...
    def open(
        self,
        event_loop: AbstractEventLoop,
        place: tuple[int, int],
        limits: tuple[int, int, bool],
        budgets: tuple[float | None, float | None],
        name: str,
    ) -> StreamPort: ...
    def log(self, record: bytes) -> bool: ...
    def close_entry(self) -> None: ...
    def cancel(self, slot: int) -> None: ...
    @property
    def streams(self) -> int: ...

class LinkWatch:
    """Looks at several links at once."""

    def __new__(cls, selector: int) -> LinkWatch: ...
    def watch(self, links: Sequence[WorkerLink]) -> None: ...
    def ready(self) -> bool: ...
    def look(self) -> bool: ...
    def sleep(self, seconds: float | None = None) -> bool: ...

class CsvParser:
    """Makes events of the bytes of one CSV file, as they come."""

    def __new__(
        cls,
        start: Callable[[list[str]], tuple[int | None, list[int]]],
        numbers: bool,
        null: Sequence[str],
    ) -> CsvParser: ...
    def feed(
        self, data: bytes, last: bool = False
    ) -> tuple[list[dict[str, Any]], list[tuple[int, int, str]]]: ...

class View:
    """A read-only buffer in shared memory."""

    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __len__(self) -> int: ...

def dumps(obj: Any, limit: int | None = None) -> bytes: ...
def loads(payload: bytes) -> Any: ...
def serve_zygote(
    fork: Callable[[], int], preload: Callable[[str, list[str]], object]
) -> WorkerSeat | None: ...
def shutdown(bound: float = 5.0) -> None: ...
def status() -> tuple[list[tuple[int, int, int]], int | None] | None: ...
def usable_cores() -> int: ...
def before_fork() -> None: ...
def after_fork_parent() -> None: ...
def after_fork_child() -> None: ...
