"""What not every system has: forks, and flags of files."""

from __future__ import annotations

import os
from collections.abc import Callable

__all__ = ["OWN_FILE", "after_fork"]

# For files that are velo's alone: links are not followed, children do not inherit the descriptor,
# and no byte is changed on its way.
OWN_FILE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def after_fork(call: Callable[[], object]) -> None:
    """Have something called in each forked child of this process, where processes fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=call)
