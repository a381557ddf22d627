"""The Rust half of velo. Private: users import from `velo`, `velo.errors` and `velo.events`."""

from asyncio import AbstractEventLoop, Future, Task
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Generator,
    Hashable,
    Iterable,
    Iterator,
    Sequence,
)
from contextvars import Context
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Generic, Protocol, Self, SupportsIndex, TypeVar

T = TypeVar("T")
_Link = TypeVar("_Link")
In = TypeVar("In", contravariant=True)
Out = TypeVar("Out", covariant=True)

__version__: str

PROCESS_MODE: bool
"""Whether this build has process mode."""

class Operation(Awaitable[T], Generic[T]):
    """A stream operation that happens when it is awaited, and once."""

    def __await__(self) -> Generator[Any, None, T]: ...
    def send(self, value: None, /) -> Any: ...
    def throw(self, kind: Any, value: Any = None, traceback: Any = None, /) -> Any: ...
    def close(self) -> None: ...
    def _pause(self) -> None: ...
    def _resume(self) -> None: ...

def check_source(events: object) -> None: ...

class ReadAhead(Iterator[T], Generic[T]):
    """Events of a plain iterator, read in a thread; stops where no event is there yet."""

    def __init__(self, demand: SimpleQueue[None], limit: int) -> None: ...
    def start_by(self, start: Callable[[], None]) -> None: ...
    def wake_by(self, wake: Callable[[], object]) -> None: ...
    def push(self, event: T) -> int: ...
    def finish(self, error: BaseException | None = None) -> int: ...
    @property
    def wake(self) -> Callable[[], object] | None: ...
    @property
    def left(self) -> Callable[[T], object] | None: ...
    @property
    def closed(self) -> bool: ...
    def close(self) -> None: ...
    @property
    def exhausted(self) -> bool: ...
    def __next__(self) -> T: ...

class Results(AsyncIterator[T], Generic[T]):
    """The results of a stream, one by one."""

    def __aiter__(self) -> Results[T]: ...
    def __anext__(self) -> Awaitable[T]: ...
    def _all_sent(self) -> None: ...

class Record:
    """An event of a source, with its origin.

    A stream function receives `value` alone; `events.record` is the record of the event that it
    received last.

    Attributes:
        value: The event.
        key: The key that the broker keeps for it, or None.
        topic: The topic, stream, subject, queue, table or file that it comes from.
        partition: The partition of the source: positions have an order within it.
        position: The position in the partition.
        timestamp: The seconds since the epoch that the source has for it, or None.
        headers: Its headers, as pairs of a name and bytes.

    """

    def __new__(
        cls,
        value: Any,
        key: Any = None,
        topic: str = "",
        partition: Hashable = None,
        position: Any = None,
        timestamp: float | None = None,
        headers: tuple[tuple[str, bytes], ...] = (),
    ) -> Record: ...
    @property
    def value(self) -> Any: ...
    @property
    def key(self) -> Any: ...
    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> Hashable: ...
    @property
    def position(self) -> Any: ...
    @property
    def timestamp(self) -> float | None: ...
    @property
    def headers(self) -> tuple[tuple[str, bytes], ...]: ...

class Events(AsyncIterator[T], Generic[T]):
    """The events of a stream, as its function sees them."""

    @property
    def record(self) -> Record | None: ...
    def __aiter__(self) -> Events[T]: ...
    def __anext__(self) -> Awaitable[T]: ...

class Ticks(AsyncIterator[T], Generic[T]):
    """The events of a stream, and a `TICK` whenever none came for a while."""

    def __aiter__(self) -> Ticks[T]: ...
    def __anext__(self) -> Awaitable[T]: ...

class Opened:
    """The Rust part of a new `Stream`."""

