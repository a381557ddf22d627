"""Checkpoints in an object store: S3's protocol, and runs that move, die and are taken over."""

import asyncio
import contextlib
import http.server
import json
import os
import secrets
import signal
import subprocess
import sys
import threading

import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition

from checkpoints import opened
from helpers import HANG, SUPPORT, environment, until
from object_stores import Bucket, Folder
from replayed import by_key, expected
from velo import connect, stream_fn
from velo._checkpoint import commits, remote
from velo._checkpoint.address import address_of
from velo._checkpoint.bucket import Absent
from velo._checkpoint.bucket import Bucket as Objects
from velo._checkpoint.checkpoint import Checkpoint
from velo._core import dumps
from velo.connect.errors import ConnectError, Superseded
from velo.errors import CheckpointError


@pytest.fixture(params=["folder", "s3"])
def place(request, tmp_path, monkeypatch):
    if request.param == "folder":
        return Folder(tmp_path)
    return Bucket(request.getfixturevalue("moto").port, tmp_path, monkeypatch)


# What is asked of a store.


def test_an_object_is_created_once(place):
    bucket = Objects(address_of(place.on()))
    assert bucket.sizes() == {}
    assert bucket.create("a", b"one")
    assert bucket.create("a", b"one")  # the same data is the same program's
    assert not bucket.create("a", b"two")
    assert bucket.get("a") == b"one"
    assert (bucket.exists("a"), bucket.exists("b")) == (True, False)
    with pytest.raises(Absent):
        bucket.get("b")
    pieces = [os.urandom(3_000_000) for _ in range(4)]
    bucket.put("large", lambda: iter(pieces))
    assert bucket.read("large", b"".join) == b"".join(pieces)
    assert bucket.sizes() == {"a": 3, "large": 12_000_000}
    bucket.delete(["a", "large", "none"])
    assert bucket.sizes() == {}


def test_objects_of_shards_below_are_not_its_own(place):
    bucket = Objects(address_of(place.on()))
    bucket.create("a/b", b"one")
    bucket.create("c", b"one")
    assert bucket.sizes() == {"c": 3}


async def test_it_moves_between_machines_with_bases_and_large_ticks(place, monkeypatch):
    monkeypatch.setattr(remote, "_LEAST", 1)
    monkeypatch.setattr(commits, "_LARGE", 2000)
    for machine in ("first", "second", "first", "third"):
        with opened(place.on(machine)) as checkpoint:
            for epoch in range(checkpoint.epoch + 1, checkpoint.epoch + 16):
                many = {(epoch, n): dumps({"n": secrets.token_hex(20)}) for n in range(100)}
                changes = {epoch: dumps({"n": epoch}), **(many if epoch % 5 == 0 else {})}
                await checkpoint.commit(epoch, changes, {0: epoch}, {}, undoable=True)
    with opened(place.on("last")) as checkpoint:
        assert checkpoint.epoch == 60
        assert checkpoint.load(list(range(1, 61))) == [dumps({"n": n}) for n in range(1, 61)]
        assert None not in checkpoint.load([(55, n) for n in range(100)])
        checkpoint.undo()
        assert checkpoint.load([59, 60]) == [dumps({"n": 59}), None]


async def test_a_program_that_was_taken_over_is_refused(place):
    with opened(place.on("first")) as zombie:
        await zombie.commit(1, {"a": dumps({"n": 1})}, {}, {})
        with opened(place.on("second")) as owner:
            with pytest.raises(Superseded):
                await zombie.commit(2, {"a": dumps({"n": 99})}, {}, {})
            await owner.commit(2, {"a": dumps({"n": 2})}, {}, {})
    with opened(place.on("third")) as checkpoint:
        assert checkpoint.load(["a"]) == [dumps({"n": 2})]


def test_a_bucket_that_is_not_there_is_named(moto, tmp_path, monkeypatch):
    place = Bucket(moto.port, tmp_path, monkeypatch)
    place.url = "s3://no-such-bucket/fraud"
    with pytest.raises(CheckpointError, match=r"`s3://no-such-bucket/fraud`: .*make the bucket"):
        Checkpoint.open(place.on(), "fraud")


@pytest.fixture
def refusing(tmp_path, monkeypatch):
    """A store that answers each request with a status."""
    statuses = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
            code = b"AccessDenied" if status == 403 else b"SlowDown"
            body = b"<Error><Code>%s</Code><Message>no</Message></Error>" % code
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"s3://bucket/fraud?endpoint=http://127.0.0.1:{server.server_port}&region=x"
    yield statuses, f"{url}&patience=0.5&cache={tmp_path}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_login_that_may_not_is_told_at_once(refusing, caplog):
    statuses, url = refusing
    statuses.append(403)
    with pytest.raises(CheckpointError) as raised:
        Checkpoint.open(url, "fraud")
    assert "cannot list the checkpoint `s3://bucket/fraud`: " in str(raised.value)
    assert "give this program a login that may read, write, list and delete" in str(raised.value)
    assert "trying again" not in caplog.text


