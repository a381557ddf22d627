"""The supervisor that provides workers, and whether this program can use it."""

from __future__ import annotations

import atexit
import functools
import os
import sys

from velo import _core
from velo._environment import ONE_THREAD, ZYGOTE_FD, seconds
from velo._environment import python as chosen_python
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

# Registered before a supervisor exists: a forked child must not have its descriptors and locks.
os.register_at_fork(
    before=_core.before_fork,
    after_in_parent=_core.after_fork_parent,
    after_in_child=_core.after_fork_child,
)
atexit.register(_core.shutdown, EXIT_BOUND)

# Strings have the same hashes in all workers, so that a stream that moves sees sets in one order.
_SEED = str(int.from_bytes(os.urandom(4)) or 1)


# What to do where this program's own interpreter cannot be started for workers.
_INSTEAD = (
    f"set `VELO_PYTHON` to the path of a Python {sys.version_info.major}."
    f'{sys.version_info.minor} in which velo is installed, or use `mode="inline"`'
)


class NoSupervisor(PoolError):
    """No supervisor listens where one is expected, or it accepts no connection."""


def address_of(setting: str) -> str | None:
    """Return the address of the supervisor for a setting; None for that of this process.

    Raises:
        ValueError: When `VELO_SUPERVISOR` has an invalid value.

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
    """Connect to the supervisor of this process; start it if it does not run."""
    idle = _idle_timeout()
    return _core.SupervisorClient(zygote_command(), environment(), idle_timeout=idle)


@functools.cache
def expect(setting: str) -> None:
    """Start the zygote of this process early, so that the first worker is ready sooner.

    The zygote takes most of that time. It can start while this process still imports modules.
    """
    if address_of(setting) is None:
        _core.SupervisorClient.expect(zygote_command(), environment(), idle_timeout=_idle_timeout())


def connect(address: str) -> _core.SupervisorClient:
    """Connect to the standalone supervisor at an address.

    Raises:
        NoSupervisor: When none listens there, or it accepts no connection.
        PoolError: When it belongs to another user.

    """
    try:
        return _core.SupervisorClient.connect(address)
    except ConnectionError as error:
        raise NoSupervisor(
            f"{error}; start one with `velo supervisor start --socket {address}`, or choose "
            '`supervisor="embedded"`'
        ) from None
    except TimeoutError as error:
        raise NoSupervisor(str(error)) from None


def check(address: str, velo: str, theirs: str) -> None:
    """Check that workers of a supervisor can run functions of this program.

    Raises:
        PoolError: When it uses another version of Python or of velo; the message names both.

    """
    if (velo, theirs) != (_core.__version__, runtime()):
        raise PoolError(
            f"the supervisor at `{address}` runs velo {velo} on {theirs or 'no Python'}, this "
            f"program velo {_core.__version__} on {runtime()}: functions cannot travel between "
            "them; start a supervisor with this program's Python, at another `--socket`"
        )


def runtime() -> str:
    """Return the Python implementation and version, which a function that travels depends on."""
    return f"{sys.implementation.name} {sys.version_info.major}.{sys.version_info.minor}"


def _idle_timeout() -> float:
    return seconds("VELO_IDLE_TIMEOUT", 10.0)


def environment() -> list[tuple[str, str]]:
    """Return the variables to add to the environment of workers."""
    added = dict.fromkeys(ONE_THREAD, "1") | {"PYTHONHASHSEED": _SEED}
    return [(name, value) for name, value in added.items() if name not in os.environ]


@functools.cache
def zygote_command() -> list[str]:
    """Return the command that starts the zygote, from which workers are forked.

    Raises:
        PoolError: When this program is not run by a Python interpreter that could be started again.
        ValueError: When `VELO_PYTHON` names none.

    """
    python = chosen_python()
    if ZYGOTE_FD in os.environ:
        raise PoolError(
            "this process was started to run workers, and runs a program instead: the "
            f"`sys.executable` of process {os.getppid()} is no Python interpreter; {_INSTEAD}"
        )
    if python is None and (getattr(sys, "frozen", False) or not sys.executable):
        what = "is frozen (`sys.frozen`)" if sys.executable else "has no `sys.executable`"
        raise PoolError(
            f"process mode runs workers in a Python interpreter, and this program {what}; "
            f"{_INSTEAD}"
        )
    import subprocess

    flags: list[str] = getattr(subprocess, "_args_from_interpreter_flags", list)()
    package = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    home = os.path.dirname(package)
    # Garbage collection during the imports takes a twentieth of their time, and finds nothing.
    code = (
        f"import gc, sys; gc.disable(); sys.path.append({home!r}); "
        "from velo._worker.zygote import main; main()"
    )
    return [python or sys.executable, *flags, "-P", "-c", code]
