"""Log records of functions in workers, on their way into the client's `logging`."""

from __future__ import annotations

import logging

from velo import _core

__all__ = ["Levels", "deliver"]


def deliver(pid: int, packed: bytes) -> None:
    """Handle a record of the worker `pid`: `record.worker` and `record.stream` name its origin."""
    import pickle

    record = logging.makeLogRecord(pickle.loads(packed))
    record.worker = pid
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


class Levels:
    """The log levels of this process. Workers send only the records that it would handle."""

    def __init__(self) -> None:
        self._packed = b""

    def packed(self) -> bytes:
        """Return the encoded levels; the same object as long as they have not changed."""
        # Reading the levels of all loggers would take longer than opening a stream. `logging`
        # clears its caches when any level changes, so a mark in one of them shows a change.
        cache: dict[object, bool] = getattr(logging.root, "_cache", {})
        if self not in cache:
            cache[self] = True
            manager = logging.root.manager
            levels = {
                name: logger.level
                for name, logger in list(manager.loggerDict.items())
                if isinstance(logger, logging.Logger) and logger.level
            }
            self._packed = _core.dumps((manager.disable, {"root": logging.root.level, **levels}))
        return self._packed
