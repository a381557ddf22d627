"""Where a program looks for modules, as it travels to a process that is to find the same ones."""

from __future__ import annotations

import os
import sys
from typing import Any

__all__ = ["check_file", "encoded", "import_paths", "shadowing", "unshadow", "use_paths"]

_Path = str | bytes


def encoded(path: str) -> _Path:
    """Return a path as it travels: the name of a file may be no text."""
    return path if path.isascii() else os.fsencode(path)


def import_paths() -> list[str]:
    """Return where this process looks for modules, in its order, without what Python ignores."""
    try:
        return [os.path.abspath(path) for path in sys.path if isinstance(path, str)]
    except FileNotFoundError:  # the working directory is gone
        return [path for path in sys.path if isinstance(path, str) and os.path.isabs(path)]


def shadowing() -> dict[str, _Path]:
    """Return the modules here that are called like one of the standard library, and their files."""
    library = os.path.dirname(os.__file__)
    found = {}
    for name in sys.stdlib_module_names.intersection(sys.modules):
        file = getattr(sys.modules[name], "__file__", None)
        if isinstance(file, str) and not file.startswith(library):
            found[name] = encoded(file)
    return found


# What `sys.path` was made of here last, and whether by the only program that there is.
_paths: list[str] = []
_alone = False
# Where velo itself is.
_HOME = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))


def use_paths(paths: list[str], *, alone: bool = False) -> None:
    """Have this process look for modules where a program does, in its order.

    What code has added to `sys.path` here since the last time comes after that, and in a worker
    that several programs use, what the others look through.

    Args:
        paths: The program's `sys.path`.
        alone: It is the only one, and has been: what it does not look through is not, either.

    """
    global _alone
    if _alone and not alone:
        return  # it has said so with all else
    if alone and paths == _paths:
        return
    _alone = alone
    known = {*paths, *(_paths if alone else ())}
    first = alone and not _paths
    others = [path for path in sys.path if path not in known and not first]
    if first or _HOME not in (*paths, *others):
        others += [_HOME] if _HOME not in paths else []
    sys.path[:] = [*paths, *others]
    _paths[:] = paths


def unshadow(files: dict[str, str | bytes]) -> None:
    """Let go of modules of the standard library where the program has others of that name."""
    for name, file in files.items():
        module = sys.modules.get(name)
        if module is not None and getattr(module, "__file__", None) != os.fsdecode(file):
            for known in [known for known in sys.modules if known.split(".")[0] == name]:
                del sys.modules[known]


def check_file(module: Any, file: str | bytes | None) -> None:
    """Make sure that a module is the program's, and not another one of that name.

    Raises:
        ImportError: When it is not; the message names both.

    """
    here = getattr(module, "__file__", None)
    if file is None or not isinstance(here, str):
        return
    theirs = os.fsdecode(file)
    if here != theirs and os.path.exists(theirs) and not os.path.samefile(here, theirs):
        raise ImportError(
            f"module `{module.__name__}` is `{here}` in this worker, and "
            f"`{theirs}` in the program; "
            "another program has imported one of that name here: rename one of them, or use "
            "another supervisor for this program"
        )
