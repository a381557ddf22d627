"""`velo bench --scenario checkpoint`: its subjects have figures, and its rows have subjects."""

import importlib
import inspect

import pytest

from velo.bench.measure import Plan, Subject
from velo.bench.peers import connectors
from velo.bench.scenarios import checkpoint

ALONE = {
    "throughput, few": ("throughput", "inline", None, 20, 20, 4_000, True),
    "throughput, some of many": ("throughput", "process", 1, 200, 20, 4_000, True),
    "throughput, without": ("throughput", "inline", None, 20, 20, 4_000, False),
    "restart": ("restart", "process", 1, 2_000),
    "unloading": ("unloading", "inline", None, 2_000, 100, 1_000),
    "all in memory": ("unloading", "inline", None, 2_000, None, 1_000),
    "size": ("size", 20, 2, 5),
    "uploads": ("uploads", 10, 100, 5, True),
    "no uploads": ("uploads", 10, 100, 5, False),
    "moving": ("moving", 500, 100, True),
    "moving nothing": ("moving", 500, 100, False),
}


@pytest.mark.parametrize("name", ALONE)
def test_a_subject_with_a_checkpoint_has_a_figure(name):
    function, *arguments = ALONE[name]
    subject = Subject(f"velo.bench.ours_checkpoint:{function}", tuple(arguments))
    assert all(figure > 0 for figure in subject.measure().values())


@pytest.fixture(scope="module")
def filled(kafka):
    from velo.bench.connect_kafka import source

    with source(kafka.address, 3_000) as topic:
        yield kafka.address, topic, 3_000
    kafka.disconnect()


def test_a_subject_between_topics_has_a_rate(filled):
    subject = Subject("velo.bench.ours_checkpoint:kafka", ("inline", None, *filled))
    assert subject.measure()["rate"] > 0


@pytest.mark.parametrize("name", connectors.LASTING)
def test_a_peer_with_states_on_the_disk_has_a_rate(filled, name):
    if not (python := connectors.made(name)):
        pytest.skip(f"{name} has no environment: run `velo bench --scenario checkpoint` once")
    arguments = (name, python, *filled, True)
    assert Subject("velo.bench.peers.connectors:kafka", arguments).measure()["rate"] > 0


@pytest.mark.parametrize("long", [False, True])
def test_every_row_has_its_subjects(long, monkeypatch):
    asked, warnings = [], []

    def in_turn(self, subjects):
        asked.extend(subjects.values())
        return {
            name: [{"rate": 2.0, "s": 1.0, "ms": 1.0, "KiB": 1.0, "first KiB": 1.0}]
            for name in subjects
        }

    class Broker:
        def __enter__(self):
            return "localhost:9092"

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(Plan, "in_turn", in_turn)
    monkeypatch.setattr(checkpoint, "broker", Broker)
    monkeypatch.setattr(checkpoint, "source", lambda servers, count: Broker())
    monkeypatch.setattr(connectors, "python_of", lambda name: "python")
    rows = list(checkpoint.measure(Plan(False, None, len, warnings.append, 1, long)))
    assert not warnings
    # Of each mode: two rates, a restart, unloading, and Kafka against three others; and the size,
    # two of uploads, and three of a move.
    assert len(rows) == 2 * (2 + 1 + 1 + long + 3) + 1 + 2 + 3
    for subject in asked:
        module, _, function = subject.where.partition(":")
        found = getattr(importlib.import_module(module), function)
        inspect.signature(found).bind(*subject.arguments)
