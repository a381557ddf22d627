"""The scenarios: subjects that are measured together, and their targets."""

from collections.abc import Callable, Iterator

from velo.bench.measure import Plan, Row
from velo.bench.scenarios import (
    alternatives,
    checkpoint,
    codec,
    concurrency,
    connect,
    frames,
    keyed,
    latency,
    memory,
    scaling,
    spinning,
    startup,
    throughput,
    watching,
)

__all__ = ["SCENARIOS"]

SCENARIOS: dict[str, Callable[[Plan], Iterator[Row]]] = {
    "throughput": throughput.measure,
    "keyed": keyed.measure,
    "latency": latency.measure,
    "startup": startup.measure,
    "concurrency": concurrency.measure,
    "memory": memory.measure,
    "frames": frames.measure,
    "scaling": scaling.measure,
    "spinning": spinning.measure,
    "codec": codec.measure,
    "watching": watching.measure,
    "connect": connect.measure,
    "checkpoint": checkpoint.measure,
    "alternatives": alternatives.measure,
}
