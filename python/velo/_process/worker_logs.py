"""What functions log in workers, as it arrives in the client's `logging`."""

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
    """The levels that this process logs at, for workers to send no more than that."""

    def __init__(self) -> None:
        self._packed = b""

    def packed(self) -> bytes:
        """Return the levels; the same object as long as nothing has changed."""
        # To look at all loggers whenever a stream opens would take longer than opening it. Loggers
        # forget what they have looked up when any level changes: our mark goes with it.
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
