"""The figures of a supervisor for `velo top`, `velo status` and the metrics.

They join the supervisor's own answer, the figures of streams in shared memory, and the answers of
the workers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

from velo.cli.supervisor.admin_connection import AdminConnection

__all__ = ["Watcher", "joined", "with_lanes"]

# The attributes of a stream about which its worker has not answered.
_UNKNOWN: dict[str, Any] = {
    "name": None,
    "function": None,
    "age": None,
    "key": None,
    "state": "open",
}
# A detached session has none of these: it has no client, no slot and no ring.
_NOT_COUNTED: dict[str, Any] = dict.fromkeys(
    (
        "link",
        "slot",
        "client",
        "events",
        "events_per_second",
        "queued",
        "results",
        "results_queued",
        "bytes_in",
        "bytes_out",
        "latency_p50",
        "latency_p99",
        "running_event",
        "keys",
    )
)


class Watcher:
    """Looks at a supervisor repeatedly; rates are those between two looks.

    A worker names each stream once, so its answers are kept for the next look.
    """

    def __init__(self, connection: AdminConnection) -> None:
        self._connection = connection
        self._state: dict[str, Any] = {}
        self._before: dict[Any, tuple[float, ...]] = {}
        # The moment up to which the streams of each worker are known, and the known attributes of
        # the streams, by worker and link, and then by slot.
        self._known: dict[int, int] = {}
        self._named: dict[tuple[int, int], dict[int, dict[str, Any]]] = {}
        # The detached sessions of each worker, by the number of their detachment.
        self._detached: dict[int, dict[int, dict[str, Any]]] = {}
        self.complete = False
        """Whether every worker that answers has named all of its streams."""

    def look(self) -> dict[str, Any]:
        """Return the state of the supervisor, with all its streams and detached sessions.

        Rates are None in the first look, and for what is new.
        """
        self.begin(self._connection.state())
        return self.finish()

    def begin(self, state: dict[str, Any]) -> None:
        """Ask the workers, once the supervisor has sent its state."""
        self._state = state
        known = list(self._known.items())
        detached = [(worker, max(there)) for worker, there in self._detached.items() if there]
        self._connection.supervisor.look(known, detached)

    def finish(self) -> dict[str, Any]:
        """Return the state as `look` does, once `begin` was called."""
        state = self._state
        looks = {look["worker"]: look for look in self._connection.look()}
        now = time.monotonic()
        self._take_names(looks.values(), now)
        seen: dict[Any, tuple[float, ...]] = {}
        for worker in state["workers"]:
            worker["answers"] = (looks.get(worker["id"]) or {}).get("answer") is not None
            worker["cpu"] = worker["events_per_second"] = None
            figures = (now, worker["events"], worker["cpu_ms"])
            key = worker["id"]
            if (before := self._before.get(key)) is not None:
                worker["events_per_second"] = _rate(before, figures, 1)
                worker["cpu"] = _rate(before, figures, 2) / 10  # percent of a core
            seen[key] = figures
        state["streams"] = []
        for look in looks.values():
            answer = json.loads(look["answer"]) if look["answer"] else {}
            for stream in with_lanes(joined(look, self._told(look, now)), answer.get("lanes", [])):
                key = (look["worker"], stream["link"], stream["slot"])
                seen[key] = (now, stream["events"])
                before = self._before.get(key)
                stream["events_per_second"] = _rate(before, seen[key], 1) if before else None
                state["streams"].append(stream)
        for worker in state["workers"]:
            # The events of lanes wait for their keys, and not in the ring.
            here = [s for s in state["streams"] if s["keys"] and s["worker"] == worker["id"]]
            worker["queued"] += sum(s["queued"] - s.pop("in_ring") for s in here)
        state["streams_omitted"] = sum(
            link["omitted"] for look in looks.values() for link in look["links"]
        )
        self._before = seen
        state["detached_sessions"] = [
            _as_detached(one, look, now)
            for look in looks.values()
            for one in self._detached.get(look["worker"], {}).values()
        ]
        return state

    def _take_names(self, looks: Iterable[dict[str, Any]], now: float) -> None:
        """Keep the answers of the workers, and drop the streams that have ended."""
        before, self._named, self.complete = self._named, {}, True
        known: dict[int, int] = {}
        for look in looks:
            worker = look["worker"]
            for link in look["links"]:
                place = (worker, link["link"])
                names = self._named[place] = before.get(place, {})
                if not link["omitted"]:
                    there = {figures["slot"] for figures in link["streams"]}
                    for slot in names.keys() - there:
                        del names[slot]
            if look["answer"] is None:
                known[worker] = self._known.get(worker, 0)
                continue
            answer = json.loads(look["answer"])
            self._take_detached(look, answer["detached"], now)
            said = answer["open"]
            known[worker] = said["until"]
            self.complete &= not said["more"]
            for link, slot, name, function, opened, key in said["opened"]:
                # By the clock of this process, whatever the worker's says.
                since = now - (said["now"] - opened) / 1e9
                names = self._named.setdefault((worker, link), {})
                names[slot] = {"name": name, "function": function, "since": since, "key": key}
        self._known = known
        self._detached = {one: there for one, there in self._detached.items() if one in known}

    def _take_detached(self, look: dict[str, Any], said: dict[str, Any], now: float) -> None:
        """Update the detached sessions of a worker from its answer."""
        worker = look["worker"]
        there = self._detached.get(worker, {})
        for number, name, key, function, began, since in said["named"]:
            there[number] = {
                "name": name,
                "function": function,
                "key": key,
                "place": f"detached:{look['pid']}:{number}",
                "began": now - (said["now"] - began) / 1e9,
                "since": now - (said["now"] - since) / 1e9,
            }
        self._detached[worker] = {one: there[one] for one in said["shown"] if one in there}
        self.complete &= not said["more"]

    def _told(self, look: dict[str, Any], now: float) -> dict[tuple[int, int], dict[str, Any]]:
        """Return the known attributes of a worker's streams, by link and slot."""
        return {
            (link["link"], slot): {
                "name": one["name"],
                "function": one["function"],
                "age": round(now - one["since"], 3),
                "key": one["key"],
            }
            for link in look["links"]
            for slot, one in self._named[look["worker"], link["link"]].items()
        }


