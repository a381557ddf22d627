"""Redis and a function: a loop over Kafka, whose function keeps its state in Redis."""

import os

import orjson
import redis
from confluent_kafka import Consumer, Producer

state = redis.Redis(port=int(os.environ["REDIS_PORT"]))
brokers = {"bootstrap.servers": os.environ["SERVERS"]}
group = {"group.id": os.environ["GROUP"], "auto.offset.reset": "earliest"}


def spending(payment):
    """Count the payments of a user, and add them up."""
    pipeline = state.pipeline()
    pipeline.hincrby(payment["user"], "count", 1)
    pipeline.hincrbyfloat(payment["user"], "total", payment["amount"])
    count, total = pipeline.execute()
    return {"user": payment["user"], "count": count, "total": total}


consumer, producer = Consumer(brokers | group), Producer(brokers)
consumer.subscribe([os.environ["SOURCE"]])
while True:
    for message in consumer.consume(500, 0.1):
        payment = orjson.loads(message.value())
        result = spending(payment)
        producer.produce(os.environ["RESULTS"], orjson.dumps(result), payment["user"])
    producer.poll(0)
