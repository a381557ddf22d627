"""`velo bench --scenario connect`: figures of checked runs between topics of a real broker."""

import collections
import json
import socket
import sys

import pytest
from click.testing import CliRunner

from velo.bench import connect_broker, connect_redis, redis_server
from velo.bench.connect_job import Checked, events, spending
from velo.bench.measure import Plan, Subject
from velo.bench.peers import connectors, environments
from velo.bench.scenarios import connect
from velo.cli.bench import bench as command

pytest.importorskip("confluent_kafka")

COUNT = 3_000


@pytest.fixture(scope="module")
def filled(kafka):
    from velo.bench.connect_kafka import source

    with source(kafka.address, COUNT) as topic:
        yield kafka.address, topic, COUNT


@pytest.mark.parametrize(
    ("where", "arguments"),
    [
        ("floors_connect:kafka", ()),
        ("floors_connect:kafka_with_generators", ()),
        ("ours_connect:kafka", ("inline", None)),
        ("ours_connect:kafka", ("process", 2)),
    ],
)
def test_a_subject_between_topics_has_a_rate(filled, where, arguments):
    assert Subject(f"velo.bench.{where}", (*arguments, *filled)).measure()["rate"] > 0


@pytest.mark.parametrize(
    ("where", "arguments"),
    [
        ("floors_connect:redis", ()),
        ("ours_connect:redis", ("inline", None)),
        ("ours_connect:redis", ("process", 2)),
    ],
)
def test_a_subject_between_streams_has_a_rate(redis, where, arguments):
    address = f"127.0.0.1:{redis.port}"
    with connect_redis.source(address, COUNT) as stream:
        at = (address, stream, COUNT)
        assert Subject(f"velo.bench.{where}", (*arguments, *at)).measure()["rate"] > 0


@pytest.mark.parametrize("name", connectors.CONNECTORS)
def test_a_peer_between_topics_has_a_rate(filled, name):
    if not (python := connectors.made(name)):
        pytest.skip(f"{name} has no environment: run `velo bench --scenario connect` once")
    figures = Subject("velo.bench.peers.connectors:kafka", (name, python, *filled)).measure()
    assert figures["rate"] > 0


def test_the_scenario_uses_the_servers_that_are_named(kafka, redis, monkeypatch):
    monkeypatch.setenv(connect_broker.SETTING, kafka.address)
    monkeypatch.setenv(redis_server.SETTING, f"127.0.0.1:{redis.port}")
    arguments = ["--quick", "--scenario", "connect", "--compare", "none", "--format", "json"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["scenarios"]["connect"]
    floors = {connect.ALONE, connect.BARE, connect.PIPELINES}
    assert {row["compared_with"] for row in rows} == floors
    assert len(rows) == 6
    assert all(row["value"] > 0 for row in rows)


def test_without_a_broker_the_scenario_says_how_to_have_one(monkeypatch, tmp_path):
    warnings = []
    measuring = Plan(True, frozenset(), len, warnings.append)
    monkeypatch.delenv(connect_broker.SETTING, raising=False)
    monkeypatch.setattr(connect_broker, "TOOL", tmp_path / "nothing.py")
    monkeypatch.delenv(redis_server.SETTING, raising=False)
    monkeypatch.setattr(redis_server.shutil, "which", lambda _: None)
    assert list(connect.measure(measuring)) == []
    assert "no `redis-server`" in warnings.pop()
    assert warnings.pop() == (
        "connect: no Kafka broker: set VELO_BENCH_KAFKA=HOST:PORT, or run in a checkout of velo"
    )


def test_a_broker_that_does_not_answer_is_named(monkeypatch):
    with socket.socket() as taken:  # bound, and never listening
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv(connect_broker.SETTING, address)
        monkeypatch.setattr(connect_broker, "ANSWER", 0.1)
        with pytest.raises(connect_broker.NoBroker, match=address), connect_broker.broker():
            pass


def test_a_peer_that_pip_refuses_is_left_out_with_the_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    refused = connectors.Connector("kafka_faust.py", (str(tmp_path / "no-such-package"),))
    monkeypatch.setitem(connectors.CONNECTORS, "Faust", refused)
    with pytest.raises(environments.Refused, match="no-such-package"):
        connectors.python_of("Faust")
    assert connectors.made("Faust") is None


def test_a_peer_that_fails_is_reported_with_its_last_line(filled, monkeypatch, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit('it is broken')")
    broken = connectors.Connector(str(script), ())
    monkeypatch.setitem(connectors.CONNECTORS, "Faust", broken)
    with pytest.raises(RuntimeError, match="it is broken"):
        connectors.kafka("Faust", sys.executable, *filled)


@pytest.mark.parametrize("copied", [False, True])
async def test_results_are_checked(copied):
    count = 2_500
    plain = list(events(count))
    results = plain if copied else [r async for _, r in spending.keyed(plain, key="user")]
    checked = Checked(count, copied=copied)
    for result in results:
        checked.take(json.dumps(result).encode())
    assert checked.left == 0
    with pytest.raises(RuntimeError, match="instead of None"):
        checked.take(json.dumps(results[-1]).encode())
    swapped = Checked(count, copied=copied)
    counted = collections.Counter(event["user"] for event in plain)
    often = next(user for user, number in counted.items() if number > 1)
    later = [result for result in results if result["user"] == often][1]
    with pytest.raises(RuntimeError, match="instead of"):
        swapped.take(json.dumps(later).encode())
