"""Notes what a run waits for, and says so when that takes long: nothing waits in silence."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from velo._diagnostics import waits
from velo._diagnostics.source_figures import name_of

__all__ = ["closed", "waiting_for"]

_log = logging.getLogger("velo.connect")

# The seconds after which the log names the reason of a wait.
_LOOK_AFTER = 10.0


@contextlib.contextmanager
def waiting_for(what: str, of: Any) -> Iterator[None]:
    """Note a wait while the block runs, and log a warning when that takes long.

    Args:
        what: What is waited for: the name of a method, or "the end".
        of: The source or the sink that it is of, or its name.

    """
    name = of if isinstance(of, str) else name_of(of)
    timer = asyncio.get_running_loop().call_later(_LOOK_AFTER, _say, what, name)
    wait = waits.begin(name, what)
    try:
        yield
    finally:
        timer.cancel()
        waits.end(wait)


async def closed(endpoint: Any) -> None:
    """Close a source or a sink, if it has `close`."""
    if (close := getattr(endpoint, "close", None)) is not None:
        with waiting_for("`close`", endpoint):
            await close()


def _say(what: str, name: str) -> None:
    _log.warning("has waited %g s for %s of `%s`, and goes on waiting", _LOOK_AFTER, what, name)