class StreamBase(Generic[In, Out]):
    """The operations of `Stream` whose speed matters."""

    def __new__(cls, opened: Opened, *args: Any, **kwargs: Any) -> StreamBase[In, Out]: ...
    def send(self, event: In) -> Operation[None]:
        """Send one event; wait while `buffer` events are queued.

        With another `full` than `"wait"`, it does not wait. A cancelled `send` has sent nothing.

        Raises:
            StreamClosed: When the stream takes no more events; the message says why.
            StreamBusy: When another task is waiting to send, or from another thread or event loop.
            BufferFull: When `buffer` events are queued, with `full="error"`.
            EventTooLarge: When the event is larger than half of `max_bytes` (process mode).
            TypeError: When the event cannot travel to another process; the message names the part.

        """

    def recv(self, *, copy: bool = False) -> Operation[Out]:
        """Receive the next result.

        In process mode, large arrays and buffers arrive as read-only views of shared memory. In
        inline mode, a result is the function's own object. With `copy`, the result is a copy that
        you can write to: a copy from shared memory, or `copy.deepcopy`.

        A cancelled `recv` has taken nothing.

        Raises:
            StreamClosed: After the last result.
            StreamBusy: When another task is waiting to receive, or from another thread or event
                loop.
            WorkerDied: When the stream's worker process has died, after the results before that.
            Exception: The exception of the function, after the results before it.

        """

    def send_batch(self, events: Iterable[In]) -> Operation[None]:
        """Send every event of an iterable, in order, as `send` would.

        It takes an event from the iterable when there is room for it. A cancelled `send_batch` may
        have sent some of the events; one that was taken and not sent goes before the next one that
        is sent.

        Raises:
            BufferFull: With `full="error"`; its `sent` is the number of events that were accepted.
            Exception: Exceptions of `send` and of the iterable; the events before it are sent.

        """

    def loan(self, shape: SupportsIndex | Sequence[SupportsIndex], dtype: Any) -> Operation[Any]:
        """Lend a NumPy array to fill in place: `frame = await stream.loan(shape, dtype)`.

        In process mode, the array is in memory that the worker shares. Sending it, a contiguous
        part of it, or an event that contains it copies nothing: the function gets a read-only view.
        You may send it any number of times. In inline mode, and below 16 KiB, it is an ordinary
        array. Its initial contents are arbitrary, as with `numpy.empty`.

        After it was sent without a copy, the array is read-only. Earlier views of it stay writable;
        whether the function sees such writes is undefined.

        velo copies the array, which then stays writable, if you send it on another stream, or send
        a part of it that is not contiguous.

        The memory is lent again once neither side has the array or a view of it. Until then it
        stays valid, also after the stream has closed or its worker has died. All arrays on loan
        together may take `max_bytes`, besides the queue. Beyond that, `loan` waits, for any `full`,
        until the function or the caller releases an array; a caller that keeps all of them waits
        for itself. A function that keeps half of that memory gets copies from then on.

        A cancelled `loan` has taken nothing.

        Raises:
            StreamClosed: When the stream takes no more events.
            StreamBusy: When another task waits for a loan, or from another thread or event loop.
            WorkerDied: When the stream's worker process has died.
            EventTooLarge: When the array takes more than half of `max_bytes` (process mode).
            TypeError: When items of `dtype` are not plain bytes, for example of `object`.
            ValueError: When a dimension is negative, or the array is too large.

        """

    def recv_batch(self, max: int = 256, *, copy: bool = False) -> Operation[list[Out]]:
        """Receive at least one result, and all others that are there, at most `max`.

        It waits only for the first one. `copy` has the same meaning as in `recv`. A cancelled
        `recv_batch` has taken nothing.

        Raises:
            ValueError: When `max` is less than 1.
            Exception: Exceptions of `recv`, after the results before them.

        """

    def __aiter__(self) -> Results[Out]:
        """Iterate over all results, up to the end of the stream.

        It raises the exceptions of `recv`, except `StreamClosed`, which ends the iteration.
        """

    def _feed(self, source: Iterable[In]) -> Results[Out]: ...
    def _run(self, source: Iterable[In]) -> Awaitable[list[Out]]: ...
    def _feed_beside(self) -> Results[Out]: ...
    def _wait_for_end(self) -> Operation[None]: ...
    def _wait_until_handled(self) -> Operation[None]: ...
    @property
    def _cancelled(self) -> bool: ...
    @property
    def _has_receiver(self) -> bool: ...
    def _try_end(self, why: str) -> bool: ...
    def _try_detach(self, why: str) -> bool: ...
    def _end(self, why: str) -> Operation[None]: ...
    def _send_taken(self, event: In) -> Operation[None]: ...
    def _drain(self, max: int) -> tuple[list[Out], bool]: ...
    def _cancel(self) -> None: ...
    def _touch(self) -> None: ...
    def _age(self, seconds: float) -> None: ...
    def _idle(self) -> float: ...
    @property
    def _answered(self) -> bool: ...
    def _progress(self) -> tuple[int, int]: ...
    def _metrics(self) -> dict[str, Any]: ...
    @property
    def _canceller(self) -> Callable[[], None]: ...
    @property
    def _closed(self) -> str | None: ...
    @property
    def _over(self) -> bool: ...
    @property
    def _input_ended(self) -> bool: ...

