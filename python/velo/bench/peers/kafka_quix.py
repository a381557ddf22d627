"""Quix Streams: a function with a dict, or a state. A program for an environment without velo."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from typing import Any

from quixstreams import Application

job = json.loads(sys.argv[1])
users: dict[str, tuple[int, float]] = {}


def spending(payment: dict[str, Any]) -> dict[str, Any]:
    """Count the events of a user, and add up their amounts."""
    user = payment["user"]
    count, total = users.get(user, (0, 0.0))
    count, total = users[user] = count + 1, total + payment["amount"]
    result = {"user": user, "count": count, "total": total}
    if count == 1:
        result["began"] = time.time()
    return result


def lasting(payment: dict[str, Any], state: Any) -> dict[str, Any]:
    """Do the same with a state on the disk."""
    user = payment["user"]
    count, total = state.get("count", 0) + 1, state.get("total", 0.0) + payment["amount"]
    state.set("count", count)
    state.set("total", total)
    result = {"user": user, "count": count, "total": total}
    if count == 1:
        result["began"] = time.time()
    return result


if __name__ == "__main__":
    app = Application(
        broker_address=job["servers"],
        consumer_group=job["group"],
        auto_offset_reset="earliest",
        auto_create_topics=False,
        use_changelog_topics=False,
        commit_interval=1.0 if job["lasts"] else 5.0,
        state_dir=tempfile.mkdtemp(prefix="velo-bench-quix-"),
        loglevel="ERROR",
    )
    payments = app.topic(job["source"], key_deserializer="str", value_deserializer="json")
    results = app.topic(job["results"], key_serializer="str", value_serializer="json")
    events = app.dataframe(payments)
    if job["lasts"]:
        events.apply(lasting, stateful=True).to_topic(results)
    else:
        events.apply(spending).to_topic(results)
    app.run(count=job["count"], collect=False)
