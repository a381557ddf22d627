"""Which supervisor a stream's worker comes from, and whether this program can use it."""

from __future__ import annotations

import atexit
import functools
import os
import sys

from velo import _core
from velo.errors import PoolError

__all__ = [
    "EXIT_BOUND",
    "NoSupervisor",
    "address_of",
    "check",
    "connect",
    "embedded",
    "environment",
    "expect",
    "runtime",
    "zygote_command",
]

# How many seconds the interpreter's exit may wait for workers to run `finally` blocks.
EXIT_BOUND = 2.0

# Before there is a supervisor, whose descriptors and locks a forked child must not have.
os.register_at_fork(
    before=_core.before_fork,
    after_in_parent=_core.after_fork_parent,
    after_in_child=_core.after_fork_child,
)
atexit.register(_core.shutdown, EXIT_BOUND)

# Each worker is one of several processes that share the cores: it must not start a pool of its own.
_ONE_THREAD = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)

# Text hashes alike in all workers: who takes a stream over sees sets in the same order.
_SEED = str(int.from_bytes(os.urandom(4)) or 1)


class NoSupervisor(PoolError):
    """No supervisor listens where one is expected."""


def address_of(setting: str) -> str | None:
    """Return where the supervisor listens that a setting means; None for the process's own.

    Raises:
        ValueError: When `VELO_SUPERVISOR` makes no sense.

    """
    if setting == "auto":
        setting = os.environ.get("VELO_SUPERVISOR") or "embedded"
        if setting not in ("embedded", "daemon") and "/" not in setting:
            raise ValueError(
                '`VELO_SUPERVISOR` must be "embedded", "daemon" or the path of a socket, not '
                f"{setting!r}"
            )
    if setting in ("auto", "embedded"):
        return None
    return os.path.abspath(_core.default_socket() if setting == "daemon" else setting)


def embedded() -> _core.SupervisorClient:
    """Connect to the supervisor of this process, which is started if it does not run."""
    idle = _idle_timeout()
    return _core.SupervisorClient(zygote_command(), environment(), idle_timeout=idle)


@functools.cache
def expect(setting: str) -> None:
    """Have the first worker of this process there sooner.

    Its zygote takes most of the time until then. It can start while this process imports what it
    has yet to.
    """
    if address_of(setting) is None:
        _core.SupervisorClient.expect(zygote_command(), environment(), idle_timeout=_idle_timeout())


def connect(address: str) -> _core.SupervisorClient:
    """Connect to the standalone supervisor at an address.

    Raises:
        NoSupervisor: When none listens there.
        PoolError: When it is another user's.

    """
    try:
        return _core.SupervisorClient.connect(address)
    except ConnectionError as error:
        raise NoSupervisor(
            f"{error}; start one with `velo supervisor start --socket {address}`, or choose "
            '`supervisor="embedded"`'
        ) from None


def check(address: str, velo: str, theirs: str) -> None:
    """Make sure that workers of a supervisor understand functions of this program.

    Raises:
        PoolError: When it runs another Python or another velo; the message names both.

    """
    if (velo, theirs) != (_core.__version__, runtime()):
        raise PoolError(
            f"the supervisor at `{address}` runs velo {velo} on {theirs or 'no Python'}, this "
            f"program velo {_core.__version__} on {runtime()}: functions cannot travel between "
            "them; start a supervisor with this program's Python, at another `--socket`"
        )


def runtime() -> str:
    """Return what runs functions here, by what matters to a function that travels."""
    return f"{sys.implementation.name} {sys.version_info.major}.{sys.version_info.minor}"


def _idle_timeout() -> float:
    return float(os.environ.get("VELO_IDLE_TIMEOUT", "10"))


def environment() -> list[tuple[str, str]]:
    """Return what is added to the environment of workers."""
    added = dict.fromkeys(_ONE_THREAD, "1") | {"PYTHONHASHSEED": _SEED}
    return [(name, value) for name, value in added.items() if name not in os.environ]


@functools.cache
def zygote_command() -> list[str]:
    """Return how to start the process that workers are forked from."""
    if not sys.executable:
        raise PoolError("process mode needs `sys.executable`, the Python that runs workers")
    import subprocess

    flags: list[str] = getattr(subprocess, "_args_from_interpreter_flags", list)()
    package = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    home = os.path.dirname(package)
    # Collecting while all of asyncio is imported takes a twentieth of the time, and finds nothing.
    code = (
        f"import gc, sys; gc.disable(); sys.path.append({home!r}); "
        "from velo._worker.zygote import main; main()"
    )
    return [sys.executable, *flags, "-P", "-c", code]
