"""The zygote: a single-threaded process that has imported velo, and forks workers."""

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
    """Serve the supervisor that has started this process; in a forked worker, run the worker."""
    _core.warm_up()
    gc.enable()  # it was off during the imports
    gc.freeze()  # workers share these objects; collecting would copy their pages
    output_lock = output.make_lock()
    control = _core.serve_zygote(os.fork, preload)
    if control is not None:
        sys.exit(worker.main(control, output_lock))


def preload(module: str, paths: list[str]) -> None:
    """Import a module for the workers that are forked after it."""
    add_paths(paths)
    importlib.import_module(module)
    gc.freeze()
