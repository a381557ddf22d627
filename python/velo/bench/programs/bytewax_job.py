"""Bytewax: `python -m bytewax.run bytewax_job`."""

import os

import bytewax.operators as op
import orjson
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource
from bytewax.dataflow import Dataflow

brokers = [os.environ["SERVERS"]]


def keyed(message):
    """Give the user of a message, and its payment."""
    payment = orjson.loads(message.value)
    return payment["user"], payment


def spending(state, payment):
    """Count the payments of a user, and add them up."""
    count, total = state or (0, 0.0)
    count, total = count + 1, total + payment["amount"]
    return (count, total), {"user": payment["user"], "count": count, "total": total}


def message(result):
    """Make a message of a result."""
    return KafkaSinkMessage(result[0].encode(), orjson.dumps(result[1]))


flow = Dataflow("payments")
payments = op.map(
    "keyed", op.input("in", flow, KafkaSource(brokers, [os.environ["SOURCE"]])), keyed
)
results = op.map("message", op.stateful_map("spending", payments, spending), message)
op.output("out", results, KafkaSink(brokers, os.environ["RESULTS"]))
