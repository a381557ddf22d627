"""Steps at which a test has this process fail, as a power cut would have it.

`VELO_FAILPOINT=tick:3` kills the process by SIGKILL when a tick reaches its third step, and
`VELO_FAILPOINT=tick:3:5` when that happens for the fifth time.
"""

from __future__ import annotations

import collections
import os
import signal
from collections.abc import Callable

__all__ = ["reached"]

hook: Callable[[str, int], None] | None = None
"""Called with area and step in place of what the environment says; a test sets it."""

_area, _step, _time = (os.environ.get("VELO_FAILPOINT", "") + "::").split(":")[:3]
_counts: collections.Counter[tuple[str, int]] = collections.Counter()


def reached(area: str, step: int) -> None:
    """Fail here, if a test has said so."""
    if hook is not None:
        hook(area, step)
    elif area == _area and str(step) == _step:
        _counts[area, step] += 1
        if _counts[area, step] >= int(_time or 1):
            os.kill(os.getpid(), signal.SIGKILL)
