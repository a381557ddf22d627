"""`velo deploy ray`: members of a Kafka group on several nodes, one of which dies."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from confluent_kafka import Consumer, TopicPartition

import ray_functions
from helpers import HANG, until_sync
from ray_cluster import INSTALLED

pytestmark = pytest.mark.skipif(not INSTALLED, reason="ray is not installed: velo-stream[ray]")


@pytest.fixture
def cluster(ray_cluster):
    yield ray_cluster
    ray_cluster.restore()


PARTITIONS = 6


def all_results(kafka, topic):
    """All that readers of a topic see, by key."""
    settings = {"bootstrap.servers": kafka.address, "group.id": "any", "enable.partition.eof": True}
    reader, found, ended = Consumer(settings), {}, 0
    reader.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
    while ended < PARTITIONS:
        if (message := reader.poll(HANG)).error() is None:
            result = json.loads(message.value())
            found.setdefault(result["key"], []).append((result["n"], result["event"]))
        else:
            ended += 1
    reader.close()
    return found


async def test_members_of_a_group_go_on_when_a_node_dies(cluster, kafka, tmp_path):
    source, sink, keys = kafka.topic(PARTITIONS), kafka.topic(PARTITIONS), 24
    quick = "config.session.timeout.ms=2000&config.heartbeat.interval.ms=200"
    command = (
        *(sys.executable, "-m", "velo", "deploy", "ray", "--address", cluster.address),
        *("--nodes", "3", "ray_functions.py:numbered", "--record-key"),
        *("--input", f"kafka://{kafka.address}/{source}?group={source}&{quick}"),
        *("--output", f"kafka://{kafka.address}/{sink}", "--checkpoint-every", "0.1"),
        *("--checkpoint", f"{(tmp_path / 'store').as_uri()}?cache={tmp_path / 'cache'}"),
    )
    folder = os.path.dirname(ray_functions.__file__)
    members = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": folder},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
    )

    said = []
    listening = threading.Thread(target=lambda: said.extend(members.stdout))
    listening.start()

    def produce(numbers):
        for key in range(keys):
            values = [b"%d" % number for number in numbers if number % keys == key]
            kafka.produce(source, values, str(key))

    def shared():
        return kafka.members(source) == [PARTITIONS // 3] * 3

    try:
        await asyncio.to_thread(until_sync, shared)
        await asyncio.to_thread(produce, range(480))
        await asyncio.to_thread(kafka.read, sink, 100)
        await asyncio.to_thread(cluster.kill)
        await asyncio.to_thread(produce, range(480, 960))
        await asyncio.to_thread(kafka.read, sink, 960, HANG)
        # The other members may have done all before Ray tells of the node.
        await asyncio.to_thread(until_sync, lambda: "velo: has gone" in "".join(said))
        members.send_signal(signal.SIGTERM)
        await asyncio.to_thread(members.wait, HANG)
    finally:
        members.kill()
        members.wait()
        listening.join()
    assert members.returncode == 128 + signal.SIGTERM, "".join(said)
    assert await asyncio.to_thread(all_results, kafka, sink) == {
        str(key): [(n + 1, n * keys + key) for n in range(960 // keys)] for key in range(keys)
    }
    kafka.disconnect()
