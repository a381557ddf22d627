"""Several hosts and a broker: networks are cut, hosts are gone, and results stay exact."""

import json
import secrets
import sys
import time
from pathlib import Path

import pytest

from folding import events, expected
from helpers import until_sync
from hosts import Namespace, Proxied, Service, namespaces
from servers.server import free_port

FUNCTION = Path(__file__).with_name("folding.py")
KEYS, COUNT = 12, 3000
# Seconds of a partition of the network; without `--long`, until it was noticed.
LONG = 30
# What a client does not wait for: a server that is gone, and a member that is.
HASTY = "config.socket.timeout.ms=1000&config.reconnect.backoff.max.ms=200"
SHORT_SESSION = "config.session.timeout.ms=3000&config.heartbeat.interval.ms=500"
WAIT = 120


@pytest.fixture(scope="module", params=["namespaces", "proxies"])
def hosts(request):
    if request.param == "namespaces" and not namespaces():
        pytest.skip("network namespaces are not permitted here, or `ip` is not installed")
    if request.param == "proxies" and namespaces() and not request.config.getoption("--long"):
        pytest.skip("proxies take the place of namespaces, and run beside them with --long")
    kind = Namespace if request.param == "namespaces" else Proxied
    hosts = [kind(free_port()) for _ in range(2)]
    yield hosts
    for host in hosts:
        host.close()


@pytest.fixture(scope="module")
def kafka(hosts, tmp_path_factory):
    from servers.kafka import Kafka

    class Broker(Kafka):
        """A broker that listens at the end of each host's cable."""

        def __init__(self, folder):
            super().__init__(folder)
            own = f"PLAINTEXT://{self.address}"
            controller = "CONTROLLER://127.0.0.1:{controller}"
            listens = [f"HOST{at}://{host.listens}" for at, host in enumerate(hosts)]
            sees = [f"HOST{at}://{host.sees}" for at, host in enumerate(hosts)]
            kinds = ["CONTROLLER", "PLAINTEXT", *(f"HOST{at}" for at in range(len(hosts)))]
            with open(self.folder / "more.properties", "a") as properties:
                properties.write(
                    f"listeners={','.join([own, controller, *listens])}\n"
                    f"advertised.listeners={','.join([own, *sees])}\n"
                    "listener.security.protocol.map="
                    f"{','.join(f'{kind}:PLAINTEXT' for kind in kinds)}\n"
                )

    server = Broker(tmp_path_factory.mktemp("kafka")).start()
    yield server
    server.stop()


class Way:
    """From one topic to another, by programs on hosts."""

    def __init__(self, kafka, folder):
        self._kafka = kafka
        self._folder = folder
        self._name = f"hosts-{secrets.token_hex(4)}"
        self._in, self._out = (kafka.topic(4, f"{self._name}-{end}") for end in ("in", "out"))
        self._events, self._found = [], []
        self._reader = None
        self.services = []

    def put(self, count):
        new = events(len(self._events), count, KEYS)
        self._events += new
        for key in range(KEYS):
            mine = [json.dumps(event).encode() for event in new if event["k"] == key]
            self._kafka.produce(self._in, mine, str(key))

    def start(self, host, checkpoint="checkpoint", *, once=False, group=False):
        """Start a program on a host.

        Args:
            host: The host.
            checkpoint: A folder of the host, or the address of a store.
            once: Whether it is not started again when it fails.
            group: Whether it shares the topic with the programs of other hosts.

        """
        place = f"kafka://{host.sees}"
        name = f"host-{host.sees.rpartition(':')[2]}"
        member = f"&group={self._name}&instance_id={name}&{SHORT_SESSION}" if group else ""
        command = [
            *(sys.executable, "-m", "velo", "run", f"{FUNCTION}:fold", "--key", "k"),
            *("--input", f"{place}/{self._in}?{HASTY}{member}"),
            *("--output", f"{place}/{self._out}?{HASTY}"),
            *("--checkpoint", checkpoint, "--checkpoint-every", "0.1"),
            *("--max-pending", "300", "--no-progress"),
        ]
        log = self._folder / f"log-{len(self.services)}"
        self.services.append(Service(host, command, log, self._folder, once=once))
        return self.services[-1]

    def store(self, host):
        """The address of a store that all hosts reach, for one with a working copy of its own."""
        return f"{(self._folder / 'store').as_uri()}/fold?cache={self._folder}/{host.sees}"

    def busy(self):
        """How many programs of the group have partitions."""
        return sum(count > 0 for count in self._kafka.members(self._name) or ())

    def found(self):
        """How many results readers see so far."""
        if self._reader is None:
            self._reader = self._kafka.reader(self._out)
        while messages := self._reader.consume(1000, 0.1):
            self._found += [json.loads(m.value()) for m in messages if m.error() is None]
        return len(self._found)

    def until(self, condition):
        until_sync(condition, WAIT, lambda: "\n".join(self.told()))

    def told(self):
        return [f"{len(self._found)} results", *(service.log for service in self.services)]

    def check(self):
        """Have all results be there, each once, as if nothing had happened."""
        self.until(lambda: self.found() >= len(self._events))
        by_key = {}
        for result in self._found:
            by_key.setdefault(result["k"], []).append(result)
        assert by_key == expected(self._events), self.told()

    def close(self):
        codes = [service.stop() for service in self.services]
        if self._reader is not None:
            self._reader.close()
        self._kafka.disconnect()
        return codes


