"""velo: `velo run velo_job.py:spending -i kafka://... -k user -o kafka://...`."""

from velo import stream_fn


@stream_fn
async def spending(payments):
    """Count the payments of a user, and add them up."""
    count, total = 0, 0.0
    async for payment in payments:
        count, total = count + 1, total + payment["amount"]
        yield {"user": payment["user"], "count": count, "total": total}
