"""The last minutes: a point a second for the charts, and deaths and recoveries of workers."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict, deque
from typing import Any

__all__ = ["History"]

_SECONDS = 600
_MOST_INCIDENTS = 50
# A stream whose worker has gone, or does not answer, is remembered for this time; seconds.
_RECOVERY = 60.0


class History:
    """Remembers what looks have shown.

    Supervisors keep no such past: a worker has died that is gone while it had streams; a stream was
    recovered that goes on in another worker, and a lane for which the same program opens another.
    """

    def __init__(self) -> None:
        self._points: deque[dict[str, Any]] = deque(maxlen=_SECONDS)
        self._incidents: deque[dict[str, Any]] = deque(maxlen=_MOST_INCIDENTS)
        self._deaths = self._recoveries = 0
        self._workers: dict[tuple[str, int], dict[str, Any]] = {}
        self._streams: dict[tuple[str, int, str], dict[str, Any]] = {}
        # The workers of lanes that have died, by supervisor, client and function.
        self._lost: dict[tuple[str, int, str], list[int]] = defaultdict(list)

    def points(self) -> list[dict[str, Any]]:
        """Return the points so far, the oldest first."""
        return list(self._points)

    def take(self, look: dict[str, Any]) -> dict[str, Any]:
        """Add a look; return its point, and the latest incidents."""
        now, states = time.time(), look["states"]
        self._find_deaths(states, now)
        self._find_recoveries(states, now)
        streams = [stream for state in states for stream in state["streams"]]
        busy = [s for s in streams if s["events_per_second"] and s["latency_p50"] is not None]
        inline = [one for published in look["published"] for one in published["functions"]]
        workers = [worker for state in states for worker in state["workers"]]
        point = {
            "time": now,
            "rate": _sum(workers, "events_per_second") + _sum(inline, "events_per_second"),
            # Of the streams that handle events now: the median stream, and the slowest one.
            "p50": statistics.median(s["latency_p50"] for s in busy) if busy else None,
            "p99": max((s["latency_p99"] or 0 for s in busy), default=None),
            "queued": _sum(workers, "queued") + _sum(inline, "queued"),
            "unread": _sum(streams, "results_queued"),
            "lag": _sum(look["sources"], "lag_total") if look["sources"] else None,
            "streams": _sum(workers, "residents"),
            "keys": sum(s["keys"]["live"] for s in streams if s["keys"]),
            "workers": len(workers),
            "deaths": self._deaths,
            "recoveries": self._recoveries,
        }
        self._points.append(point)
        return {"point": point, "incidents": list(self._incidents)}

    def _find_deaths(self, states: list[dict[str, Any]], now: float) -> None:
        there = {
            (state["socket"], worker["id"]): {
                **worker,
                "program": state["program"],
                # It is told to end, and has time to.
                "leaves": worker["stopping"] or worker["retiring"] or state["draining"],
            }
            for state in states
            for worker in state["workers"]
        }
        running = {state["socket"] for state in states}
        for place, worker in self._workers.items():
            if place in there or place[0] not in running:
                continue
            if worker["residents"] and not worker["leaves"]:
                self._deaths += 1
                self._note("death", now, worker, {"streams": worker["residents"]})
        self._workers = there

    def _find_recoveries(self, states: list[dict[str, Any]], now: float) -> None:
        running = {
            (state["socket"], worker["id"]) for state in states for worker in state["workers"]
        }
        there = {
            (state["socket"], stream["client"], stream["name"]): {
                **stream,
                "program": state["program"],
                "seen": now,
            }
            for state in states
            for stream in state["streams"]
            if stream["name"] is not None
        }
        silent = {
            (state["socket"], stream["worker"])
            for state in states
            for stream in state["streams"]
            if stream["name"] is None
        }
        for name, stream in self._streams.items():
            if stream["keys"] and (name[0], stream["worker"]) not in running and name not in there:
                self._lost[(*name[:2], stream["function"])].append(stream["worker"])
        for name, stream in there.items():
            before, replaces = self._streams.get(name), None
            if before is None and stream["keys"]:
                lost = self._lost[(*name[:2], stream["function"])]
                replaces = lost.pop(0) if lost else None
            if replaces is None and (before or stream)["worker"] == stream["worker"]:
                continue
            self._recoveries += 1
            what = {"stream": stream["name"], "worker": stream["worker"], "replaces": replaces}
            self._note("recovery", now, stream, what)
        # Between two workers a stream is not seen, nor while its own does not answer.
        away = {
            name: stream
            for name, stream in self._streams.items()
            if name not in there
            and not stream["keys"]
            and (name[0], stream["worker"]) not in running - silent
            and stream["seen"] > now - _RECOVERY
        }
        self._streams = {**away, **there}

    def _note(self, kind: str, now: float, where: dict[str, Any], more: dict[str, Any]) -> None:
        incident = {"kind": kind, "time": now, "program": where["program"], "pid": where["pid"]}
        self._incidents.append({"worker": where.get("id"), **incident, **more})


def _sum(rows: list[dict[str, Any]], field: str) -> float:
    return sum(row[field] or 0 for row in rows)
