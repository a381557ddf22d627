"""What one open page shows of a look: its tables, sorted and filtered as the page asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from velo.cli.supervisor.overview import address_of
from velo.cli.supervisor.status import condition

__all__ = ["ORDERS", "View"]

_Row = dict[str, Any]

# The fields that streams can be sorted by; numbers go downwards.
ORDERS: dict[str, Callable[[_Row], Any]] = {
    "name": lambda row: row["name"] or "",
    "function": lambda row: row["function"] or "",
    "age": lambda row: row["age"] or 0,
    "events": lambda row: row["events"] or 0,
    "rate": lambda row: row["events_per_second"] or 0,
    "queued": lambda row: row["queued"] or 0,
    "p99": lambda row: row["latency_p99"] or 0,
    "worker": lambda row: row["worker"],
}
_UPWARDS = ("name", "function", "worker")
_MOST_STREAMS = 200
_STREAM = (
    *("name", "function", "key", "age", "events", "events_per_second", "queued", "results_queued"),
    *("latency_p50", "latency_p99", "worker", "pid", "state", "keys", "client", "running"),
)
_WORKER = ("id", "pid", "cpu", "memory", "residents", "events_per_second", "queued", "events")


class View(NamedTuple):
    """The tables of a page.

    Attributes:
        find: Only streams whose name, key or function contains this text.
        order: The field that they are sorted by, of `ORDERS`.
        turned: Whether they are sorted the other way round.

    """

    find: str
    order: str
    turned: bool

    def of(self, look: dict[str, Any]) -> dict[str, Any]:
        """Return the tables."""
        states = look["states"]
        streams = _streams(states)
        found = [row for row in streams if self._fits(row)]
        down = (self.order not in _UPWARDS) != self.turned
        found.sort(key=lambda row: (row["name"] or "", row["address"]))
        found.sort(key=ORDERS[self.order], reverse=down)
        return {
            "point": look["point"],
            "nothing": look["nothing"],
            "programs": [_program(state) for state in states],
            "workers": [_worker(worker, state) for state in states for worker in state["workers"]],
            "functions": _functions(streams, look["published"]),
            "streams": found[:_MOST_STREAMS],
            "found": len(found),
            "open": len(streams) + sum(state["streams_omitted"] for state in states),
            "sources": look["sources"],
            "published": [_without_tables(one) for one in look["published"]],
            "checkpoints": look["checkpoints"],
            "incidents": look["incidents"],
        }

    def _fits(self, row: _Row) -> bool:
        return any(self.find in (row[field] or "") for field in ("name", "key", "function"))


def _streams(states: list[_Row]) -> list[_Row]:
    return [
        {
            **{field: stream[field] for field in _STREAM},
            "socket": state["socket"],
            "program": state["program"],
            "address": address_of(stream),
        }
        for state in states
        for stream in (*state["streams"], *state["detached_sessions"])
    ]


def _program(state: _Row) -> _Row:
    fields = ("pid", "program", "embedded", "uptime", "velo", "draining", "socket", "waiting")
    return {field: state[field] for field in fields}


def _worker(worker: _Row, state: _Row) -> _Row:
    where = {"program": state["program"], "socket": state["socket"]}
    return {**{name: worker[name] for name in _WORKER}, "condition": condition(worker), **where}


def _without_tables(published: _Row) -> _Row:
    return {"address": published["address"], "error": published["error"]}


def _functions(streams: list[_Row], published: list[_Row]) -> list[_Row]:
    """Return the sums over the streams of each function of each program."""
    sums: dict[tuple[str, str], _Row] = {}
    for stream in streams:
        name = stream["function"] or "?"
        row = sums.setdefault((stream["socket"], name), _no_streams(name, stream["program"]))
        row["detached"] += stream["state"] == "detached"
        row["lanes"] += stream["keys"] is not None
        row["streams"] += stream["state"] != "detached" and stream["keys"] is None
        row["keys"] += stream["keys"]["live"] if stream["keys"] else 0
        for field in ("events", "events_per_second", "queued"):
            row[field] += stream[field] or 0
        for field in ("latency_p50", "latency_p99"):
            row[field] = max(row[field] or 0, stream[field] or 0) or None
    rows = [*sums.values()]
    for one in published:
        for function in one["functions"]:
            known = {**function, "events_per_second": function["events_per_second"] or 0}
            rows.append({**_no_streams("", one["address"]), **known, "mode": "inline"})
    return sorted(rows, key=lambda row: -row["events_per_second"])


def _no_streams(function: str, program: str | None) -> _Row:
    counts = ("streams", "lanes", "keys", "detached", "events", "events_per_second", "queued")
    none = {"latency_p50": None, "latency_p99": None}
    name = {"function": function, "program": program, "mode": "process"}
    return {**name, **dict.fromkeys(counts, 0), **none}
