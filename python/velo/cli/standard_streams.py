"""Standard streams that are closed, as under cron and some daemons."""

from __future__ import annotations

import os
import sys

__all__ = ["closed", "fill"]

closed: set[int] = set()
"""The descriptors 0, 1 and 2 that were closed when this process started."""


def fill() -> None:
    """Open closed standard streams at `/dev/null`.

    Otherwise the first file that the process opens would get the number of a standard stream, and
    code that uses standard streams by number would write into that file. Python has None for them.
    """
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        where: int | str = os.devnull  # should the number be another file's by now
        try:
            os.fstat(fd)
        except OSError:
            where = fd
            # The lowest free descriptor: the lower ones are open by now.
            null = os.open(os.devnull, os.O_RDONLY if fd == 0 else os.O_WRONLY)
            if null != fd:  # pragma: no cover - another thread was faster
                os.dup2(null, fd)
                os.close(null)
            os.set_inheritable(fd, True)
            closed.add(fd)
        if getattr(sys, name) is None:
            closed.add(fd)
            # It lives as long as the process.
            stream = open(where, mode, closefd=isinstance(where, str))  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