def test_a_store_that_is_too_busy_is_tried_again(refusing, caplog):
    statuses, url = refusing
    statuses += [503, 503, 503, 403]
    with pytest.raises(CheckpointError, match="give this program a login"):
        Checkpoint.open(f"{url}&patience=60", "fraud")
    assert caplog.text.count("trying again for 60 s") == 1
    statuses[:] = [503]
    with pytest.raises(CheckpointError, match="start again once the store answers"):
        Checkpoint.open(url, "fraud")


# Programs.

PROGRAM = """
import asyncio
import itertools
import os
import sys

from paced import Paced
from velo import stream_fn
from velo._checkpoint import remote
from velo.connect.urls import endpoint_of

_, source, sink, checkpoint, gate = sys.argv
remote._LEAST = 200
begin_base, ticks = remote.Remote.begin_base, itertools.count()


def begin_base_and_wait(self):
    begin_base(self)
    if next(ticks) >= 3:
        self._thread.submit(int).result()


# A program that is killed at its bases writes them beside its first ticks, and has the others wait:
# the last tick must not come before that.
if os.environ["VELO_FAILPOINT"].startswith("base"):
    remote.Remote.begin_base = begin_base_and_wait


@stream_fn
async def sequence(events, state):
    async for event in events:
        state["n"] = state.get("n", 0) + 1
        state["hash"] = (state.get("hash", 7) * 31 + event["v"]) % 1_000_003
        state["k"] = event["k"]
        yield {"k": event["k"], "result": [state["n"], state["hash"]]}
    yield {"k": state["k"], "result": ["end", state["n"]]}


class Gated(Paced):
    async def __aiter__(self):
        given = 0
        async for batch in super().__aiter__():
            while given >= 8 and not os.path.exists(gate):
                await asyncio.sleep(0.001)
            given += 1
            yield batch


async def main():
    await sequence.keyed(Gated(endpoint_of(source), 25), key="k", max_pending=500).into(
        endpoint_of(sink), checkpoint=checkpoint, checkpoint_every=0.01
    )


asyncio.run(main())
"""

