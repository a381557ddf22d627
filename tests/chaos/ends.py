"""Where the records of a killed program come from, and where its results go.

An end has a `url`. A source has `put`; a sink has `found`, the results that readers see, in their
order. `kill` and `restart` are about the server.
"""

import asyncio
import contextlib
import importlib
import json
import secrets
import threading

__all__ = ["SINKS", "SOURCES", "Servers"]

HANGS = 60


class Servers:
    """The servers that were asked for, one of each kind, in a folder."""

    _KINDS = {
        "kafka": "Kafka",
        "postgres": "Postgres",
        "redis": "Redis",
        "nats": "Nats",
        "rabbitmq": "RabbitMQ",
    }

    def __init__(self, folder):
        self._folder = folder
        self._started = {}

    def __getitem__(self, name):
        """The server, which is started when it is asked for first."""
        if name not in self._started:
            kind = getattr(importlib.import_module(f"servers.{name}"), self._KINDS[name])
            self._started[name] = kind(self._folder / name).start()
        return self._started[name]

    def stop(self):
        """Stop them all."""
        while self._started:
            self._started.popitem()[1].stop()


class End:
    """One end of a run.

    Attributes:
        title: What tables call it.
        url: What `endpoint_of` makes it of.
        alone: The same for a program that shares it with no other one.
        server: Its server; None for a file.

    """

    server = None

    @property
    def alone(self):
        return self.url

    def settle(self):
        """Wait until the server of a source has noticed the end of the last program."""

    def close(self):
        """Let go of the server."""


class FileSource(End):
    """A file with one line for each event."""

    title = "a file"

    def __init__(self, _servers, folder):
        self._path = folder / "in.ndjson"
        self.url = self._path.as_uri()

    def put(self, events):
        """Have these events read."""
        self._path.write_bytes(b"".join(_line(event) + b"\n" for event in events))


class FileSink(End):
    """A file, which is cut where the checkpoint has known it last."""

    title = "a file"

    def __init__(self, _servers, folder):
        self._path = folder / "out.ndjson"
        self.url = self._path.as_uri()

    def found(self):
        """The results."""
        return [json.loads(line) for line in self._path.read_bytes().splitlines()]


class KafkaEnd(End):
    """A topic of three partitions; a key stays in one."""

    def __init__(self, servers, _folder):
        self.server = servers["kafka"]
        self._topic = self.server.topic(3, f"survival-{secrets.token_hex(6)}")
        place = f"kafka://{self.server.address}/{self._topic}"
        self.url = f"{place}?config.reconnect.backoff.max.ms=200"

    def close(self):
        """Close the clients."""
        self.server.disconnect()


class KafkaSource(KafkaEnd):
    """A topic that is read up to its end."""

    title = "Kafka"

    def __init__(self, servers, folder):
        super().__init__(servers, folder)
        self._of_group = f"&group={self._topic}"
        self.url += f"{self._of_group}&until=end"

    @property
    def alone(self):
        return self.url.replace(self._of_group, "")

    def put(self, events):
        """Have these events read."""
        for key in {event["k"] for event in events}:
            mine = [_line(event) for event in events if event["k"] == key]
            self.server.produce(self._topic, mine, str(key))


class KafkaSink(KafkaEnd):
    """A topic of which readers see what is committed."""

    title = "Kafka, in transactions"

    def found(self):
        """The results."""
        from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

        consumer = Consumer(
            {
                "bootstrap.servers": self.server.address,
                "group.id": "any",
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
            }
        )
        consumer.assign([TopicPartition(self._topic, number, 0) for number in range(3)])
        found, ends = [], 0
        with contextlib.closing(consumer):
            while ends < 3:
                message = consumer.poll(HANGS)
                if message is None:
                    raise TimeoutError(f"topic {self._topic}: {ends} of 3 ends in {HANGS} s")
                if message.error() is None:
                    found.append(json.loads(message.value()))
                elif message.error().code() == KafkaError._PARTITION_EOF:
                    ends += 1
                elif message.error().fatal():
                    raise KafkaException(message.error())
        return found


class PostgresSink(End):
    """A table with a row for each result."""

    title = "PostgreSQL"

    def __init__(self, servers, _folder):
        self.server = servers["postgres"]
        self._table = f"survival_{secrets.token_hex(6)}"
        with self._connect() as connection:
            connection.execute(
                f"create table {self._table} "
                "(id bigserial primary key, k int, v int, what text, n int, fold int)"
            )
        login = f"{self.server.admin}:{self.server.admin_password}"
        self.url = f"postgres://{login}@127.0.0.1:{self.server.port}/postgres/{self._table}"

    def _connect(self):
        import psycopg

        return psycopg.connect(self.server.dsn(), autocommit=True)

    def found(self):
        """The results."""
        names = ("k", "v", "what", "n", "fold")
        with self._connect() as connection:
            rows = connection.execute(f"select {', '.join(names)} from {self._table} order by id")
            return [dict(zip(names, row, strict=True)) for row in rows]


