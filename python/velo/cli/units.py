"""Durations and sizes, for people."""

from __future__ import annotations

import math

__all__ = ["duration", "latency", "size"]


def duration(seconds: float) -> str:
    """Return hours, minutes and seconds."""
    minutes, whole = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole:02}"


def latency(microseconds: float | None) -> str:
    """Return a duration in three or four characters and a unit."""
    if microseconds is None:
        return ""
    for most, unit in ((1e3, "µs"), (1e6, "ms")):
        if microseconds < 0.9995 * most:
            value = microseconds / most * 1e3
            return f"{value:.3g} {unit}"
    return f"{microseconds / 1e6:.1f} s"


def size(count: int) -> str:
    """Return bytes in MiB; less than one in KiB."""
    if count < 2**20:
        return f"{math.ceil(count / 2**10)} KiB"
    return f"{count / 2**20:.0f} MiB"