@pytest.fixture
def way(kafka, tmp_path):
    way = Way(kafka, tmp_path)
    yield way
    way.close()


def last(seconds):
    """Let a partition of the network last."""
    time.sleep(seconds)


def test_a_program_whose_network_is_cut_goes_on_when_it_is_back(way, hosts, long):
    way.put(COUNT)
    service = way.start(hosts[0])
    way.until(lambda: way.found() > 100)
    hosts[0].unplug()
    way.put(COUNT)
    way.until(lambda: "lost the server" in service.log)
    if long:
        last(LONG)
    hosts[0].plug()
    way.check()
    assert service.starts == 1


def test_a_host_that_was_gone_goes_on_where_its_disk_is(way, hosts):
    way.put(COUNT)
    service = way.start(hosts[0])
    way.until(lambda: way.found() > 100)
    service.lose()
    way.put(COUNT)
    hosts[0].plug()
    way.start(hosts[0])
    way.check()


def test_another_host_takes_the_place_of_one_that_is_gone(way, hosts):
    way.put(COUNT)
    service = way.start(hosts[0], way.store(hosts[0]))
    way.until(lambda: way.found() > 100)
    service.lose()
    way.put(COUNT)
    way.start(hosts[1], way.store(hosts[1]))
    way.check()
    hosts[0].plug()


def test_a_host_that_was_replaced_while_its_network_was_cut_commits_nothing(way, hosts):
    way.put(COUNT)
    replaced = way.start(hosts[0], way.store(hosts[0]), once=True)
    way.until(lambda: way.found() > 100)
    hosts[0].unplug()
    way.put(COUNT)
    way.start(hosts[1], way.store(hosts[1]))
    way.until(lambda: way.found() > COUNT)
    hosts[0].plug()
    way.until(replaced.has_ended)
    assert "another program" in replaced.log
    way.check()


@pytest.fixture
def members(way, hosts):
    """Two hosts that share the work."""
    way.put(COUNT)
    members = [way.start(host, way.store(host), group=True) for host in hosts]
    way.until(lambda: way.busy() == len(hosts))
    way.until(lambda: way.found() > 100)
    return members


def test_a_member_whose_network_is_cut_leaves_its_work_to_the_other_one(way, hosts, members, long):
    hosts[0].unplug()
    way.put(COUNT)
    way.until(lambda: way.found() >= 2 * COUNT)
    assert way.busy() == 1
    if long:
        last(LONG)
    hosts[0].plug()
    way.until(lambda: way.busy() == 2)
    way.put(COUNT)
    way.check()


def test_a_member_whose_host_is_gone_leaves_its_work_to_the_other_one(way, hosts, members):
    members[0].lose()
    way.put(COUNT)
    way.check()
    assert way.busy() == 1
    hosts[0].plug()
