"""How a stream function runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from velo._types import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Literal, TypedDict, Unpack

    Mode = Literal["inline", "process", "ray"]
    Overflow = Literal["wait", "error"]
    Full = Literal["wait", "drop_oldest", "error"]
    Recover = Literal["none", "replay"]
    OnPoison = Literal["fail", "skip"] | Callable[[str, Any], object]
    Migrate = Callable[[dict[str, Any], int], dict[str, Any]]

    class Settings(TypedDict, total=False):
        """The settings by name, so that editors complete them and type checkers refuse others."""

        mode: Mode
        buffer: int
        full: Full
        timeout: float | None
        max_concurrent: int | None
        overflow: Overflow
        workers: int | None
        supervisor: str
        preload: Iterable[str]
        max_worker_memory: int | None
        max_bytes: int
        event_timeout: float | None
        stall_timeout: float | None
        close_timeout: float
        record: str | os.PathLike[str] | None
        recover: Recover
        journal_limit: int
        max_restarts: int
        on_poison: OnPoison
        state_version: int
        migrate: Migrate | None

else:
    Mode = Overflow = Full = Recover = str
    OnPoison = str | Callable
    Migrate = Callable

__all__ = ["StreamConfig"]


class StreamConfig:
    """The settings of a stream function.

    `@stream_fn(mode="process")` and `fn.options(mode="process")` take them by name. Times are in
    seconds, sizes in bytes.

    Attributes:
        mode: Where the function runs: in the caller's event loop (`"inline"`), in a worker
            process (`"process"`), or in worker processes of the nodes of a Ray cluster (`"ray"`,
            with the extra `velo-stream[ray]`). What is only for `"process"` is for `"ray"` as
            well, except `supervisor`.
        buffer: How many events may be sent before the function has finished the first of them, and
            how many results may wait to be received. At the bound, `send` or the function waits.
        full: What `send` and `send_batch` do when `buffer` events are queued: wait for room
            (`"wait"`), raise `BufferFull` (`"error"`), or drop the oldest event that the function
            has not begun (`"drop_oldest"`). The stream's metrics count dropped events. `feed`,
            `run` and `keyed` always wait for room.
        timeout: After how many idle seconds the stream's input ends. Sending, receiving and
            pending work reset the timer; ticks do not. None: never.
        max_concurrent: How many streams of this function may be open at a time, over all event
            loops of the process. None: any number.
        overflow: What `open` does at `max_concurrent`: wait for a stream to close (`"wait"`), or
            raise (`"error"`).
        workers: The maximum number of worker processes that run streams of this function. None: as
            many as there are cores that this process may use; in ray mode, on each node, as many
            as Ray counts cores there. Only for `"process"`.
        supervisor: Which supervisor provides the worker processes. `"embedded"`: the one of this
            process; its workers end with the process. A path: the standalone supervisor that
            listens there (`velo supervisor start`), which several programs can share; `"daemon"`
            stands for its default path. `"auto"`: the value of the environment variable
            `VELO_SUPERVISOR` when an event loop opens its first stream, or else `"embedded"`, even
            while a standalone supervisor runs. Only for `"process"`.
        preload: Modules that worker processes import before they run streams, so that a new worker
            starts faster: `preload=["numpy"]`. A module that cannot be imported, or that starts
            threads, causes a warning and is not preloaded. Functions share the workers of a
            process, which preload the modules of all of them. Only for `"process"`.
        max_worker_memory: How many bytes of its own memory a worker with streams of this function
            may use; shared memory and program code do not count. A worker above the limit takes no
            more streams: new ones, and those with `recover="replay"`, go to a new worker, and the
            old one ends with its last stream. If it reaches twice the limit, or is still above it
            30 s later, velo kills it, and its streams fail with `WorkerDied`. The supervisor checks
            once a second. None: any number. Only for `"process"`.
        max_bytes: How large the queue of a stream may grow in each direction, in bytes of shared
            memory, rounded up to a power of two. While a queue grows, the rest of the smaller one
            adds to that. One event may take half of it, and arrays on loan as much again. Only for
            `"process"`.
        event_timeout: How many seconds the function may spend on one event, until it asks for the
            next one. Time that it awaits counts. Time in which other functions hold its event loop,
            or in which a result waits to be received, does not. Past the limit, velo cancels the
            function where it waits, and its stream alone fails with `EventTimeout`. A function that
            never waits is noticed when it asks for its next event; in `"process"` mode, velo kills
            its worker, as for `stall_timeout`. None: any time.
        stall_timeout: How many seconds a function may hold its worker without waiting for anything
            or taking an event, as an endless loop or a blocking call does. The import of its module
            does not count. Past the limit, a `StallWarning` names the stream and shows the stack,
            and velo kills the worker: all of its streams fail with `WorkerDied`, which names the
            stream whose function ran. A worker that is stopped, or held up by something other than
            a function, counts too while events wait. None: any time. Only for `"process"`: inline,
            velo cannot stop a function, and only warns with `SlowStepWarning`.
        close_timeout: How many seconds closing a stream waits for its function to end before velo
            cancels it.
        record: A folder in which each stream writes a file with the events and results of its
            function, for `velo replay` and `velo.testing.load_recording`. The folder is created if
            it does not exist. None: nothing is recorded.
        recover: What happens to a stream whose worker dies. It fails with `WorkerDied`
            (`"none"`), or another worker runs its function again on the same events (`"replay"`),
            drops the results that were received before, and goes on: the caller sees only a pause.
            The function has to be deterministic: its local variables come back because its code
            runs again, and so do its side effects. In inline mode, no worker can die.
        journal_limit: How many bytes of events a stream with `recover="replay"` keeps in this
            process. At the limit, sending raises `JournalFull`, unless the function takes a second
            parameter, `state`: velo saves it from time to time, and drops the events before that.
        max_restarts: How many times in a row velo restarts a function that ends its worker at the
            same event.
        on_poison: What happens to an event at which the function has used up `max_restarts`: the
            stream fails with `PoisonEvent` (`"fail"`), or goes on without the event (`"skip"`). A
            callable gets the name of the stream and the event, in this process; then the stream
            goes on without the event.
        state_version: The version of the function's `state`. A checkpoint keeps it with the state
            of each key. Raise it when the function expects a state of another form.
        migrate: Makes a state of this version from one of an earlier version:
            `migrate(state, version)` returns it. It is called in this process, or for a session in
            its worker, when a key is loaded from a checkpoint that has its state in an earlier
            version. None: such a checkpoint raises `CheckpointError`.

    Raises:
        TypeError: When a setting is of the wrong type.
        ValueError: When a setting is out of its range, or conflicts with another one; the message
            says which values are allowed.

    """

    mode: Mode
    buffer: int
    full: Full
    timeout: float | None
    max_concurrent: int | None
    overflow: Overflow
    workers: int | None
    supervisor: str
    preload: tuple[str, ...]
    max_worker_memory: int | None
    max_bytes: int
    event_timeout: float | None
    stall_timeout: float | None
    close_timeout: float
    record: str | os.PathLike[str] | None
    recover: Recover
    journal_limit: int
    max_restarts: int
    on_poison: OnPoison
    state_version: int
    migrate: Migrate | None

    def __init__(
        self,
        *,
        mode: Mode = "inline",
        buffer: int = 256,
        full: Full = "wait",
        timeout: float | None = None,
        max_concurrent: int | None = None,
        overflow: Overflow = "wait",
        workers: int | None = None,
        supervisor: str = "auto",
        preload: tuple[str, ...] = (),
        max_worker_memory: int | None = None,
        max_bytes: int = 256 * 1024 * 1024,
        event_timeout: float | None = None,
        stall_timeout: float | None = None,
        close_timeout: float = 10.0,
        record: str | os.PathLike[str] | None = None,
        recover: Recover = "none",
        journal_limit: int = 64 * 1024 * 1024,
        max_restarts: int = 3,
        on_poison: OnPoison = "fail",
        state_version: int = 1,
        migrate: Migrate | None = None,
    ) -> None:
        _choice("mode", mode, ("inline", "process", "ray"))
        _whole("buffer", buffer, 1, 2**31)
        _choice("full", full, ("wait", "drop_oldest", "error"))
        _seconds("timeout", timeout, none=True)
        _whole("max_concurrent", max_concurrent, 1, 2**31, none=True)
        _choice("overflow", overflow, ("wait", "error"))
        _whole("workers", workers, 1, 1024, none=True)
        supervisor = _supervisor(supervisor)
        preload = _names("preload", preload)
        _whole("max_worker_memory", max_worker_memory, 2**20, 2**50, none=True)
        _whole("max_bytes", max_bytes, 4096, 2**33)
        _seconds("event_timeout", event_timeout, none=True)
        _seconds("stall_timeout", stall_timeout, none=True)
        _seconds("close_timeout", close_timeout, zero=True)
        record = None if record is None else _folder("record", record)
        _choice("recover", recover, ("none", "replay"))
        _whole("journal_limit", journal_limit, 4096, 2**40)
        _whole("max_restarts", max_restarts, 0, 2**31)
        if not callable(on_poison):
            _choice("on_poison", on_poison, ("fail", "skip"))
        _whole("state_version", state_version, 1, 2**31)
        if migrate is not None and not callable(migrate):
            raise TypeError(
                f"`migrate` must be a function of a state and its version, not {migrate!r}"
            )
        if recover == "replay" and full == "drop_oldest":
            raise ValueError(
                '`recover="replay"` does not go together with `full="drop_oldest"`: a stream '
                'either loses nothing, or drops events; use `full="wait"` or `full="error"`'
            )
        given = locals()
        for name in StreamConfig.__slots__:
            object.__setattr__(self, name, given[name])

    # Not a dataclass: importing `dataclasses` takes as long as importing the rest of velo.
    __slots__ = tuple(__init__.__kwdefaults__ or ())

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"settings stay as they are: `.replace({name}=...)` makes a copy")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"settings stay as they are: `{name}` cannot be deleted")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._settings() == other._settings()

    def __hash__(self) -> int:
        return hash(tuple(self._settings().values()))

    def __repr__(self) -> str:
        settings = (f"{name}={value!r}" for name, value in self._settings().items())
        return f"StreamConfig({', '.join(settings)})"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _restore, (type(self), self._settings())

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in StreamConfig.__slots__}

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a plain dict, which `StreamConfig(**settings)` takes back."""
        return self._settings() | {"preload": list(self.preload)}

    def replace(self, **settings: Unpack[Settings]) -> StreamConfig:
        """Return a copy with other settings.

        Raises:
            TypeError: When there is no such setting; the message lists all settings.

        """
        for name in settings:
            if name not in StreamConfig.__slots__:
                raise TypeError(_unknown(name))
        changed: dict[str, Any] = dict(settings)
        return type(self)(**self._settings() | changed)

    __replace__ = replace


