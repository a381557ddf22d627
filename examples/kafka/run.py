"""Flights from topic to topic of Kafka, by a program that is killed in the middle.

    pip install 'velo-stream[kafka,examples]'
    python examples/kafka/run.py

Starts a broker from the cache (`tools/kafka_broker.py`, which fetches it with Maven the first
time), produces flights into one topic, and runs `velo run` to another one. That is killed with
SIGKILL after a third of the results, and started again. At the end it counts: is there a result for
every flight, and how many came twice?
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BROKER = ROOT / "tools" / "kafka_broker.py"
PARTITIONS = 4

sys.path.insert(0, str(HERE.parent))
import data  # noqa: E402


@contextlib.contextmanager
def broker(folder: Path, partitions: int = PARTITIONS) -> Iterator[str]:
    """Run a broker with an empty folder; its address."""
    subprocess.run([sys.executable, BROKER, "install"], check=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(BROKER), "run", "--port", str(port), "--folder", str(folder)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        address = f"127.0.0.1:{port}"
        admin = AdminClient({"bootstrap.servers": address, "log_level": 0})
        while not _answers(admin):
            if process.poll() is not None:
                raise SystemExit(f"the broker does not start: see {folder / 'log'}")
        topics = [NewTopic(name, partitions, 1) for name in ("flights", "delays")]
        for made in admin.create_topics(topics).values():
            made.result(30)
        yield address
    finally:
        process.terminate()
        process.wait()


def _answers(admin: AdminClient) -> bool:
    try:
        return bool(admin.list_topics(timeout=1).brokers)
    except KafkaException:
        return False


def produce(address: str, count: int, begin: int = 0) -> int:
    """Write flights as JSON, keyed by aircraft; the number of those that have one."""
    producer = Producer(
        {"bootstrap.servers": address, "linger.ms": 20, "enable.idempotence": True, "log_level": 3}
    )
    produced = 0
    with data.flights().open() as file:
        for number, row in enumerate(islice(csv.DictReader(file), count)):
            if number < begin or not row["tailnum"]:
                continue
            flight = {
                "id": number,
                "tailnum": row["tailnum"],
                "flight": row["carrier"] + row["flight"],
                "delay": float(row["dep_delay"] or 0),
            }
            produced += 1
            while True:
                try:
                    producer.produce("flights", json.dumps(flight), key=row["tailnum"])
                    break
                except BufferError:
                    producer.poll(0.1)
    producer.flush()
    return produced


def start(address: str) -> subprocess.Popen[bytes]:
    """Start `velo run` from topic to topic, up to the end of what is there."""
    source = f"kafka://{address}/flights?group=delays&until=end&instance_id=one"
    command = [
        sys.executable, "-m", "velo", "run", f"{HERE / 'delays.py'}:delays", "--key", "tailnum",
        "--input", source, "--output", f"kafka://{address}/delays", "--mode", "process",
    ]  # fmt: skip
    print(f"$ velo {' '.join(command[3:])}", flush=True)
    return subprocess.Popen(command, start_new_session=True)


class Results:
    """Reads the results beside the program."""

    def __init__(self, address: str, partitions: int = PARTITIONS) -> None:
        self.found: list[dict[str, Any]] = []
        self._consumer = Consumer(
            {"bootstrap.servers": address, "group.id": "count", "enable.auto.commit": False}
        )
        self._consumer.assign([TopicPartition("delays", n, 0) for n in range(partitions)])

    def read(self) -> None:
        """Read what is there."""
        for message in self._consumer.consume(500, 0.05):
            if (value := message.value()) is not None and message.error() is None:
                self.found.append(json.loads(value))

    def close(self) -> None:
        """Read the rest, and close."""
        for place in self._consumer.assignment():
            _, end = self._consumer.get_watermark_offsets(place)
            while self._consumer.position([place])[0].offset < end > 0:
                self.read()
        self._consumer.close()


def main() -> None:
    """Do all of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--flights", type=int, default=400_000, help="how many, in their order")
    count = parser.parse_args().flights
    with broker(data.OUT / "kafka") as address:
        flights = produce(address, count)
        print(f"{flights:,} flights are in the topic `flights`")
        results = Results(address)
        program = start(address)
        while len(results.found) < flights // 3 and program.poll() is None:
            results.read()
        os.killpg(program.pid, signal.SIGKILL)
        program.wait()
        print(f"killed it when {len(results.found):,} results were there")
        begin = time.monotonic()
        program = start(address)
        if program.wait() != 0:
            raise SystemExit("the second run has failed")
        print(f"the second run took {time.monotonic() - begin:.1f} s")
        results.close()
    times = Counter(result["id"] for result in results.found)
    print(f"{len(results.found):,} results for {len(times):,} of {flights:,} flights")
    print(f"{flights - len(times):,} flights without a result")
    print(f"{sum(times.values()) - len(times):,} results came twice")
    if len(times) != flights:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
