"""The figures of a supervisor, its workers and their functions, for Prometheus to scrape."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from velo.cli.errors import Failure
from velo.cli.supervisor.admin_connection import AdminConnection
from velo.cli.supervisor.figures import Watcher
from velo.errors import PoolError

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["SupervisorFigures"]

_State = dict[str, Any]

# Gauges of the supervisor as a whole.
_WHOLE: dict[str, tuple[str, Callable[[_State], float]]] = {
    "draining": ("1 while it takes no new streams.", lambda state: state["draining"]),
    "workers": ("Worker processes.", lambda state: len(state["workers"])),
    "workers_limit": (
        "How many workers there may be; 0: as many as programs ask for.",
        lambda state: state["max_workers"],
    ),
    "clients": (
        "Programs that are connected, those that only look included.",
        lambda state: sum(client["pid"] != os.getpid() for client in state["clients"]),
    ),
}
# The figures of the checkpoint of its sessions, if it has one.
_CHECKPOINT: dict[str, tuple[str, Callable[[_State], float]]] = {
    "tick_timestamp_seconds": ("When the last tick was stored.", lambda kept: kept["made"] or 0.0),
    "unsaved_states": ("States of sessions that are not stored yet.", lambda kept: kept["unsaved"]),
    "failing": ("1 while states cannot be stored.", lambda kept: kept["error"] is not None),
}
# The figures of each worker: the help text, whether it is a counter, and the value.
_WORKER: dict[str, tuple[str, bool, Callable[[_State], float]]] = {
    "cpu_seconds": ("Processor time that it has used.", True, lambda w: w["cpu_ms"] / 1e3),
    "events": ("Events that were sent to it.", True, lambda w: w["events"]),
    "results": ("Results that it has sent.", True, lambda w: w["results"]),
    "resident_memory_bytes": ("Memory that it has resident.", False, lambda w: w["memory"]),
    "streams": ("Streams that are open there.", False, lambda w: w["residents"]),
    "sessions_detached": (
        "Sessions without an attachment.",
        False,
        lambda w: w["detached"],
    ),
    "key_requests_waiting": (
        "Requests for a key that wait for whoever has it.",
        False,
        lambda w: w["waiting"],
    ),
    "events_queued": (
        "Events that wait there, or are being handled.",
        False,
        lambda w: w["queued"],
    ),
    "busy": (
        "1 while it does not answer, since a function holds it.",
        False,
        lambda w: not w["answers"],
    ),
    "retiring": (
        "1 while it takes no new streams, and ends with those that are open.",
        False,
        lambda w: w["retiring"],
    ),
}


class SupervisorFigures:
    """Makes metrics of the state of a supervisor and its workers at each scrape."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: str | None = None
        self._watcher: Watcher | None = None

    def watch(self, socket: str) -> None:
        """Set the socket of the supervisor; before that there are no metrics."""
        self._socket = socket

    def describe(self) -> Iterable[Metric]:
        """Name the metrics to come, because the registration precedes the supervisor."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Look at the supervisor."""
        with self._lock:
            state = self._look()
        return () if state is None else self._families(state)

    def _look(self) -> _State | None:
        if self._socket is None:
            return None
        try:
            if self._watcher is None:
                self._watcher = Watcher(AdminConnection(self._socket))
            state = self._watcher.look()
            while not self._watcher.complete:
                state = self._watcher.look()
            return state
        except (Failure, PoolError):  # it is about to end
            self._watcher = None
            return None

    def _families(self, state: _State) -> Iterable[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for name, (what, value) in _WHOLE.items():
            yield GaugeMetricFamily(f"velo_supervisor_{name}", what, float(value(state)))
        if (kept := state["checkpoint"]) is not None:
            for name, (what, value) in _CHECKPOINT.items():
                yield GaugeMetricFamily(f"velo_checkpoint_{name}", what, float(value(kept)))
        for name, (what, total, value) in _WORKER.items():
            kind = CounterMetricFamily if total else GaugeMetricFamily
            family = kind(f"velo_worker_{name}", what, labels=["worker"])
            for worker in state["workers"]:
                if worker["pid"]:  # not before it was forked
                    family.add_metric([str(worker["id"])], float(value(worker)))
            yield family
        streams: dict[str, int] = defaultdict(int)
        queued: dict[str, int] = defaultdict(int)
        slowest: dict[str, float] = defaultdict(float)
        for stream in state["streams"]:
            function = stream["function"] or "?"
            streams[function] += 1
            queued[function] += stream["queued"]
            slowest[function] = max(slowest[function], (stream["latency_p99"] or 0.0) / 1e6)
        lanes: dict[str, int] = defaultdict(int)
        keys: dict[str, int] = defaultdict(int)
        slowest_key: dict[str, float] = defaultdict(float)
        for stream in state["streams"]:
            if (known := stream["keys"]) is not None:
                function = stream["function"] or "?"
                lanes[function] += 1
                keys[function] += known["live"]
                slow = max((one["seconds"] for one in known["slowest"]), default=0.0)
                slowest_key[function] = max(slowest_key[function], slow)
        for name, what, values in (
            ("lanes", "Streams that run the keys of a function.", lanes),
            ("keys", "Keys of a function that have not ended.", keys),
            (
                "slowest_key_seconds",
                "How long the slowest key of a function has had its event, or took for one step.",
                slowest_key,
            ),
            ("streams", "Streams of a function that are open.", streams),
            ("events_queued", "Events that wait for a function, or are being handled.", queued),
            (
                "slowest_p99_seconds",
                "99th percentile of latency, of the open stream where it is greatest.",
                slowest,
            ),
        ):
            family = GaugeMetricFamily(f"velo_function_{name}", what, labels=["function"])
            for function, figure in values.items():
                family.add_metric([function], figure)
            yield family