EVENTS = [{"k": (5 * n + n // 3) % 7, "v": n} for n in range(400)]


class Files:
    """From a file to a file."""

    def __init__(self, tmp_path):
        self.path = tmp_path / "out.ndjson"
        (tmp_path / "in.ndjson").write_text("".join(json.dumps(event) + "\n" for event in EVENTS))
        self.urls = (tmp_path / "in.ndjson").as_uri(), self.path.as_uri()

    def found(self):
        return [json.loads(line) for line in self.path.read_text().splitlines()]


class Topics:
    """From a topic of Kafka to another one, in transactions."""

    def __init__(self, kafka):
        self.kafka = kafka
        source, self.sink = kafka.topic(2), kafka.topic(1)
        for key in range(7):
            mine = [json.dumps(event).encode() for event in EVENTS if event["k"] == key]
            kafka.produce(source, mine, str(key))
        place = f"kafka://{kafka.address}"
        self.urls = (
            f"{place}/{source}?until=end",  # without a group: one program reads all partitions
            f"{place}/{self.sink}?config.transaction.timeout.ms=10000",
        )

    def found(self):
        consumer = Consumer(
            {
                "bootstrap.servers": self.kafka.address,
                "group.id": "any",
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
            }
        )
        consumer.assign([TopicPartition(self.sink, 0, 0)])
        found = []
        with contextlib.closing(consumer):
            while (message := consumer.poll(HANG)) and message.error() is None:
                found.append(json.loads(message.value()))
        assert message is not None, f"topic {self.sink} has no end within {HANG} s"
        assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
        return found


@pytest.fixture(params=["files", "topics"])
def ends(request, tmp_path):
    if request.param == "files":
        yield Files(tmp_path)
        return
    kafka = request.getfixturevalue("kafka")
    yield Topics(kafka)
    kafka.disconnect()


@pytest.fixture
def start(ends, tmp_path):
    """Start the program on a machine. It comes to its end once there is a file `gate`."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    started = []

    def start(checkpoint, failpoint="", gate=program):
        process = subprocess.Popen(
            [sys.executable, str(program), *ends.urls, checkpoint, str(gate)],
            env=environment(SUPPORT, VELO_FAILPOINT=failpoint),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def exact(ends):
    pairs = [(result["k"], tuple(result["result"])) for result in ends.found()]
    assert by_key(pairs) == expected(EVENTS)


STEPS = [("claim", 1), ("claim", 2), ("upload", 1), ("upload", 2), ("tick", 3), ("tick", 4)]
STEPS += [("base", 1), ("base", 2), ("base", 3)]
HERE = [("files", *step) for step in STEPS]
HERE += [("topics", *step) for step in STEPS if step[0] in ("upload", "tick") or step[1] == 2]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("ends", "area", "step"), HERE, indirect=["ends"])
def test_a_program_that_is_killed_goes_on_elsewhere_exactly(area, step, ends, start, tmp_path):
    place, machines = Folder(tmp_path), iter(range(9))
    times = {"claim": [1], "base": [1, 1]}.get(area, [3, 1])
    for time in times:
        process = start(place.on(f"machine-{next(machines)}"), f"{area}:{step}:{time}")
        said = process.communicate(timeout=HANG)
        assert process.returncode == -signal.SIGKILL, said
    process = start(place.on(f"machine-{next(machines)}"))
    assert process.wait(HANG) == 0, process.stderr.read()
    exact(ends)


def test_a_program_that_stood_still_is_refused_and_writes_nothing(ends, start, tmp_path):
    place, gate = Folder(tmp_path), tmp_path / "gate"
    zombie = start(place.on("first"), gate=gate)
    for _ in range(3):
        assert zombie.stdout.readline()
    zombie.send_signal(signal.SIGSTOP)
    gate.touch()
    owner = start(place.on("second"))
    assert owner.wait(HANG) == 0, owner.stderr.read()
    zombie.send_signal(signal.SIGCONT)
    _, said = zombie.communicate(timeout=HANG)
    assert zombie.returncode == 1
    assert "Superseded: " in said
    exact(ends)


@stream_fn
async def count(events, state):
    """Counts the events of its key."""
    async for _ in events:
        state["n"] = state.get("n", 0) + 1
        yield state["n"]


async def test_a_run_says_which_program_has_taken_over(place, tmp_path):
    lines, out = tmp_path / "in.ndjson", tmp_path / "out.ndjson"
    lines.write_text('{"k": 1}\n')
    run = count.keyed(connect.file(lines, follow=True), key="k")
    task = asyncio.create_task(
        run.into(connect.file(out), checkpoint=place.on("first"), checkpoint_every=0.01)
    )
    await until(lambda: run.figures.epoch > 0 and run.figures.saved)
    with await asyncio.to_thread(opened, place.on("second"), "count"):
        with lines.open("a") as file:
            file.write('{"k": 1}\n')
        with pytest.raises(Superseded, match=f"process {os.getpid()} on .* has taken over"):
            await asyncio.wait_for(task, HANG)
    assert out.read_text() == "1\n"


class Failing:
    """A sink whose connection is lost: with a commit point of its own, or without."""

    def __init__(self, *, commits):
        self.error = None
        if commits:
            self.begin = self._begin
            self.commit = self._flush

    async def _begin(self, name, epoch):
        return epoch

    async def _flush(self, *_):
        if self.error is not None:
            raise self.error

    write = flush = _flush


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("taken", [True, False])
async def test_a_sink_that_fails_is_the_reason_unless_another_program_has_taken_over(
    commits, taken, tmp_path
):
    place, lines, sink = Folder(tmp_path), tmp_path / "in.ndjson", Failing(commits=commits)
    lines.write_text('{"k": 1}\n')
    run = count.keyed(connect.file(lines, follow=True), key="k")
    task = asyncio.create_task(run.into(sink, checkpoint=place.on("first"), checkpoint_every=0.01))
    await until(lambda: run.figures.epoch > 0 and run.figures.saved)
    if taken:
        with await asyncio.to_thread(opened, place.on("second"), "count"):
            pass
    sink.error = ConnectError("the connection is lost")
    with lines.open("a") as file:
        file.write('{"k": 1}\n')
    with pytest.raises(Superseded if taken else ConnectError) as raised:
        await asyncio.wait_for(task, HANG)
    assert (raised.value.__cause__ if taken else raised.value) is sink.error


async def test_a_run_that_is_cancelled_while_it_opens_holds_nothing(place, tmp_path, monkeypatch):
    inner, goes_on, waits = Objects.sizes, threading.Event(), threading.Event()

    def slow(self):
        waits.set()
        assert goes_on.wait(HANG)
        return inner(self)

    monkeypatch.setattr(Objects, "sizes", slow)
    (tmp_path / "in.ndjson").write_text('{"k": 1}\n')
    run = count.keyed(connect.file(tmp_path / "in.ndjson"), key="k")
    task = asyncio.create_task(
        run.into(connect.file(tmp_path / "out.ndjson"), checkpoint=place.on())
    )
    await until(waits.is_set)  # the event loop goes on
    task.cancel()
    await asyncio.sleep(0)
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    Checkpoint.open(place.on(), "count").close()


async def test_the_last_tick_of_a_run_that_is_stopped_is_uploaded(place, tmp_path):
    lines = tmp_path / "in.ndjson"
    for number, machine in enumerate(("first", "second", "first", "third"), 1):
        with lines.open("a") as file:
            file.write('{"k": 1}\n' * 10)
        run = count.keyed(connect.file(lines, follow=True), key="k")
        task = asyncio.create_task(
            run.into(
                connect.file(tmp_path / "out.ndjson"),
                checkpoint=place.on(machine),
                checkpoint_every=1000.0,
            )
        )
        await until(lambda run=run: run.figures.results >= 10)
        run.stop()
        figures = await task
        assert figures.read == 10
        results = (tmp_path / "out.ndjson").read_text().split()
        assert results == [str(n) for n in range(1, number * 10 + 1)]