class Keys:
    """All keys of one function, as one caller has them."""

    def __new__(
        cls,
        host: Any,
        source: Iterator[Any],
        live: bool,
        key: Any,
        most_lanes: int,
        settings: tuple[int, int, int, int | None, bool, str, int, Any],
        recovery: tuple[int, bool, int] | None = None,
    ) -> Keys: ...
    def add_inline(
        self,
        event_loop: AbstractEventLoop,
        function: tuple[Callable[..., Any], bool],
        name: str,
        deadline: float | None,
    ) -> None: ...
    def add_lane(self, opened: Opened) -> None: ...
    def add_remote_lane(self, lane: RemoteLane) -> None: ...
    def set_most_lanes(self, most: int) -> None: ...
    def replace_lane(self, number: int, opened: Opened) -> None: ...
    def keep_lane(self, number: int) -> None: ...
    def lane_is_on(self, number: int, link: ClientLink) -> bool: ...
    def figures(self) -> tuple[int, int, int]: ...
    @property
    def failed_at(self) -> tuple[Any, int, int] | None: ...
    def no_lane(self, error: BaseException) -> None: ...
    def add_permit(self) -> None: ...
    def fail(self, error: BaseException) -> None: ...
    def enter(self, statistics: FunctionStats) -> None: ...
    def nudge(self) -> None: ...
    def cancel(self) -> None: ...
    @property
    def of_parent(self) -> bool: ...
    def end_lanes(self) -> None: ...
    def discard(self) -> bool: ...
    def wait(self) -> Future[None]: ...
    def clear(self) -> None: ...
    def idle(self) -> float: ...
    def expire(self, seconds: float) -> None: ...
    def age(self, seconds: float) -> None: ...
    def track(
        self, by_record_key: bool, saves: bool, unloads: bool, max_restarts: int | None
    ) -> None: ...
    def take(
        self, most: int
    ) -> tuple[
        list[tuple[Any, Any]],
        list[KeyFailure],
        list[tuple[int, Hashable, bytes | bool | None]],
        bool,
    ]: ...
    def save_dirty(self, once: bool) -> int: ...
    @property
    def dirty(self) -> int: ...
    def cut(
        self, all: bool
    ) -> tuple[list[tuple[Any, Any]], list[tuple[Any, list[Any]]], list[Hashable]] | None: ...
    def may_restore(self) -> None: ...
    def recall(self, keys: list[Hashable]) -> None: ...
    def end_keys(self) -> None: ...
    @property
    def unended(self) -> int: ...
    @property
    def unhandled(self) -> int: ...
    def trace(self) -> None: ...
    def handled(self) -> list[tuple[Any, Any]]: ...
    def drained(self) -> bool: ...
    def distance(self, partition: Hashable) -> int: ...
    def leave(self, partition: Hashable) -> None: ...
    def release(self, held: int, skip: Record | None) -> None: ...
    def begin_live(
        self, event_loop: AbstractEventLoop, name: str, inline: bool, refuses: bool
    ) -> None: ...
    def send(self, key: Hashable, event: Any) -> KeyOperation[None]: ...
    def request(self, key: Hashable, event: Any) -> KeyOperation[list[Any]]: ...
    def end(self, key: Hashable) -> KeyOperation[None]: ...
    def end_all(self) -> KeyOperation[None]: ...
    def results(self) -> LiveResults[Any]: ...
    def close_input(self, why: str, drops: bool) -> None: ...
    def stop_live(self) -> None: ...
    def wait_until_over(self) -> Future[None] | None: ...
    def untold_error(self) -> BaseException | None: ...
    def live_figures(self) -> list[int]: ...

