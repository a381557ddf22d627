"""velo between two topics of Kafka."""

from __future__ import annotations

import asyncio
from typing import Any

from velo import StreamFn, connect
from velo.bench import connect_redis
from velo.bench.connect_job import events, spending
from velo.bench.connect_kafka import Job, measured
from velo.bench.connect_redis import StreamJob
from velo.bench.floors import Measured
from velo.bench.ours import Mode

__all__ = ["kafka", "redis"]


def kafka(mode: Mode, workers: int | None, servers: str, source: str, count: int) -> Measured:
    """Run the function for each user, from the first event to the last one."""

    async def run(job: Job) -> None:
        fn = await _warm(mode, workers)
        payments = connect.kafka(job.servers, job.source, group=job.group, until="end")
        await fn.keyed(payments, key="user").into(connect.kafka(job.servers, job.results))

    return measured(servers, source, count, lambda job: asyncio.run(run(job)))


def redis(mode: Mode, workers: int | None, server: str, source: str, count: int) -> Measured:
    """As `kafka`, between streams of Redis."""

    async def run(job: StreamJob) -> None:
        fn = await _warm(mode, workers)
        at = f"redis://{job.server}"
        payments = connect.redis(at, job.source, group=job.group, until="end")
        await fn.keyed(payments, key="user").into(connect.redis(at, job.results))

    return connect_redis.measured(server, source, count, lambda job: asyncio.run(run(job)))


async def _warm(mode: Mode, workers: int | None) -> StreamFn[Any, Any]:
    """Give the function with its workers there."""
    fn = spending.options(mode=mode, workers=workers)
    async for _ in fn.keyed(list(events(100)), key="user"):
        pass
    return fn
