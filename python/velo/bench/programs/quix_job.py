"""Quix Streams: a function with state."""

import os

from quixstreams import Application

app = Application(
    broker_address=os.environ["SERVERS"],
    consumer_group=os.environ["GROUP"],
    auto_offset_reset="earliest",
)
payments = app.topic(os.environ["SOURCE"], key_deserializer="str")
results = app.topic(os.environ["RESULTS"], key_serializer="str")


def spending(payment, state):
    """Count the payments of a user, and add them up."""
    count, total = state.get("count", 0) + 1, state.get("total", 0.0) + payment["amount"]
    state.set("count", count)
    state.set("total", total)
    return {"user": payment["user"], "count": count, "total": total}


app.dataframe(payments).apply(spending, stateful=True).to_topic(results)
app.run()