class RemoteLane:
    """The caller's end of a lane on another machine: its frames are bytes that Python carries."""

    def __new__(cls, nudge: Callable[[], object], place: str, longest: int) -> RemoteLane: ...
    def take(self, most: int) -> bytes: ...
    @property
    def waiting(self) -> int: ...
    @property
    def is_full(self) -> bool: ...
    @property
    def is_over(self) -> bool: ...
    def push(self, data: bytes) -> None: ...
    def close(
        self, error: BaseException, death: tuple[bool | None, int, bool] | None = None
    ) -> None: ...

class LaneRelay:
    """The other end of a `RemoteLane`: puts its frames into a lane of this process."""

    def __new__(cls, opened: Opened) -> LaneRelay: ...
    def push(self, data: bytes) -> int: ...
    def go_on(self) -> int: ...
    def take(self, most: int) -> bytes: ...
    def wait(self, batches: bool) -> Future[None] | None: ...
    def cancel(self) -> None: ...
    @property
    def pending(self) -> int: ...
    @property
    def over(self) -> tuple[Exception | None, tuple[bool | None, int, bool] | None] | None: ...

class KeyFailure:
    """The function of a key has raised, or a record has no key or cannot be sent."""

    @property
    def key(self) -> Any: ...
    @property
    def error(self) -> Exception: ...
    @property
    def record(self) -> Record | None: ...
    @property
    def held(self) -> int | None: ...
    @property
    def decoded(self) -> bool: ...

class KeyOperation(Awaitable[T], Generic[T]):
    """An operation on keys that happens when it is awaited, and once."""

    def __await__(self) -> Generator[Any, None, T]: ...
    def send(self, value: None, /) -> Any: ...
    def throw(self, kind: Any, value: Any = None, traceback: Any = None, /) -> Any: ...
    def close(self) -> None: ...

class LiveResults(AsyncIterator[T], Generic[T]):
    """Results with their keys: `async for key, result in keys`."""

    def __aiter__(self) -> LiveResults[T]: ...
    def __anext__(self) -> Awaitable[T]: ...

class KeyedResults(AsyncIterator[T], Generic[T]):
    """Results with their keys: `async for key, result in fn.keyed(...)`."""

    def __new__(cls, keys: Keys, guard: AsyncGenerator[None]) -> Self: ...
    def aclose(self) -> Coroutine[Any, Any, None]: ...
    def __aiter__(self) -> KeyedResults[T]: ...
    def __anext__(self) -> Awaitable[T]: ...

class LaneRunner:
    """What the task of a lane runs, in its worker."""

    def figures(self) -> tuple[int, int, int, list[tuple[str, float, bool]]]: ...
    def find(self, text: str) -> list[dict[str, Any]]: ...

class Latencies:
    """The distribution of the latencies of one function, in seconds."""

    below: list[int]
    count: int
    sum: float

class FunctionStats:
    """Statistics of one function: what all of its streams have done."""

    def __new__(cls) -> FunctionStats: ...
    def enter(self, opened: Opened) -> None: ...
    def absorb(self, other: FunctionStats, *, past: bool = False) -> None: ...
    def latencies(self, bounds: list[float]) -> Latencies: ...
    def figures(self) -> dict[str, Any]: ...

