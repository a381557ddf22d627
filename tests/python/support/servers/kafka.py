"""A Kafka broker with listeners without and with authentication, and with TLS."""

import contextlib
import itertools
import json
import subprocess
import sys
import time

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from helpers import HANG
from servers.kafka_jars import BROKER, need_kafka
from servers.server import Server, free_port

__all__ = ["USERS", "Kafka"]

# `alice` may do what a test allows her by an access rule, and `root` everything.
USERS = {"alice": "hunter2", "root": "hunter2-root"}

# Prints how many partitions each member of a group has.
_DESCRIBE = """
import json, sys
from confluent_kafka.admin import AdminClient
address, group = sys.argv[1:]
admin = AdminClient({"bootstrap.servers": address})
members = admin.describe_consumer_groups([group])[group].result(30).members
print(json.dumps([len(member.assignment.topic_partitions) for member in members]))
"""

_numbers = itertools.count()


class Kafka(Server):
    """One node. `address` takes everyone, `sasl_address` takes USERS, `tls_address` encrypts."""

    name = "kafka"

    def __init__(self, folder):
        super().__init__(folder)
        need_kafka()
        self.address = f"127.0.0.1:{self.port}"
        sasl, tls, self._controller = free_port(), free_port(), free_port()
        self.sasl_address, self.tls_address = f"127.0.0.1:{sasl}", f"127.0.0.1:{tls}"
        self.certificate = self.folder / "certificate.pem"
        self._admin = self._producer = None
        key = self.folder / "key.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
             "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
             "-keyout", key, "-out", self.certificate],
            check=True, capture_output=True,
        )  # fmt: skip
        store = self.folder / "keystore.pem"
        store.write_text(key.read_text() + self.certificate.read_text())
        users = " ".join(f'user_{name}="{password}"' for name, password in USERS.items())
        plain = "org.apache.kafka.common.security.plain.PlainLoginModule"
        (self.folder / "more.properties").write_text(
            f"listeners=PLAINTEXT://{self.address},CONTROLLER://127.0.0.1:{{controller}},"
            f"SASL://{self.sasl_address},TLS://{self.tls_address}\n"
            "sasl.enabled.mechanisms=PLAIN\n"
            f"listener.name.sasl.plain.sasl.jaas.config={plain} required {users};\n"
            f"ssl.keystore.type=PEM\nssl.keystore.location={store}\n"
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n"
            "super.users=User:ANONYMOUS;User:root\n"
            "group.consumer.min.heartbeat.interval.ms=100\n"
            "group.consumer.heartbeat.interval.ms=200\n"
            "transaction.abort.timed.out.transaction.cleanup.interval.ms=500\n"
            # After a kill, the broker waits until its old self counts as dead.
            "broker.heartbeat.interval.ms=200\nbroker.session.timeout.ms=2000\n"
        )

    def command(self):
        return [
            sys.executable, BROKER, "run", "--folder", self.folder, "--port", str(self.port),
            "--controller", str(self._controller), "--properties", self.folder / "more.properties",
        ]  # fmt: skip

    def start(self):
        """Start it, again where its coordinator of groups stays away.

        After a kill, Kafka (4.3.1) may load the offsets of groups while the partition that has
        them is not online yet ("Failed to load metadata" in its log). After 1 of 76 kills it did
        not load them again.
        """
        again = (self.folder / "data").exists()
        super().start()
        for _ in range(3 if again else 0):
            if self._has_coordinator():
                break
            self.kill()
            super().start()
        return self

    def _has_coordinator(self):
        # Not by the admin client, whose requests to a coordinator may abort this process:
        # "Assertion `eonce->refcnt > 0' failed" (librdkafka 2.16).
        place, deadline = TopicPartition("__consumer_offsets", 0), time.monotonic() + 30
        consumer = Consumer({**self._config(), "group.id": "probe"})
        try:
            while time.monotonic() < deadline:
                with contextlib.suppress(KafkaException):
                    consumer.committed([place], timeout=2)
                    return True
                time.sleep(0.1)
            return False
        finally:
            consumer.close()

    def probe(self):
        self.admin.list_topics(timeout=1)

    @property
    def admin(self):
        if self._admin is None:
            self._admin = AdminClient(self._config())
        return self._admin

    def stop(self):
        self.disconnect()
        super().stop()

    def disconnect(self):
        self._admin = self._producer = None

    def _config(self):
        # Clients outlive restarts of the broker, and try again soon.
        return {
            "bootstrap.servers": self.address,
            "log_level": 0,
            "reconnect.backoff.ms": 10,
            "reconnect.backoff.max.ms": 100,
        }

    def topic(self, partitions=1, name=None, **config):
        """Make a topic, and give its name."""
        name = name or f"topic-{next(_numbers)}"
        new = NewTopic(name, partitions, 1, config={k: str(v) for k, v in config.items()})
        deadline = time.monotonic() + 30
        while True:
            try:
                self.admin.create_topics([new])[name].result(30)
                return name
            except KafkaException as error:
                # A broker that was late for a heartbeat counts as away for a moment.
                away = error.args[0].code() == KafkaError.INVALID_REPLICATION_FACTOR
                if not away or time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def members(self, group):
        """How many partitions each member of a group has; None where the broker does not say it.

        Asked by a program of its own, for the reason in `_has_coordinator`.
        """
        command = [sys.executable, "-c", _DESCRIBE, self.address, group]
        while True:
            done = subprocess.run(command, capture_output=True, text=True, timeout=HANG)
            if done.returncode >= 0:
                return None if done.returncode else json.loads(done.stdout)

    def add_partitions(self, topic, total):
        self.admin.create_partitions([NewPartitions(topic, total)])[topic].result(30)

    def delete_before(self, topic, partition, offset):
        """Delete the records before an offset, as retention does."""
        place = TopicPartition(topic, partition, offset)
        for done in self.admin.delete_records([place]).values():
            done.result(30)

    def produce(self, topic, values, key=None, headers=(), partition=-1, timestamp=0, **config):
        """Put raw values into a topic, in order, and wait until they are there."""
        if config:
            producer = Producer({**self._config(), **config})
        else:
            producer = self._producer = self._producer or Producer(
                {
                    **self._config(),
                    "enable.idempotence": True,
                    "max.in.flight.requests.per.connection": 1,  # see `PRODUCER` of velo
                    "linger.ms": 0,
                }
            )
        errors = []

        def delivered(error, _message):
            if error is not None:
                errors.append(error)

        for value in values:
            producer.produce(
                topic, value, key=key, headers=list(headers) or None, partition=partition,
                timestamp=round(timestamp * 1000), on_delivery=delivered,
            )  # fmt: skip
        assert producer.flush(60) == 0
        if errors:
            raise KafkaException(errors[0])

    def reader(self, topic):
        """A consumer of all of a topic, to be closed."""
        consumer = Consumer({**self._config(), "group.id": "reader", "enable.auto.commit": False})
        numbers = self.admin.list_topics(topic, timeout=10).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, 0) for number in numbers])
        return consumer

    def read(self, topic, count, seconds=30):
        """The first messages of a topic, in the order of their arrival in each partition."""
        consumer = self.reader(topic)
        found, deadline = [], time.monotonic() + seconds
        try:
            while len(found) < count:
                assert time.monotonic() < deadline, f"{len(found)} of {count} messages"
                message = consumer.poll(0.1)
                if message is not None and message.error() is None:
                    found.append(message)
        finally:
            consumer.close()
        return found
