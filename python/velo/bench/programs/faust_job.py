"""Faust: an agent with a table."""

import os

import faust

app = faust.App(
    os.environ["GROUP"],
    broker=f"kafka://{os.environ['SERVERS']}",
    topic_partitions=int(os.environ["PARTITIONS"]),
    topic_replication_factor=1,
    consumer_auto_offset_reset="earliest",
    web_enabled=False,
)
payments = app.topic(os.environ["SOURCE"], key_type=str, key_serializer="raw")
results = app.topic(os.environ["RESULTS"], key_type=str, key_serializer="raw")
users = app.Table("users", default=lambda: (0, 0.0))


@app.agent(payments)
async def spending(payments):
    """Count the payments of a user, and add them up."""
    async for user, payment in payments.items():
        count, total = users[user]
        count, total = users[user] = count + 1, total + payment["amount"]
        await results.send(key=user, value={"user": user, "count": count, "total": total})


app.main()
