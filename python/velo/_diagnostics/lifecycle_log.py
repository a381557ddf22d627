"""What happens to streams and workers, as log records of `velo.streams` and `velo.workers`.

Nearly all of it is told at `DEBUG`, so that a program which shows its own `INFO` is not disturbed;
at `INFO` only that a stream goes on in another worker. What needs somebody's attention raises, or
warns, by itself.
"""

from __future__ import annotations

import logging

__all__ = ["stream", "workers"]

_streams = logging.getLogger("velo.streams")
workers = logging.getLogger("velo.workers")


def stream(level: int, name: str, what: str, *details: object) -> None:
    """Tell what has become of a stream."""
    if _streams.isEnabledFor(level):
        _streams.log(level, f"stream `%s` {what}", name, *details, extra={"stream": name})