class StreamPort:
    """The function's half of a stream."""

    def load_and_start(
        self, load: Callable[[], tuple[Callable[..., AsyncIterator[Any]], bool]]
    ) -> Coroutine[Any, Any, None] | None: ...
    def attach(
        self, pump: Coroutine[Any, Any, None], task: Task[None], context: Context
    ) -> None: ...

def open_inline(
    event_loop: AbstractEventLoop,
    function: Callable[..., Any],
    has_state: bool,
    limits: tuple[int, str],
    name: str,
    event_timeout: float | None = None,
) -> Opened: ...

class Session:
    """A stream under a key that outlives each of its users."""

    @property
    def attached(self) -> bool: ...
    def leave(self) -> bool: ...
    @property
    def waiting(self) -> bool: ...
    def when_asking(self, call: Callable[[], object]) -> None: ...
    def end_input(self) -> None: ...
    def attach_inline(self, limits: tuple[int, str], name: str) -> Opened: ...

def open_inline_session(
    event_loop: AbstractEventLoop,
    function: tuple[Callable[..., Any], bool],
    limits: tuple[int, str],
    name: str,
    event_timeout: float | None,
    on_end: Callable[[bool, BaseException | None, bool], object],
) -> tuple[Opened, Session]: ...

class StreamLimits:
    """The limits of a function's streams in process mode."""

    def __new__(
        cls,
        *,
        buffer: int,
        max_bytes: int,
        full: str,
        stall_timeout: float | None = None,
        event_timeout: float | None = None,
        max_worker_memory: int | None = None,
    ) -> StreamLimits: ...

class RunningLimit:
    """A time limit that runs until this is dropped."""

    def __new__(cls, seconds: float) -> RunningLimit: ...

def stood_still(seconds: float) -> float:
    """Return for how many of the last `seconds` this process stood still while a limit ran."""

class RecoveryTerms:
    """How a stream outlives its worker."""

    def __new__(
        cls,
        *,
        journal_limit: int,
        has_state: bool,
        max_restarts: int,
        recover: Callable[..., None],
    ) -> RecoveryTerms: ...

class SessionGrant:
    """The grant by which a stream attaches to the session under a key."""

    def __new__(
        cls, *, key: bytes, grant: int, timeout: float | None, shown: str, stored: bytes
    ) -> SessionGrant: ...

class Culprit:
    """The stream whose function a worker ran when it died."""

    @property
    def stream(self) -> int: ...
    @property
    def name(self) -> str | None: ...
    @property
    def event(self) -> int: ...

class Poison:
    """The event at which the function of a stream has ended too many workers."""

    @property
    def event(self) -> int: ...
    @property
    def at_work(self) -> bool: ...

class Recovery:
    """A stream on its way from one worker to another."""

    @property
    def name(self) -> str: ...
    @property
    def wanted(self) -> bool: ...
    @property
    def origin(self) -> Any: ...
    def begin(self) -> None: ...
    def event(self, number: int) -> Any: ...
    def leave_out(self, number: int) -> None: ...
    def fail(self, error: BaseException) -> None: ...

class WorkerDeath:
    """The death of a worker, as far as it is known."""

    signal: int | None
    code: int | None
    ran: str
    stalled: bool
    why: str | None
    stack: str
    @staticmethod
    def unexplained(ran: str) -> WorkerDeath: ...

