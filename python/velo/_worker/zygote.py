"""The zygote: a single-threaded process that has imported what workers need, and forks them."""

from __future__ import annotations

import gc
import importlib
import os
import sys

from velo import _core
from velo._function.reference import add_paths
from velo._worker import main as worker
from velo._worker import output


def main() -> None:
    """Serve the supervisor that started this process; in a forked worker, work."""
    _core.warm_up()
    gc.enable()  # it was off while all of this was imported
    gc.freeze()  # what is here now is shared with the workers: collecting it would copy its pages
    output_lock = output.make_lock()
    seat = _core.serve_zygote(os.fork, preload)
    if seat is not None:
        sys.exit(worker.main(seat, output_lock))


def preload(module: str, paths: list[str]) -> None:
    """Import a module for the workers that are forked after it."""
    add_paths(paths)
    importlib.import_module(module)
    gc.freeze()
