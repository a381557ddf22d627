"""Tools for tests of stream functions, and of programs that use them.

- `load_recording` and `replay` run recorded streams again (`fn.options(record=FOLDER)`, `velo
  record`).
- `VirtualClock` and `run_virtual` run timeouts and ticks without waiting for them.
- `crash_at` makes workers die on purpose.

pytest finds two fixtures: `virtual_clock`, a `VirtualClock`, and `recording`, in turn each of the
recordings that the mark `recordings` names.
"""

from __future__ import annotations

from velo.testing._clock import VirtualClock, run_virtual
from velo.testing._crash import crash_at
from velo.testing._recordings import Recording, Step, load_recording, recordings
from velo.testing._replay import Difference, Replay, ReplayDifference, replay

__all__ = [
    "Difference",
    "Recording",
    "Replay",
    "ReplayDifference",
    "Step",
    "VirtualClock",
    "crash_at",
    "load_recording",
    "recordings",
    "replay",
    "run_virtual",
]
