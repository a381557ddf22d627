"""Faust: an agent with a dict of its own. A program for an environment that has no velo."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from typing import Any

import faust

job = json.loads(sys.argv[1])

app = faust.App(
    job["group"],
    broker=f"kafka://{job['servers']}",
    store="memory://",
    datadir=tempfile.mkdtemp(prefix="velo-bench-faust-"),
    topic_replication_factor=1,
    topic_disable_leader=True,
    consumer_auto_offset_reset="earliest",
    web_enabled=False,
)
payments = app.topic(job["source"], key_type=str, key_serializer="raw", value_serializer="json")
results = app.topic(job["results"], key_type=str, key_serializer="raw", value_serializer="json")


@app.agent(payments)  # type: ignore[untyped-decorator,unused-ignore]
async def spending(stream: Any) -> None:
    """Count the events of a user, and add up their amounts."""
    users: dict[str, tuple[int, float]] = {}
    left = job["count"]
    async for payment in stream:
        user = payment["user"]
        count, total = users.get(user, (0, 0.0))
        count, total = users[user] = count + 1, total + payment["amount"]
        result = {"user": user, "count": count, "total": total}
        if count == 1:
            result["began"] = time.time()
        await results.send(key=user, value=result)
        left -= 1
        if not left:
            await app.producer.flush()
            os._exit(0)  # how long it takes to leave the group is not measured


if __name__ == "__main__":
    worker = faust.Worker(app, loglevel="error", quiet=True, redirect_stdouts=False)
    worker.execute_from_commandline()