class Report:
    """A report of a supervisor to a client."""

    class Hello(Report):
        velo: str
        runtime: str
        max_workers: int
        max_streams: int

    class Link(Report):
        request: int
        link: int
        worker: int
        pid: int
        end: ClientLink

    class Refused(Report):
        request: int
        why: str | None

    class Retired(Report):
        link: int

    class Leaving(Report):
        link: int

    class Died(Report):
        link: int
        death: WorkerDeath

    class NotPreloaded(Report):
        module: str
        why: str

    class Status(Report):
        text: str

    class Looked(Report):
        text: str

    class Log(Report):
        lines: list[str]

    class KeyGranted(Report):
        request: int
        link: int
        grant: int
        fresh: bool

    class KeyRefused(Report):
        request: int
        why: str | None

    class KeyGone(Report):
        request: int

    class Done(Report): ...

    class Unable(Report):
        why: str

    class Lost(Report): ...

class WorkerOrder:
    """An order of a supervisor to a worker."""

    class Attach(WorkerOrder):
        link: int
        end: WorkerLink

    class Detach(WorkerOrder):
        link: int

    class Streams(WorkerOrder):
        ask: int
        since: int
        detached: int

    class Inspect(WorkerOrder):
        ask: int
        stream: str
        key: str | None

    class End(WorkerOrder):
        ask: int
        stream: str
        why: str

    class ReleaseKey(WorkerOrder):
        key: bytes
        grant: int

    class Retire(WorkerOrder): ...
    class Drain(WorkerOrder): ...
    class Lost(WorkerOrder): ...
    class Orphaned(WorkerOrder): ...

class ClientMessage:
    """A message of a client that Python code of its worker obeys."""

    class Define(ClientMessage):
        function: int
        definition: bytes

    class Forget(ClientMessage):
        function: int

    class Levels(ClientMessage):
        packed: bytes

    class Surroundings(ClientMessage):
        packed: bytes

    class Started(ClientMessage):
        slot: int
        function: int
        task: Task[None]
        lane: bool

    class Attach(ClientMessage):
        request: SessionRequest

    class Detach(ClientMessage):
        slot: int
        stream: int

    class Snapshot(ClientMessage):
        slot: int
        stream: int

    class Cancel(ClientMessage):
        slot: int

class PoolWorker:
    """One worker of the supervisor of this process."""

    worker: int
    pid: int
    streams: int

class PoolStatus:
    """The state of the supervisor of this process."""

    workers: list[PoolWorker]
    zygote: int | None

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
    @staticmethod
    def expect(
        command: Sequence[str], env: Sequence[tuple[str, str]], *, idle_timeout: float = 10.0
    ) -> None: ...
    @staticmethod
    def connect(path: str) -> SupervisorClient: ...
    def status(self) -> None: ...
    def look(self, known: list[tuple[int, int]], detached: list[tuple[int, int]]) -> None: ...
    def inspect(self, stream: str, key: str | None = None) -> None: ...
    def end(self, stream: str, why: str) -> None: ...
    def drain(self, bound: float | None = None) -> None: ...
    def restart(self) -> None: ...
    def logs(self, follow: bool) -> None: ...
    def fileno(self) -> int: ...
    def preload(self, modules: Sequence[str], paths: Sequence[str]) -> None: ...
    def acquire(self, max_workers: int) -> int: ...
    def release(self, link: int) -> None: ...
    def acquire_key(self, key: bytes, max_workers: int, wait: bool) -> int: ...
    def release_key(self, request: int, key: bytes) -> None: ...
    def left_key(self, key: bytes, grant: int) -> None: ...
    def watch(self, link: int, stall: float | None, memory: int | None) -> None: ...
    def release_broken(self, link: int) -> None: ...
    def poll(self) -> list[Report]: ...

