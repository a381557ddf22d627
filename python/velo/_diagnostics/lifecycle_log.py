"""Log records of `velo.streams` and `velo.workers`: opened, ended, moved, died.

Nearly all have the level `DEBUG`, so that they do not disturb a program that shows its own `INFO`.
The exception is a stream that goes on in another worker. Faults raise, or warn, in addition.
"""

from __future__ import annotations

import logging

__all__ = ["stream", "workers"]

_streams = logging.getLogger("velo.streams")
workers = logging.getLogger("velo.workers")


def stream(level: int, name: str, event: str, *details: object) -> None:
    """Log an event in the life of a stream."""
    if _streams.isEnabledFor(level):
        _streams.log(level, f"stream `%s` {event}", name, *details, extra={"stream": name})
