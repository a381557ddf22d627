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
        self._counted = (0, 0)

    def packed(self) -> bytes:
        """Return levels, and loggers that have handlers; the same object while nothing changes.

        A worker does not run its own handlers of those loggers: each record appears once.
        """
        # Reading the levels of all loggers would take longer than opening a stream. `logging`
        # clears its caches when any level changes, so a mark in one of them shows a change.
        cache: dict[object, bool] = getattr(logging.root, "_cache", {})
        manager = logging.root.manager
        # Nor do they know of new handlers; those are counted.
        counted = len(manager.loggerDict), len(getattr(logging, "_handlerList", ()))
        if self not in cache or counted != self._counted:
            self._counted = counted
            cache[self] = True
            loggers = {
                name: logger
                for name, logger in list(manager.loggerDict.items())
                if isinstance(logger, logging.Logger)
            }
            levels = {name: logger.level for name, logger in loggers.items() if logger.level}
            handled = [name for name, logger in loggers.items() if logger.handlers]
            if logging.root.handlers:
                handled.append("root")
            levels["root"] = logging.root.level
            self._packed = _core.dumps((manager.disable, levels, handled))
        return self._packed
