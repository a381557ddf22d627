"""What is to be seen of a supervisor.

What it says itself, what shared memory shows of its streams, and what the workers say of them, put
together.
"""

from __future__ import annotations

import json
import time
from typing import Any

from velo.cli.supervisor.line import Line

__all__ = ["Watcher", "joined"]

# What a stream is shown as whose worker did not say.
_UNKNOWN: dict[str, Any] = {"name": None, "function": None, "age": None}


class Watcher:
    """Looks at a supervisor again and again; rates are those between two looks."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._before: dict[Any, tuple[float, ...]] = {}

    def look(self) -> dict[str, Any]:
        """Return the state of the supervisor, with all its streams.

        Rates are None in the first look, and for what is new.
        """
        state = self._line.state()
        self._line.supervisor.look()
        looks = {look["worker"]: look for look in self._line.look()}
        now = time.monotonic()
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
            for stream in joined(look):
                if "events" not in stream:
                    continue  # it has opened, or ended, between the two halves of the look
                key = (look["worker"], stream["link"], stream["slot"])
                seen[key] = (now, stream["events"])
                before = self._before.get(key)
                stream["events_per_second"] = _rate(before, seen[key], 1) if before else None
                state["streams"].append(stream)
        state["streams_omitted"] = sum(
            link["omitted"] for look in looks.values() for link in look["links"]
        )
        self._before = seen
        return state


def _rate(before: tuple[float, ...], now: tuple[float, ...], which: int) -> float:
    # Where a slot was given to another stream meanwhile, it counts from zero again.
    return round(max(0.0, now[which] - before[which]) / max(now[0] - before[0], 1e-6), 1)


def joined(look: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the streams of a worker: the figures of each, and what the worker says of it.

    What it says of streams that are not open comes last, without figures.
    """
    said = json.loads(look["answer"])["streams"] if look["answer"] else []
    known = {(one.get("link"), one.get("slot")): one for one in said}
    streams = []
    for link in look["links"]:
        running = link["running"] or (None, None)
        for figures in link["streams"]:
            told = known.pop((link["link"], figures["slot"]), _UNKNOWN)
            here = running[0] == figures["slot"]
            streams.append(
                {
                    **_UNKNOWN,
                    **told,
                    **figures,
                    "link": link["link"],
                    "client": link["client"],
                    "running": here,
                    "running_event": running[1] if here else None,
                }
            )
    place = {"worker": look["worker"], "pid": look["pid"]}
    return [{"running": False, **one, **place} for one in [*streams, *known.values()]]
