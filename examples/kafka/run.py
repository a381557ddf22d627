"""Flights from topic to topic of Kafka, by a program that is killed in the middle.

    pip install 'velo-stream[kafka,examples]'
    python examples/kafka/run.py

Starts a broker from the cache (`tools/kafka_broker.py`, which fetches it with Maven the first
time), produces flights into one topic, and runs `velo run` to another one. That is killed with
SIGKILL after a third of the results, and started again. At the end it counts: is there a result for
every flight, and how many came twice? Ends with exit code 1 when flights lack a result, when the
broker or the program fails, or when nothing comes for a minute.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
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
# Seconds without anything new until the example gives up.
SILENCE = 60.0

sys.path.insert(0, str(HERE.parent))
import data  # noqa: E402

Check = Callable[[], None]


class Waiting:
    """Ends the example when what it waits for does not come.

    Args:
        awaited: What is waited for, as messages name it.
        checks: Each raises SystemExit when what has to bring it has ended.

    """

    def __init__(self, awaited: str, *checks: Check) -> None:
        self._awaited = awaited
        self._checks = checks
        self._heard_at = time.monotonic()

    def heard(self) -> None:
        """Note that something came."""
        self._heard_at = time.monotonic()

    def check(self) -> None:
        """Look whether waiting makes sense.

        Raises:
            SystemExit: It says what has ended, or what nothing came of.

        """
        for check in self._checks:
            check()
        if time.monotonic() - self._heard_at > SILENCE:
            raise SystemExit(f"waited {SILENCE:g} s for {self._awaited}, and nothing came")


@contextlib.contextmanager
def own_folder(name: str) -> Iterator[Path]:
    """Give an empty folder below `examples/out`, which no other run uses meanwhile."""
    folder = data.OUT / name
    data.OUT.mkdir(exist_ok=True)
    with (data.OUT / f"{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"another run of this example uses {folder}: wait for it") from None
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        yield folder


def end(process: subprocess.Popen[bytes], signal_number: int = signal.SIGKILL) -> int:
    """End a program with what it has started; its exit code."""
    if process.poll() is None:
        os.killpg(process.pid, signal_number)
    try:
        return process.wait(SILENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def end_by_sigterm() -> None:
    """Have SIGTERM raise SystemExit, so that what was started is ended."""

    def ended(number: int, _frame: Any) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, ended)


class Broker:
    """A broker of this example.

    Attributes:
        address: Its `host:port`.

    """

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self._log = folder / "broker.log"
        command = [sys.executable, str(BROKER), "run", "--port", str(port)]
        command += ["--folder", str(folder / "kafka")]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def check(self) -> None:
        """Raise SystemExit if it has ended."""
        if (code := self.process.poll()) is not None:
            raise SystemExit(f"the broker has ended with exit code {code}: see {self._log}")


@contextlib.contextmanager
def broker(folder: Path, partitions: int = PARTITIONS) -> Iterator[Broker]:
    """Run a broker in a folder, with the two topics."""
    subprocess.run([sys.executable, BROKER, "install"], check=True)
    server = Broker(folder)
    try:
        waiting = Waiting(f"an answer of the broker at {server.address}", server.check)
        admin = AdminClient({"bootstrap.servers": server.address, "log_level": 0})
        while not _answers(admin):
            waiting.check()
        topics = [NewTopic(name, partitions, 1) for name in ("flights", "delays")]
        for made in admin.create_topics(topics).values():
            made.result(SILENCE)
        yield server
    finally:
        end(server.process)  # its folder is thrown away by the next run


def _answers(admin: AdminClient) -> bool:
    try:
        return bool(admin.list_topics(timeout=1).brokers)
    except KafkaException:
        return False


def produce(server: Broker, count: int, begin: int = 0) -> int:
    """Write flights as JSON, keyed by aircraft; the number of those that have one."""
    config = {
        "bootstrap.servers": server.address,
        "linger.ms": 20,
        "enable.idempotence": True,
        # The topic is new: with more, librdkafka loses the first records where the broker refuses
        # them, because it is not the leader of the partition yet.
        "max.in.flight.requests.per.connection": 1,
        "log_level": 3,
    }
    producer = Producer(config)
    produced, refused = 0, list[str]()
    waiting = Waiting(f"the broker at {server.address} to take flights", server.check)

    def delivered(error: Any, _message: Any) -> None:
        waiting.heard()
        if error is not None:
            refused.append(error.str())

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
            value, key = json.dumps(flight), row["tailnum"]
            while True:
                try:
                    producer.produce("flights", value, key=key, on_delivery=delivered)
                    break
                except BufferError:
                    producer.poll(0.1)
                    waiting.check()
    while producer.flush(0.5):
        waiting.check()
    if refused:
        raise SystemExit(f"the broker did not take {len(refused)} flights: {refused[0]}")
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

    def read(self, waiting: Waiting) -> None:
        """Read the results that are there, and tell `waiting` whether there were any."""
        before = len(self.found)
        for message in self._consumer.consume(500, 0.05):
            if (value := message.value()) is not None and message.error() is None:
                self.found.append(json.loads(value))
        if len(self.found) > before:
            waiting.heard()
        else:
            waiting.check()

    def close(self, *checks: Check) -> None:
        """Read the rest, and close."""
        waiting = Waiting("the last results in the topic `delays`", *checks)
        for place in self._consumer.assignment():
            _, end = self._consumer.get_watermark_offsets(place, timeout=SILENCE)
            while self._consumer.position([place])[0].offset < end > 0:
                self.read(waiting)
        self._consumer.close()


def main() -> None:
    """Do all of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--flights", type=int, default=400_000, help="how many, in their order")
    count = parser.parse_args().flights
    end_by_sigterm()
    with own_folder("kafka") as folder, broker(folder) as server:
        flights = produce(server, count)
        print(f"{flights:,} flights are in the topic `flights`")
        results = Results(server.address)
        with started(server.address) as program:
            waiting = Waiting("results of the first run", server.check)
            while len(results.found) < flights // 3 and program.poll() is None:
                results.read(waiting)
            end(program)
        print(f"killed it when {len(results.found):,} results were there")
        begin = time.monotonic()
        with started(server.address) as program:
            waiting = Waiting("results or the end of the second run", server.check)
            while program.poll() is None:
                results.read(waiting)
            if program.returncode != 0:
                raise SystemExit(f"the second run has failed with exit code {program.returncode}")
        print(f"the second run took {time.monotonic() - begin:.1f} s")
        results.close(server.check)
    times = Counter(result["id"] for result in results.found)
    print(f"{len(results.found):,} results for {len(times):,} of {flights:,} flights")
    print(f"{flights - len(times):,} flights without a result")
    print(f"{sum(times.values()) - len(times):,} results came twice")
    if len(times) != flights:
        raise SystemExit(1)


@contextlib.contextmanager
def started(address: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the program, and leave nothing of it behind."""
    program = start(address)
    try:
        yield program
    finally:
        end(program)


if __name__ == "__main__":
    main()