class RedisSource(End):
    """A stream that a consumer group reads: entries come again until they are acknowledged."""

    title = "a group of Redis"

    def __init__(self, servers, _folder):
        self.server = servers["redis"]
        self._stream = f"survival-{secrets.token_hex(6)}"
        self.url = f"{self.server.url}/{self._stream}?group=g&consumer=c&until=end&batch=20"

    def put(self, events):
        """Have these events read."""
        with contextlib.closing(self.server.client()) as client:
            pipe = client.pipeline(transaction=False)
            for event in events:
                pipe.xadd(self._stream, {"value": _line(event)})
            pipe.execute()


class RedisSink(End):
    """A stream that takes back nothing."""

    title = "a Redis stream, which takes back nothing"

    def __init__(self, servers, _folder):
        self.server = servers["redis"]
        self._stream = f"survival-{secrets.token_hex(6)}"
        self.url = f"{self.server.url}/{self._stream}"

    def found(self):
        """The results."""
        with contextlib.closing(self.server.client()) as client:
            return [json.loads(fields[b"value"]) for _, fields in client.xrange(self._stream)]


class NatsSource(End):
    """A stream that a durable consumer reads: messages come again until they are acknowledged."""

    title = "a durable consumer of NATS"

    def __init__(self, servers, _folder):
        self.server = servers["nats"]
        self._subject = f"survival-{secrets.token_hex(6)}"
        self.url = f"{self.server.url}/{self._subject}?durable=d&ack_wait=1&until=end&batch=20"

    def put(self, events):
        """Have these events read."""
        asyncio.run(self._publish([_line(event) for event in events]))

    async def _publish(self, lines):
        import nats

        client = await nats.connect(self.server.url)
        stream = client.jetstream()
        await stream.add_stream(name=self._subject, subjects=[self._subject])
        for line in lines:
            await stream.publish(self._subject, line)
        await client.close()


class RabbitSource(End):
    """A queue: messages come again, as new ones, until they are acknowledged."""

    title = "a queue of RabbitMQ"

    def __init__(self, servers, _folder):
        self.server = servers["rabbitmq"]
        self._queue = f"survival-{secrets.token_hex(6)}"
        # Few messages at a time, so that there are many writes to the journal.
        self.url = f"amqp://127.0.0.1:{self.server.port}/{self._queue}?until=end&prefetch=20"

    @contextlib.asynccontextmanager
    async def _channel(self):
        import aio_pika

        async with await aio_pika.connect(host="127.0.0.1", port=self.server.port) as connection:
            yield await connection.channel()

    def put(self, events):
        """Have these events read."""
        asyncio.run(self._publish([_line(event) for event in events]))

    async def _publish(self, lines):
        from aio_pika import Message

        async with self._channel() as channel:
            await channel.declare_queue(self._queue, durable=True)
            for line in lines:
                message = Message(line, delivery_mode=2)
                await channel.default_exchange.publish(message, self._queue)

    def settle(self):
        """Wait until it has taken back what a killed program had: the next one reads to the end."""
        asyncio.run(self._settle())

    async def _settle(self):
        async with self._channel() as channel, asyncio.timeout(HANGS):
            while True:  # until the server has noticed that the connection of the program is gone
                queue = await channel.declare_queue(self._queue, passive=True)
                if not queue.declaration_result.consumer_count:
                    return
                await asyncio.sleep(0.005)


class WebsocketSource(End):
    """A server that sends each event once, to the connection that there is."""

    title = "a WebSocket"
    _MANY = 10

    def __init__(self, _servers, _folder):
        from websockets.sync.server import serve

        self._lines, self._sent = [], 0
        self._sending = threading.Lock()
        self._server = serve(self._send, "127.0.0.1", 0)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"ws://127.0.0.1:{self._server.socket.getsockname()[1]}/"

    def put(self, events):
        """Have these events read."""
        self._lines = [_line(event).decode() for event in events]

    def _send(self, connection):
        from websockets.exceptions import ConnectionClosed

        with self._sending, contextlib.suppress(ConnectionClosed):
            while self._sent < len(self._lines):
                some = self._lines[self._sent : self._sent + self._MANY]
                self._sent += len(some)  # also where they do not arrive
                for line in some:
                    connection.send(line)
                if not connection.ping(ack_on_close=True).wait(HANGS):
                    raise TimeoutError(f"the program has not answered a ping within {HANGS} s")

    def close(self):
        """Stop the server."""
        self._server.shutdown()
        self._thread.join()


SOURCES = {
    "file": FileSource,
    "kafka": KafkaSource,
    "redis": RedisSource,
    "nats": NatsSource,
    "rabbitmq": RabbitSource,
    "websocket": WebsocketSource,
}
SINKS = {"file": FileSink, "kafka": KafkaSink, "postgres": PostgresSink, "redis": RedisSink}


def _line(event):
    return json.dumps(event).encode()