class ClientLink:
    """A client's end of the shared memory between it and one worker."""

    def fileno(self) -> int: ...
    def process_fileno(self) -> int | None: ...
    def on_doorbell(self) -> None: ...
    def alarm_fileno(self) -> int: ...
    def set_wake_soon(self, soon: Callable[[], object]) -> None: ...
    def wake(self) -> None: ...
    def set_broken(self, call: Callable[[], object]) -> None: ...
    def check_up(self) -> None: ...
    def set_log(self, deliver: Callable[[bytes], object]) -> None: ...
    def set_slow(self, tell: Callable[[str, float, bool, bool], object]) -> None: ...
    def set_levels(self, packed: bytes) -> None: ...
    def on_alarm(self) -> None: ...
    def set_surroundings(self, packed: bytes) -> None: ...
    def forget(self, function: int) -> None: ...
    def define(self, function: int, definition: bytes) -> None: ...
    def open(
        self,
        event_loop: AbstractEventLoop,
        function: int,
        limits: StreamLimits,
        name: str,
        *,
        origin: Any = None,
        recovery: RecoveryTerms | None = None,
        session: SessionGrant | None = None,
        lane: bool = False,
    ) -> Opened | None: ...
    def take_unwatched(self) -> bool: ...
    def reopen(self, stream: Recovery, function: int) -> bool: ...
    def send_away(self, names: list[str] | None = None, slow: bool = True) -> int: ...
    def may_lose(self, stream: Recovery) -> bool: ...
    def culprit(self) -> Culprit | None: ...
    def fail(
        self,
        make: Callable[[str, int, int], BaseException],
        replace: Callable[[Recovery, Any], object],
    ) -> None: ...
    @property
    def streams(self) -> int: ...
    @property
    def slow(self) -> bool: ...
    @property
    def dead(self) -> bool: ...

class WorkerControl:
    """A worker's line to its supervisor."""

    def fileno(self) -> int: ...
    @property
    def worker(self) -> int: ...
    @property
    def report(self) -> int: ...
    @property
    def stacks_signal(self) -> int: ...
    def start_watchdog(self) -> None: ...
    def poll(self) -> list[WorkerOrder]: ...
    @property
    def shared(self) -> bool: ...
    @property
    def outlive(self) -> float: ...
    def client_fileno(self, link: int) -> int | None: ...
    def detached(self, link: int) -> None: ...
    def key_free(self, key: bytes, grant: int, live: bool) -> None: ...
    MOST_TOLD: int
    def tell(self, ask: int, answer: str) -> None: ...

class SessionRequest:
    """A client's stream that is to be attached to the session under a key."""

    @property
    def key(self) -> bytes: ...
    @property
    def grant(self) -> int: ...
    @property
    def timeout(self) -> float | None: ...
    @property
    def shown(self) -> str: ...
    @property
    def stored(self) -> bytes: ...
    @property
    def slot(self) -> int: ...
    @property
    def stream(self) -> int: ...
    @property
    def function(self) -> int: ...
    @property
    def name(self) -> str: ...

class WorkerLink:
    """A worker's end of the shared memory between it and one client."""

    def begin_session(
        self,
        event_loop: AbstractEventLoop,
        request: SessionRequest,
        on_end: Callable[[bool, BaseException | None, bool], object],
        state: dict[Any, Any] | None = None,
    ) -> tuple[StreamPort, Session]: ...
    def attach(self, session: Session, request: SessionRequest) -> None: ...
    def detach(self, session: Session, slot: int, stream: int) -> bool: ...
    def log(self, record: bytes) -> bool: ...
    def close_entry(self) -> None: ...
    def try_retire(self) -> bool: ...
    def snapshot(self, slot: int, stream: int) -> None: ...
    def cancel(self, slot: int) -> None: ...
    def end(self, slot: int, why: str) -> bool: ...
    @property
    def streams(self) -> int: ...

class LinkWatch:
    """Does what the clients of a worker have for it, and sleeps until they have something."""

    def __new__(cls, selector: int) -> LinkWatch: ...
    def watch(
        self,
        event_loop: AbstractEventLoop,
        links: Sequence[
            tuple[
                WorkerLink,
                Context,
                dict[int, Any],
                tuple[
                    Callable[[int], tuple[Callable[..., Any], bool]],
                    Callable[[ClientMessage], None],
                ],
            ]
        ],
    ) -> None: ...
    def turn(self, seconds: float | None = None) -> bool: ...
    def process(self) -> None: ...

