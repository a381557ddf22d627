"""A worker's working directory, environment and modules, kept as those of its program."""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
import time
import types
import warnings
from collections.abc import Iterable
from typing import Any

from velo import _core
from velo._environment import ADDED
from velo._function.import_paths import use_paths
from velo._function.reference import by_value

__all__ = ["Surroundings"]

_logger = logging.getLogger("velo.workers")


class Surroundings:
    """What the program of this worker has told of itself, and what came of that here.

    Only what the program changes is changed here: what functions have set stays as it is otherwise.
    """

    def __init__(self) -> None:
        self._folder = _folder()
        self._environment: dict[bytes, bytes] | None = None
        self._limits = (sys.getrecursionlimit(), sys.get_int_max_str_digits(), time.tzname)
        self._filters: list[tuple[Any, ...]] = []
        self._reloaded: dict[str, int] = {}
        self._said_main = False

    def follow(self, packed: bytes) -> list[str]:
        """Do as the program does.

        Returns:
            The modules that were reloaded.

        """
        told: dict[str, Any] = _core.loads(packed)
        if "folder" not in told:
            return []
        self._enter(told["folder"])
        self._set_environment(told["environment"])
        use_paths([os.fsdecode(path) for path in told["path"]], alone=True)
        sys.argv[:] = [os.fsdecode(word) for word in told["argv"]]
        self._set_limits(*told["limits"])
        self._filter_warnings(told["warnings"])
        self._be_main()
        return self._reload(told["reloaded"])

    def _enter(self, folder: bytes) -> None:
        if not folder or folder == self._folder:
            return
        try:
            os.chdir(folder)
            self._folder = folder
        except OSError as error:
            _logger.warning(
                "worker process %d cannot follow its program to folder `%s`: %s",
                *(os.getpid(), os.fsdecode(folder), error.strerror),
            )

    def _set_environment(self, environment: dict[bytes, bytes]) -> None:
        before = self._environment
        self._environment = environment
        if before is None:
            # The variables that velo adds for workers are not in it, nor are they taken away.
            added = {os.fsencode(name) for name in ADDED}
            before = {
                name: value
                for name, value in _environ()
                if name in environment or name not in added
            }
        for name, value in environment.items():
            if before.get(name) != value:
                os.environ[os.fsdecode(name)] = os.fsdecode(value)
        for name in before.keys() - environment.keys():
            os.environ.pop(os.fsdecode(name), None)

    def _set_limits(self, recursion: int, digits: int, zone: tuple[str, str]) -> None:
        before, self._limits = self._limits, (recursion, digits, zone)
        if recursion != before[0]:
            sys.setrecursionlimit(recursion)
        if digits != before[1]:
            sys.set_int_max_str_digits(digits)
        if zone != before[2]:
            time.tzset()  # `TZ` has come with the environment

    def _filter_warnings(self, told: list[tuple[Any, ...]]) -> None:
        if told == self._filters:
            return
        self._filters = told
        filters = []
        for action, message, module, home, name, line in told:
            kind = getattr(sys.modules.get(home), name, None)
            if isinstance(kind, type):  # else no code here can warn with it, as yet
                patterns = (_pattern(message, re.IGNORECASE), _pattern(module, 0))
                filters.append((action, patterns[0], kind, patterns[1], line))
        warnings.resetwarnings()
        warnings.filters[:] = filters  # type: ignore[index]

    def _be_main(self) -> None:
        """Say what `__main__` is not, here: the script itself is not run in workers."""
        if self._said_main:
            return
        self._said_main = True
        main = sys.modules["__main__"]

        def missing(name: str) -> Any:
            # What a function of the script uses has come with it: `pickle` looks for it here.
            for function in reversed(list(by_value)):
                if function.__name__ == name:
                    return function
                if name in (known := function.__globals__) and not name.startswith("__"):
                    return known[name]
            if name.startswith("__"):
                raise AttributeError(f"module `__main__` has no attribute `{name}`")
            raise AttributeError(
                f"module `__main__` has no attribute `{name}` in a worker: the script is not run "
                f"here; move `{name}` to a module that both import, or have the function use it "
                "as a variable of its own module"
            )

        main.__getattr__ = missing  # type: ignore[method-assign]

    def _reload(self, counts: dict[str, int]) -> list[str]:
        reloaded = []
        for name, count in counts.items():
            if count <= self._reloaded.get(name, 0):
                continue
            self._reloaded[name] = count
            module = sys.modules.get(name)
            if isinstance(module, types.ModuleType):
                try:
                    importlib.reload(module)
                except Exception:
                    _logger.exception("worker process %d cannot reload `%s`", os.getpid(), name)
                reloaded.append(name)
        return reloaded


def _pattern(text: str | None, flags: int) -> re.Pattern[str] | None:
    return None if text is None else re.compile(text, flags)


def _folder() -> bytes:
    try:
        return os.getcwdb()
    except OSError:
        return b""


def _environ() -> Iterable[tuple[bytes, bytes]]:
    return [(os.fsencode(name), os.fsencode(value)) for name, value in os.environ.items()]
