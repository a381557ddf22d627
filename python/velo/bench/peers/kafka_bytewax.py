"""Bytewax: `stateful_map`, one worker. A program for an environment that has no velo."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from datetime import timedelta
from typing import Any

import bytewax.operators as op
import orjson
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import run_main

job = json.loads(sys.argv[1])


def keyed(message: Any) -> tuple[str, Any]:
    """Give the user of a message, and its event."""
    payment = orjson.loads(message.value)
    return payment["user"], payment


def spending(state: tuple[int, float] | None, payment: Any) -> tuple[tuple[int, float], Any]:
    """Count the events of a user, and add up their amounts."""
    count, total = state or (0, 0.0)
    count, total = count + 1, total + payment["amount"]
    result = {"user": payment["user"], "count": count, "total": total}
    if count == 1:
        result["began"] = time.time()
    return (count, total), result


def message(result: tuple[str, Any]) -> Any:
    """Make a message of a result."""
    return KafkaSinkMessage(result[0].encode(), orjson.dumps(result[1]))


if __name__ == "__main__":
    flow = Dataflow("connect")
    source = op.input("in", flow, KafkaSource([job["servers"]], [job["source"]], tail=False))
    users = op.map("keyed", source, keyed)
    results = op.map("message", op.stateful_map("spending", users, spending), message)
    op.output("out", results, KafkaSink([job["servers"]], job["results"]))
    if job["lasts"]:
        with tempfile.TemporaryDirectory(prefix="velo-bench-bytewax-") as folder:
            init_db_dir(folder, 1)
            run_main(
                flow, epoch_interval=timedelta(seconds=1), recovery_config=RecoveryConfig(folder)
            )
    else:
        run_main(flow)
