"""velo between two topics of Kafka."""

from __future__ import annotations

import asyncio

from velo import connect
from velo.bench.connect_job import events, spending
from velo.bench.connect_kafka import Job, measured
from velo.bench.floors import Measured
from velo.bench.ours import Mode

__all__ = ["kafka"]


def kafka(mode: Mode, workers: int | None, servers: str, source: str, count: int) -> Measured:
    """Run the function for each user, from the first event to the last one."""

    async def run(job: Job) -> None:
        fn = spending.options(mode=mode, workers=workers)
        async for _ in fn.keyed(list(events(100)), key="user"):
            pass  # the workers are there
        payments = connect.kafka(job.servers, job.source, group=job.group, until="end")
        await fn.keyed(payments, key="user").into(connect.kafka(job.servers, job.results))

    return measured(servers, source, count, lambda job: asyncio.run(run(job)))
