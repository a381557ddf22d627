"""The selector of a worker's event loop: it polls the rings before the system's descriptors."""

from __future__ import annotations

import os
import selectors
import traceback
from typing import NoReturn

from velo import _core


class LinkSelector(selectors.DefaultSelector):
    """Handles messages of clients, and spins for a short while where that pays.

    It arms the doorbells only when the loop is about to sleep, so that a busy link costs no system
    call on either side.

    Attributes:
        watch: Polls the links, and sleeps on their doorbells.

    """

    def __init__(self) -> None:
        """Watch no link yet."""
        super().__init__()
        self.watch = _core.LinkWatch(self.fileno())

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for descriptors, and for streams."""
        try:
            others = self.watch.turn(timeout)
        except Exception:
            give_up()
        return super().select(0) if others else []

    def process(self) -> None:
        """Handle the messages that clients have sent so far."""
        try:
            self.watch.process()
        except Exception:
            give_up()


def give_up() -> NoReturn:
    """End the worker: a link has invalid data. The exit tells the client."""
    traceback.print_exc()
    os._exit(70)
