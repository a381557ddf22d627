"""The zygote: a single-threaded process that has imported velo, and forks workers."""

from __future__ import annotations

import gc
import importlib
import os
import warnings

from velo import _core
from velo._environment import KEEPER_FD, ZYGOTE_FD
from velo._function.import_paths import use_paths
from velo._worker import main as worker
from velo._worker import output


def main() -> None:
    """Serve the supervisor that has started this process; in a forked worker, run the worker."""
    _core.warm_up()
    gc.enable()  # it was off during the imports
    gc.freeze()  # workers share these objects; collecting would copy their pages
    output_lock = output.make_lock()
    served = os.getppid()
    keeper = _keeper()
    _core.set_title(f"velo: zygote of {served}")
    control = _core.serve_zygote(_fork, preload)
    if control is not None:
        _be_no_zygote()
        worker.main(control, output_lock, served, keeper)


def _fork() -> int:
    """Fork, without the warning that Python 3.12 and later give to a process with threads.

    They count threads in `/proc/self/stat`, and take another field for the number behind a name
    with spaces, as this process has one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def preload(module: str, paths: list[str]) -> None:
    """Import a module for the workers that are forked after it."""
    _be_no_zygote()
    use_paths(paths)
    importlib.import_module(module)
    gc.freeze()


def _keeper() -> int | None:
    """Return the socket that leads to the keeper of the supervisor's checkpoint, if it has one."""
    number = os.environ.pop(KEEPER_FD, None)
    if number is None:
        return None
    keeper = int(number)
    os.set_inheritable(keeper, False)
    return keeper


def _be_no_zygote() -> None:
    """Let go of what marks a process as one: code that runs here may start others."""
    os.environ.pop(ZYGOTE_FD, None)
