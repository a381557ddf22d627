"""Where this process is: what functions in its workers are to find as if they ran here.

The working directory, the environment, `sys.path` and `sys.argv` of a process change while it runs,
and modules are reloaded. Workers of its own are told before a stream opens there. Workers that
other programs use as well stay what their supervisor is; what then differs is said once.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from typing import Any

from velo import _core
from velo._environment import AT_FIRST
from velo._function.import_paths import encoded, import_paths

__all__ = ["Surroundings", "here"]

# Variables that no function reads: those that velo reads in this process, and the one that pytest
# sets anew for each test.
_IGNORED = {
    *("VELO_IDLE_TIMEOUT", "VELO_METRICS", "VELO_PYTHON", "VELO_SPIN", "VELO_SUPERVISOR"),
    "PYTEST_CURRENT_TEST",
}


class _Reloads:
    """Notes the modules that are reloaded: only a reload passes the module to a finder."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def find_spec(self, name: str, _path: Any, target: Any = None) -> None:
        """Find nothing."""
        if target is not None:
            self.counts[name] = self.counts.get(name, 0) + 1


_reloads = _Reloads()


def _limits() -> tuple[int, int, tuple[str, str]]:
    """Return what functions compute with: limits of the interpreter, and the local time zone."""
    return sys.getrecursionlimit(), sys.get_int_max_str_digits(), time.tzname


def _described(action: str, message: Any, kind: Any, module: Any, line: int) -> tuple[Any, ...]:
    """Return a filter of warnings as it travels: its category by name, its patterns as texts."""
    patterns = [getattr(pattern, "pattern", pattern) for pattern in (message, module)]
    return action, *patterns, kind.__module__, kind.__qualname__, line


class Surroundings:
    """What this process tells its workers."""

    def __init__(self) -> None:
        self._known: Any = None
        self._packed = b""
        self._warned: set[str] = set()

    def packed(self, *, shared: bool) -> bytes:
        """Return them; the same object as long as nothing has changed.

        Args:
            shared: The worker may serve other programs, too.

        """
        if shared:
            return self._of_shared()
        try:
            folder = os.getcwdb()
        except OSError:
            folder = b""
        environment = getattr(os.environ, "_data", os.environ)
        known = self._known
        if (
            known is None
            or folder != known[0]
            or environment != known[1]
            or sys.path != known[2]
            or sys.argv != known[3]
            or _reloads.counts != known[4]
            or _limits() != known[5]
            or warnings.filters != known[6]
        ):
            if _reloads not in sys.meta_path:
                sys.meta_path.insert(0, _reloads)
            self._known = known = (
                *(folder, dict(environment), list(sys.path)),
                *(list(sys.argv), dict(_reloads.counts), _limits(), list(warnings.filters)),
            )
            self._packed = _core.dumps(
                {
                    "pid": os.getpid(),
                    "folder": folder,
                    "environment": {
                        os.fsencode(name): os.fsencode(value) for name, value in os.environ.items()
                    },
                    "path": [encoded(path) for path in import_paths()],
                    "argv": [encoded(word) for word in sys.argv if isinstance(word, str)],
                    "reloaded": dict(_reloads.counts),
                    "limits": _limits(),
                    "warnings": [_described(*entry) for entry in warnings.filters],
                }
            )
        return self._packed

    def _of_shared(self) -> bytes:
        """Return the surroundings for a shared worker; warn of parts that it ignores."""
        if not self._packed:
            self._packed = _core.dumps({"pid": os.getpid()})
        environment = getattr(os.environ, "_data", os.environ)
        if environment != AT_FIRST:
            changed = environment.items() ^ AT_FIRST.items()
            names = sorted({os.fsdecode(name) for name, _ in changed} - _IGNORED)
            if names:
                shown = ", ".join(f"`{name}`" for name in names[:5])
                self._warn_of("environment", f"the environment ({shown})")
        if _reloads not in sys.meta_path:
            sys.meta_path.insert(0, _reloads)
        for name in _reloads.counts:
            self._warn_of(f"module {name}", f"module `{name}`, which was reloaded,")
        return self._packed

    def _warn_of(self, what: str, shown: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(
                f"this program has changed {shown} since it started; workers of a standalone "
                "supervisor keep what they have: pass it in events, or use "
                '`supervisor="embedded"`',
                RuntimeWarning,
                stacklevel=2,
            )


here = Surroundings()


def _in_child() -> None:
    """Begin anew: a forked process is another one, for its own workers."""
    here.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_in_child)
