"""What functions log in workers, as it arrives in the client's `logging`."""

from __future__ import annotations

import logging
import pickle

__all__ = ["Levels", "deliver"]


def deliver(pid: int, packed: bytes) -> None:
    """Handle a record of the worker `pid`: `record.worker` and `record.stream` name its origin."""
    record = logging.makeLogRecord(pickle.loads(packed))
    record.worker = pid
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


class Levels:
    """The levels that this process logs at, for workers to send no more than that."""

    def __init__(self) -> None:
        self._mark: tuple[int, int, int] | None = None
        self._packed = b""

    def packed(self) -> bytes:
        """Return the levels; the same object as long as nothing has changed."""
        manager = logging.root.manager
        # The levels of other loggers are looked at when there are new loggers: looking at all of
        # them whenever a stream opens would take longer than opening it.
        mark = (logging.root.level, manager.disable, len(manager.loggerDict))
        if mark != self._mark:
            self._mark = mark
            levels = {
                name: logger.level
                for name, logger in list(manager.loggerDict.items())
                if isinstance(logger, logging.Logger) and logger.level
            }
            self._packed = pickle.dumps((manager.disable, {"root": logging.root.level, **levels}))
        return self._packed