def _restore(kind: type[StreamConfig], settings: dict[str, Any]) -> StreamConfig:
    return kind(**settings)


def _choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        choices = " or ".join(f'"{choice}"' for choice in allowed)
        raise ValueError(f"`{name}` must be {choices}, not {value!r}")


def _whole(name: str, value: object, least: int, most: int, *, none: bool = False) -> None:
    if none and value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be a whole number, not {value!r}")
    if not least <= value <= most:
        raise ValueError(f"`{name}` must be between {least} and {most}, not {value}")


def _seconds(name: str, value: object, *, zero: bool = False, none: bool = False) -> None:
    if none and value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be a number of seconds, not {value!r}")
    if not (value > 0 or (zero and value == 0)) or value == float("inf"):
        least = "at least 0" if zero else "more than 0"
        raise ValueError(f"`{name}` must be {least} seconds, not {value!r}")


def _unknown(name: str) -> str:
    import difflib  # it takes longer to import than all of this module

    names = StreamConfig.__slots__
    like = difflib.get_close_matches(name, names, n=1)
    meant = f": did you mean `{like[0]}`? There" if like else "; there"
    return f"unknown setting `{name}`{meant} are: {', '.join(names)}"


def _folder(name: str, value: object) -> str:
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str):
        raise TypeError(f"`{name}` must be the path of a folder, not {value!r}")
    if not path:
        raise ValueError(f"`{name}` must be the path of a folder, not an empty one")
    return os.path.abspath(path)  # workers may have another working directory


def _supervisor(value: object) -> str:
    if isinstance(value, os.PathLike):
        value = os.fsdecode(value)
    if not isinstance(value, str):
        raise TypeError(f"`supervisor` must be a name or a path, not {value!r}")
    if value not in ("auto", "embedded", "daemon") and "/" not in value:
        raise ValueError(
            '`supervisor` must be "auto", "embedded", "daemon" or the path of a socket, not '
            f"{value!r}"
        )
    return value


def _names(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"`{name}` must be a list of module names, not {value!r}")
    names = tuple(value)
    for each in names:
        if not isinstance(each, str) or not all(part.isidentifier() for part in each.split(".")):
            raise ValueError(f"`{name}` must hold names of modules; {each!r} is none")
    return names
