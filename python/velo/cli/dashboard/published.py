"""What a program publishes for Prometheus: its sources, and its functions in inline mode.

A supervisor knows neither: they live in the event loop of their program.
"""

from __future__ import annotations

import time
import urllib.request
from collections import defaultdict
from http.client import HTTPException
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

__all__ = ["Published"]

_BOUND = 2.0  # seconds
_MOST = 16 << 20  # bytes
# The figures of a source, by the name of their sample.
_SOURCE = {
    "velo_source_records_total": "records",
    "velo_source_bad_records_total": "bad",
    "velo_source_dead_letters_total": "dead_letters",
    "velo_source_dropped_records_total": "dropped",
    "velo_source_retries_total": "retried",
    "velo_source_commits_total": "commits",
    "velo_source_reconnects_total": "reconnects",
}
_PARTITION = {"velo_source_lag_records": "lag", "velo_source_committed_position": "committed"}
_FUNCTION = {
    "velo_streams": "streams",
    "velo_keys": "keys",
    "velo_events_total": "events",
    "velo_events_queued": "queued",
}

_Row = dict[str, Any]


class Published:
    """Reads the metrics of a program repeatedly; rates are those between two looks.

    Args:
        address: Where they are served: `http://127.0.0.1:9464/metrics`.

    """

    def __init__(self, address: str) -> None:
        self._address = address if "://" in address else f"http://{address}"
        self._before: dict[Any, tuple[float, float]] = {}

    def look(self) -> dict[str, Any]:
        """Return the sources and the inline functions, or why there are none."""
        if not self._address.startswith(("http://", "https://")):
            return self._nothing("it is no address of HTTP")
        try:
            with urllib.request.urlopen(self._address, timeout=_BOUND) as answer:
                text = answer.read(_MOST).decode()
            sources, functions = _tables(text)
        except (OSError, HTTPException, ValueError, KeyError) as error:
            return self._nothing(str(getattr(error, "reason", error)) or type(error).__name__)
        for row in sources:
            row["lag_total"] = sum(row["lag"].values()) if row["lag"] else None
            self._add_rate(row, (row["function"], row["source"]), row["records"])
        for row in functions:
            self._add_rate(row, row["function"], row["events"])
        return {"address": self._address, "error": None, "sources": sources, "functions": functions}

    def _nothing(self, why: str) -> dict[str, Any]:
        return {"address": self._address, "error": why, "sources": [], "functions": []}

    def _add_rate(self, row: _Row, which: Any, count: float) -> None:
        now = time.monotonic()
        then, before = self._before.get(which, (now, count))
        passed = now - then
        row["events_per_second"] = max(0.0, count - before) / passed if passed > 0 else None
        self._before[which] = (now, count)


def _tables(text: str) -> tuple[list[_Row], list[_Row]]:
    """Return the rows of the sources, and those of the functions in inline mode."""
    sources: dict[tuple[str, str], _Row] = defaultdict(
        lambda: {**dict.fromkeys(_SOURCE.values(), 0), "lag": {}, "committed": {}}
    )
    functions: dict[str, _Row] = defaultdict(lambda: dict.fromkeys(_FUNCTION.values(), 0))
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels, value = sample.labels, sample.value
            if sample.name in _SOURCE:
                row = sources[labels["function"], labels["source"]]
                row[_SOURCE[sample.name]] = value
            elif sample.name in _PARTITION:
                row = sources[labels["function"], labels["source"]]
                row[_PARTITION[sample.name]][labels["partition"]] = value
            elif sample.name in _FUNCTION and labels.get("mode") == "inline":
                functions[labels["function"]][_FUNCTION[sample.name]] = value
    return (
        [{"function": of, "source": name, **row} for (of, name), row in sources.items()],
        [{"function": name, **row} for name, row in functions.items()],
    )
