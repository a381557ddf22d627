"""What a notebook shows of a stream function and of a stream."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from velo._config import StreamConfig
from velo._diagnostics.metrics import FunctionMetrics
from velo._html import counters, histogram, table

if TYPE_CHECKING:
    from velo._function.spec import FunctionSpec

__all__ = ["function_html", "stream_html"]

# The upper bounds of the bars of a histogram, in seconds: three to a power of ten.
_BOUNDS = [step * 10.0**power for power in range(-7, 2) for step in (1, 2, 5)]


def function_html(spec: FunctionSpec) -> str:
    """Return the settings that differ from the defaults, and the counters."""
    default, given = StreamConfig().to_dict(), spec.config.to_dict()
    changed = {name: value for name, value in given.items() if value != default[name]}
    settings = [(name, repr(value)) for name, value in changed.items()]
    metrics = FunctionMetrics(**spec.stats.figures())
    below = ""
    if metrics.opened:
        below = counters("its streams", metrics._asdict(), drawing=_drawn(spec.stats))
    mode = "" if "mode" in changed else f", {spec.config.mode}"
    return table(f"stream function {spec.name}{mode}", settings, below=below)


def stream_html(stream: Any) -> str:
    """Return whether it is open, and its counters."""
    state = "closed" if stream.closed else "open"
    return counters(f"stream {stream.name}, {state}", stream.metrics._asdict())


def _drawn(stats: Any) -> str:
    seen = stats.latencies(_BOUNDS)
    below = [0, *seen.below, seen.count]
    return histogram(_BOUNDS, [upper - lower for lower, upper in pairwise(below)])
