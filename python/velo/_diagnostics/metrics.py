"""Snapshots of the counters of streams and functions."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["FunctionMetrics", "KeysMetrics", "StreamMetrics"]


class StreamMetrics(NamedTuple):
    """A snapshot of one stream's counters.

    Latency is measured for one event at a time: from the moment at which the event was accepted, to
    the first result that the caller takes after the function has finished the event (it has asked
    for the next one, or ended). Percentiles are within 6 % of the true ones.
    """

    events: int = 0
    """Events that were accepted."""
    results: int = 0
    """Results that were received."""
    bytes_in: int = 0
    """Bytes of encoded events that went to another process; 0 in inline mode."""
    bytes_out: int = 0
    """Bytes of encoded results that came from another process; 0 in inline mode."""
    queued: int = 0
    """Events that were accepted and that the function has not finished."""
    dropped: int = 0
    """Events that were accepted and then dropped for newer ones, with `full="drop_oldest"`."""
    latency_p50: float | None = None
    """Median latency in microseconds; None before the first event was handled."""
    latency_p95: float | None = None
    """95th percentile of latency in microseconds, or None."""
    latency_p99: float | None = None
    """99th percentile of latency in microseconds, or None."""
    duration: float = 0.0
    """How many seconds the stream has been, or was, open."""

    # The names of velo-stream 0.x.

    @property
    def events_in(self) -> int:
        """The same as `events`."""
        return self.events

    @property
    def events_out(self) -> int:
        """The same as `results`."""
        return self.results

    @property
    def latency_p50_us(self) -> float:
        """The same as `latency_p50`, with 0.0 in place of None."""
        return self.latency_p50 or 0.0

    @property
    def latency_p95_us(self) -> float:
        """The same as `latency_p95`, with 0.0 in place of None."""
        return self.latency_p95 or 0.0

    @property
    def latency_p99_us(self) -> float:
        """The same as `latency_p99`, with 0.0 in place of None."""
        return self.latency_p99 or 0.0

    @property
    def duration_ms(self) -> float:
        """`duration` in milliseconds."""
        return self.duration * 1000

    def _repr_html_(self) -> str:
        from velo._html import counters

        return counters(type(self).__name__, self._asdict())


class KeysMetrics(NamedTuple):
    """A snapshot of the counters of the keys that `fn.keys()` has opened."""

    open: int
    """Keys that have not ended."""
    opened: int
    """Keys that were opened so far; one that has ended and begins anew counts again."""
    ended: int
    """Keys that have ended."""
    evicted: int
    """Keys whose input was ended because another key needed their place under `max_concurrent`."""
    events: int
    """Events that were accepted."""
    results: int
    """Results that have come, answers to requests included."""
    queued: int
    """Events that were accepted and that no function has finished, as far as is known."""
    unread: int
    """Results that the iteration has not received. They count for `max_pending`."""
    dropped: int
    """Events that were dropped because the function of their key has returned."""

    def _repr_html_(self) -> str:
        from velo._html import counters

        return counters(type(self).__name__, self._asdict())


class FunctionMetrics(NamedTuple):
    """A snapshot of the counters of all streams of a function, including closed ones.

    The fields of `StreamMetrics` are sums over the streams; percentiles are over the latencies of
    all of them.
    """

    opened: int
    """Streams that were opened so far."""
    open: int
    """Streams whose last result has not been received yet."""
    events: int
    """Events that were accepted."""
    results: int
    """Results that were received."""
    bytes_in: int
    """Bytes of encoded events that went to another process; 0 in inline mode."""
    bytes_out: int
    """Bytes of encoded results that came from another process; 0 in inline mode."""
    queued: int
    """Events that were accepted and that the open streams have not finished."""
    dropped: int
    """Events that were accepted and then dropped for newer ones, with `full="drop_oldest"`."""
    latency_p50: float | None
    """Median latency in microseconds; None before the first event was handled."""
    latency_p95: float | None
    """95th percentile of latency in microseconds, or None."""
    latency_p99: float | None
    """99th percentile of latency in microseconds, or None."""
    keys: int = 0
    """Keys of `keyed` and `keys` that have not ended. They count as streams in `open` as well."""
    keys_opened: int = 0
    """Keys that were opened so far; one that has ended and begins anew counts again."""
    keys_ended: int = 0
    """Keys that have ended."""
    keys_evicted: int = 0
    """Keys whose input was ended because another key needed their place under `max_concurrent`."""

    def _repr_html_(self) -> str:
        from velo._html import counters

        return counters(type(self).__name__, self._asdict())
