"""What a stream has done so far."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["FunctionMetrics", "StreamMetrics"]


class StreamMetrics(NamedTuple):
    """A snapshot of one stream's counters.

    Latency is measured by following one event at a time, from the moment it was accepted until the
    caller's side, when it next takes a result, learns that the function is done with the event (it
    has asked for the one after, or ended). Percentiles are within 6 % of the true ones.
    """

    events: int
    """Events that were accepted."""
    results: int
    """Results that were received."""
    bytes_in: int
    """Bytes of encoded events that went to another process; 0 in inline mode."""
    bytes_out: int
    """Bytes of encoded results that came from another process; 0 in inline mode."""
    queued: int
    """Events that were accepted and that the function is not done with."""
    dropped: int
    """Events that were accepted and then dropped for newer ones, with `full="drop_oldest"`."""
    latency_p50: float | None
    """Median latency in microseconds; None before the first event was handled."""
    latency_p95: float | None
    """95th percentile of latency in microseconds, or None."""
    latency_p99: float | None
    """99th percentile of latency in microseconds, or None."""
    duration: float
    """Seconds that the stream has been, or was, open."""


class FunctionMetrics(NamedTuple):
    """A snapshot of the counters of all streams of a function, those that are gone included.

    The fields that `StreamMetrics` has as well are sums over the streams; percentiles are of the
    latencies of all of them.
    """

    opened: int
    """Streams that were opened so far."""
    open: int
    """Streams whose last result was not received yet."""
    events: int
    """Events that were accepted."""
    results: int
    """Results that were received."""
    bytes_in: int
    """Bytes of encoded events that went to another process; 0 in inline mode."""
    bytes_out: int
    """Bytes of encoded results that came from another process; 0 in inline mode."""
    queued: int
    """Events that were accepted and that the open streams are not done with."""
    dropped: int
    """Events that were accepted and then dropped for newer ones, with `full="drop_oldest"`."""
    latency_p50: float | None
    """Median latency in microseconds; None before the first event was handled."""
    latency_p95: float | None
    """95th percentile of latency in microseconds, or None."""
    latency_p99: float | None
    """99th percentile of latency in microseconds, or None."""
