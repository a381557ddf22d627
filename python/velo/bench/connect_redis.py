"""The streams of Redis for `connect`, and the figure of a run, which is read from its results."""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from velo.bench.connect_job import Checked, events
from velo.bench.floors import Measured
from velo.connect.formats import encoder

__all__ = ["StreamJob", "client_of", "measured", "source"]

PAGE = 5_000


@dataclasses.dataclass(frozen=True)
class StreamJob:
    """One run: from a stream to another one.

    Attributes:
        server: The address.
        source: The stream of the events.
        results: The stream of the results, which is not there yet.
        group: The group, which nothing else uses.
        count: The number of events.

    """

    server: str
    source: str
    results: str
    group: str
    count: int


def client_of(server: str) -> Any:
    """Give a client of redis-py."""
    import redis

    return redis.Redis.from_url(f"redis://{server}")


@contextlib.contextmanager
def source(server: str, count: int) -> Iterator[str]:
    """Make a stream with `count` events, each with its user as key; delete it in the end."""
    encode, stream = encoder("json"), _name("events")
    with client_of(server) as client:
        pipe = client.pipeline(transaction=False)
        for number, event in enumerate(events(count), 1):
            pipe.xadd(stream, {"key": event["user"], "value": encode(event)})
            if number % PAGE == 0:
                pipe.execute()
        pipe.execute()
        try:
            yield stream
        finally:
            client.delete(stream)


def measured(
    server: str, source: str, count: int, run: Callable[[StreamJob], Any], *, copied: bool = False
) -> Measured:
    """Run a job, check its results, and give its rate; see `connect_kafka.measured`.

    The time ends when the server adds the last result, as its id says.

    Raises:
        RuntimeError: Results are missing or wrong.

    """
    job = StreamJob(server, source, _name("results"), f"velo-bench-{uuid.uuid4().hex}", count)
    checked, last, behind = Checked(count, copied=copied), b"0-0", b"-"
    with client_of(server) as client:
        try:
            began = run(job)
            while page := client.xrange(job.results, behind, "+", PAGE):
                for _, fields in page:
                    checked.take(fields[b"value"])
                last = page[-1][0]
                behind = b"(" + last
        finally:
            client.delete(job.results)
            client.xgroup_destroy(source, job.group)
    if checked.left:
        raise RuntimeError(f"{checked.left} results are missing")
    if not copied:
        began = checked.began
    ended = int(last.partition(b"-")[0]) / 1000
    if not began < ended:
        raise RuntimeError(f"the clock of the Redis server at {server} is not this machine's")
    return {"rate": count / (ended - began)}


def _name(what: str) -> str:
    return f"velo-bench-{what}-{uuid.uuid4().hex}"