class _Fields(Protocol):
    @property
    def key(self) -> int | None: ...
    @property
    def text(self) -> list[int]: ...

class NoEvent:
    """A record of a CSV file that is no event."""

    after: int
    line: int
    why: str

class FloatKey:
    """A key that is a float, as its text."""

    place: int
    text: str

class CsvRows:
    """The complete records of one piece of a CSV file."""

    events: list[Any]
    bad: list[NoEvent]
    keys: list[FloatKey]
    lines: bytes

class Line:
    """A line of a file, which arrives in another process as the event that it holds."""

    @property
    def key(self) -> Any: ...

class LineKeys:
    """Gives the key of an event: that of a `Line`, or what a function finds in another event."""

    def __new__(cls, other: Callable[[Any], Any]) -> LineKeys: ...
    def __call__(self, event: Any) -> Any: ...
    @property
    def asked(self) -> int: ...

class CsvParser:
    """Makes events of the bytes of one CSV file, as they come."""

    def __new__(
        cls,
        start: Callable[[list[str]], _Fields],
        numbers: bool,
        null: Sequence[str],
        delimiter: int = ...,
        lines: Callable[[str], Any] | None = None,
    ) -> CsvParser: ...
    @property
    def judged(self) -> str | None: ...
    def restart(self) -> None: ...
    def feed(self, data: bytes, last: bool = False) -> CsvRows: ...

class View:
    """A read-only buffer in shared memory."""

    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __len__(self) -> int: ...

def dumps(obj: Any, limit: int | None = None) -> bytes: ...
def loads(payload: bytes, trusted: bool = True) -> Any: ...
def has_long_number(text: bytes) -> bool: ...
def json_lines(
    text: bytes, key: str | None, written: Callable[[str], Any]
) -> list[Line | None]: ...
def fingerprint(payload: bytes) -> int | None: ...
def pickle_in(payload: bytes) -> bytes | None: ...
def serve_zygote(
    fork: Callable[[], int], preload: Callable[[str, list[str]], object]
) -> WorkerControl | None: ...
def serve_daemon(
    command: Sequence[str],
    env: Sequence[tuple[str, str]],
    ready: Callable[[Path], object],
    *,
    runtime: str,
    socket: str | None = None,
    workers: tuple[int, int | None] = (0, None),
    preload: Sequence[str] = (),
    json: bool = False,
    idle_timeout: float = 10.0,
    stop_timeout: float = 10.0,
    hello_timeout: float = 5.0,
    max_clients: int = 1000,
    client_workers: int | None = None,
    client_streams: int | None = None,
    notes: DaemonNotes | None = None,
) -> None: ...

class DaemonNotes:
    """What the program around a standalone supervisor adds to its status and its log."""

    def __new__(cls) -> DaemonNotes: ...
    def tell_checkpoint(self, text: str) -> None: ...
    def log(self, failure: bool, text: str) -> None: ...

def default_socket() -> Path: ...
def programs() -> list[tuple[int, Path]]: ...
def forget_program(path: str | Path) -> None: ...
def warm_up() -> None: ...
def shutdown(bound: float = 5.0) -> None: ...
def status() -> PoolStatus | None: ...
def usable_cores() -> int: ...
def choose_link(
    links: Collection[_Link], workers: int, avoid: _Link | None = None
) -> _Link | None: ...
def count_usable(links: Collection[_Link], workers: int, avoid: _Link | None = None) -> int: ...
def least_loaded_link(
    links: Collection[_Link], workers: int, avoid: _Link | None = None
) -> _Link | None: ...
def link_below_share(
    links: Collection[_Link], workers: int, avoid: _Link | None, placing: int
) -> _Link | None: ...
def before_fork() -> None: ...
def after_fork_parent() -> None: ...
def after_fork_child() -> None: ...
def default_in_children(signals: list[int]) -> None: ...
def keep_from_children(fds: list[int]) -> None: ...
def set_title(title: str) -> None: ...