def joined(
    look: dict[str, Any], told: dict[tuple[int, int], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the streams of a worker, each with its figures and its known attributes.

    Args:
        look: The supervisor's record of the worker.
        told: The worker's own answer about its streams, by link and slot.

    """
    place = {"worker": look["worker"], "pid": look["pid"]}
    streams = []
    for link in look["links"]:
        running = link["running"]
        for figures in link["streams"]:
            here = running is not None and running["slot"] == figures["slot"]
            streams.append(
                {
                    **_UNKNOWN,
                    **told.get((link["link"], figures["slot"]), {}),
                    **figures,
                    **place,
                    "link": link["link"],
                    "client": link["client"],
                    "running": here,
                    "running_event": running["event"] if here else None,
                    # Microseconds, as in the metrics of a stream.
                    "latency_p50": figures["latency_p50"] / 1e3 or None,
                    "latency_p99": figures["latency_p99"] / 1e3 or None,
                }
            )
    return streams


def with_lanes(
    streams: list[dict[str, Any]], said: Iterable[Sequence[Any]]
) -> list[dict[str, Any]]:
    """Add the figures of their keys to those streams of a worker that are lanes."""
    lanes = {(link, slot): figures for link, slot, *figures in said}
    for stream in streams:
        stream["keys"] = None
        evicted = stream.pop("evicted")
        if (figures := lanes.get((stream["link"], stream["slot"]))) is None:
            continue
        live, opened, handled, slowest = figures
        # A lane's worker empties the ring at once: waiting events wait for their keys.
        stream["in_ring"] = stream["queued"]
        stream["queued"] = max(stream["queued"], stream["events"] - handled)
        stream["keys"] = {
            "live": live,
            "opened": opened,
            "ended": opened - live,
            "evicted": evicted,
            "pending": stream["queued"],
            "slowest": [
                {"key": key, "seconds": round(seconds, 6), "awaits": awaits}
                for key, seconds, awaits in slowest
            ],
        }
    return streams


def _as_detached(one: dict[str, Any], look: dict[str, Any], now: float) -> dict[str, Any]:
    return {
        **_NOT_COUNTED,
        "name": one["name"],
        "function": one["function"],
        "key": one["key"],
        "worker": look["worker"],
        "pid": look["pid"],
        "state": "detached",
        "place": one["place"],
        "age": round(now - one["began"], 3),
        "detached": round(now - one["since"], 3),
        "running": False,
    }


def _rate(before: tuple[float, ...], now: tuple[float, ...], which: int) -> float:
    # Where a slot was given to another stream meanwhile, it counts from zero again.
    return round(max(0.0, now[which] - before[which]) / max(now[0] - before[0], 1e-6), 1)
