"""Kafka, with a real broker: what every connector promises, and beginning, ending, errors."""

import asyncio
import gc
import logging
import subprocess
import sys
import threading
import time
import types
from urllib.parse import urlsplit

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)
from conformance import Peer, SinkConformance, SourceConformance, close, take

from helpers import until
from member import Member
from servers.kafka import USERS
from servers.leaderless import Leaderless
from velo import connect
from velo.connect import Bad
from velo.connect._kafka import of_url
from velo.connect._kafka.bound import Bound
from velo.connect._kafka.link import Link
from velo.connect._kafka.lookout import Lookout
from velo.connect.errors import (
    AuthenticationFailed,
    ConnectError,
    NoSuchTopic,
    PermissionDenied,
    PositionLost,
    Unreachable,
)

FAST = {"reconnect.backoff.ms": 10, "reconnect.backoff.max.ms": 100}


class KafkaPeer(Peer):
    seeks = True

    def __init__(self, server, partitions=1, **config):
        self.server = server
        self.topic = server.topic(partitions, **config)
        self.group = f"group-of-{self.topic}"

    async def produce(self, values, key=None, headers=(), **more):
        await asyncio.to_thread(self.server.produce, self.topic, values, key, headers, **more)

    async def read(self, count):
        return await asyncio.to_thread(self.server.read, self.topic, count)

    async def written(self, count):
        return [message.value() for message in await self.read(count)]

    def source(self, **settings):
        settings = {"group": self.group, "config": FAST, **settings}
        return connect.kafka(self.server.address, self.topic, **settings)

    def sink(self, **settings):
        settings = {"config": FAST, **settings}
        return connect.kafka(self.server.address, self.topic, **settings)

    def source_of_nothing(self):
        return connect.kafka("127.0.0.1:1", "t", connect_timeout=0.5)


@pytest.fixture
def peer(kafka):
    yield KafkaPeer(kafka)
    kafka.disconnect()


@pytest.fixture
def wide(kafka):
    """A topic with three partitions."""
    yield KafkaPeer(kafka, 3)
    kafka.disconnect()


async def everything(source):
    """All records of a source that ends."""
    found = []
    async with asyncio.timeout(60):
        async for item in source:
            if isinstance(item, list):
                found += item
    await source.close()
    return found


async def failure(source):
    """What ends the source."""
    with pytest.raises(ConnectError) as caught:
        await take(source, 1)
    await source.close()
    return caught.value


class TestKafka(SourceConformance, SinkConformance):
    pass


class TestBeginning:
    async def test_it_begins_at_a_time(self, peer):
        begin = round(time.time()) - 100
        for number in range(5):
            await peer.produce([b"%d" % number], timestamp=begin + number)
        records = await everything(peer.source(start=begin + 2, until="end"))
        assert [record.value for record in records] == [2, 3, 4]
        assert records[0].timestamp == begin + 2

    async def test_a_time_after_the_last_record_is_the_end(self, peer):
        await peer.produce([b"1"])
        member = Member(peer.source(start=time.time() + 1000))
        await member.until(lambda: member.events)
        await peer.produce([b"2"])
        await member.read(1)
        assert member.values == [2]
        await member.close()

    async def test_the_latest_begins_behind_what_is_there_and_stays_there(self, peer):
        await peer.produce([b"1"])
        member = Member(peer.source(start="latest"))
        await member.until(lambda: member.events)
        await peer.produce([b"2"])
        await member.read(1)
        assert member.values == [2]
        await member.close()
        # Nothing was committed by the handling, so the record comes again: it is not skipped.
        member = Member(peer.source(start="latest"))
        await member.read(1)
        assert member.values == [2]
        await member.close()

    async def test_what_is_committed_goes_before_start_unless_it_rewinds(self, peer):
        await peer.produce([b"1", b"2", b"3"])
        member = Member(peer.source())
        await member.read(3)
        await member.source.commit({(peer.topic, 0): 1})
        await member.close()
        assert [r.value for r in await everything(peer.source(start="earliest", until="end"))] == [
            3
        ]
        source = peer.source(start="earliest", rewind=True, until="end")
        assert [r.value for r in await everything(source)] == [1, 2, 3]

    async def test_a_mapping_begins_behind_each_position(self, wide):
        for number in range(3):
            await wide.produce([b"1", b"2"], partition=number)
        start = {(wide.topic, 0): 0, (wide.topic, 1): 1}
        records = await everything(wide.source(start=start, until="end", group=None))
        assert sorted((r.partition[1], r.value) for r in records) == [(0, 2), (2, 1), (2, 2)]

    async def test_without_a_group_it_reads_all_partitions_and_keeps_nothing(self, wide):
        await wide.produce([b"%d" % number for number in range(30)])
        for _ in range(2):
            source = wide.source(group=None)
            records, iteration = await take(source, 30)
            assert sorted(record.value for record in records) == list(range(30))
            await source.commit({record.partition: record.position for record in records})
            await close(source, iteration)

    async def test_a_position_that_is_gone_is_an_error_until_told_where_to_go_on(self, peer):
        await peer.produce([b"%d" % number for number in range(10)])
        member = Member(peer.source())
        await member.read(10)
        await member.source.commit({(peer.topic, 0): 1})
        await member.close()
        peer.server.delete_before(peer.topic, 0, 8)
        error = await failure(peer.source(start="earliest"))
        assert type(error) is PositionLost
        assert peer.topic in str(error)
        assert "rewind" in str(error)
        again = peer.source(start="earliest", rewind=True, until="end")
        assert [record.value for record in await everything(again)] == [8, 9]

    @pytest.mark.parametrize(
        "settings",
        [{"start": "now"}, {"start": True}, {"until": "now"}, {"rewind": True}, {"batch": 0},
         {"config": {"enable.auto.commit": True}}, {"user": "alice"}, {"decode": "pickle"}],
        ids=str,
    )  # fmt: skip
    def test_settings_that_do_not_fit_are_refused(self, settings, monkeypatch):
        monkeypatch.delenv("KAFKA_PASSWORD", raising=False)
        with pytest.raises(ValueError):
            connect.kafka("localhost", "t", **settings)

    async def test_a_setting_that_the_client_does_not_have_is_named(self):
        source = connect.kafka("127.0.0.1:1", "t", config={"no.such": "x"})
        with pytest.raises(ValueError, match=r"no\.such"):
            await take(source, 1)


class TestEnd:
    async def test_it_reads_what_is_there_and_ends(self, wide):
        await wide.produce([b"%d" % number for number in range(20)], partition=0)
        await wide.produce([b"%d" % number for number in range(20, 25)], partition=1)
        for group in (None, wide.group):
            source = wide.source(until="end", batch=7, group=group)
            records = []
            async for item in source:
                if isinstance(item, list):
                    if not records:
                        await wide.produce([b"99"], partition=0)
                    records += item
            await source.close()
            assert sorted(record.value for record in records if record.value != 99) == [*range(25)]
            assert len(records) <= 26

    async def test_nothing_there_is_an_end_too(self, wide):
        assert await everything(wide.source(until="end")) == []
        assert await everything(wide.source(until="end", group=None)) == []

    async def test_it_ends_at_what_is_committed_already(self, peer):
        await peer.produce([b"1"])
        source = peer.source(until="end")
        async for item in source:
            if isinstance(item, list):
                await source.commit({item[-1].partition: item[-1].position})
        await source.close()
        assert await everything(peer.source(until="end")) == []

    async def test_it_ends_before_a_time(self, peer):
        begin = round(time.time()) - 100
        for number in range(5):
            await peer.produce([b"%d" % number], timestamp=begin + number)
        records = await everything(peer.source(until=begin + 3, group=None))
        assert [record.value for record in records] == [0, 1, 2]

    async def test_it_ends_when_a_time_has_come(self, peer):
        await peer.produce([b"1"])
        assert len(await everything(peer.source(until=time.time() + 1))) == 1

    async def test_records_of_transactions_end_too(self, peer):
        producer = Producer(
            {"bootstrap.servers": peer.server.address, "transactional.id": peer.topic}
        )
        await asyncio.to_thread(producer.init_transactions)
        for number in range(3):
            producer.begin_transaction()
            producer.produce(peer.topic, b"%d" % number)
            await asyncio.to_thread(producer.flush)
            end = producer.abort_transaction if number == 1 else producer.commit_transaction
            await asyncio.to_thread(end)
        del producer
        assert [r.value for r in await everything(peer.source(until="end"))] == [0, 2]


class TestTopics:
    @pytest.mark.parametrize("grouped", [True, False])
    async def test_several_topics_and_partitions_that_are_added(self, kafka, grouped):
        first, second = kafka.topic(), kafka.topic()
        group = f"group-of-{first}" if grouped else None
        member = Member(
            connect.kafka(
                kafka.address,
                [first, second],
                group=group,
                start="latest",
                refresh=0.2,
                config=FAST,
            )
        )
        await member.until(lambda: len(member.partitions) == 2)
        kafka.produce(first, [b"1"])
        kafka.produce(second, [b"2"])
        await member.read(2)
        assert {(r.topic, r.value) for r in member.records} == {(first, 1), (second, 2)}
        kafka.add_partitions(first, 2)
        kafka.disconnect()  # the producer of the test knows the old partitions
        # Produced before it is found: also with start="latest", all of a new partition is new.
        kafka.produce(first, [b"3"], partition=1)
        await member.read(3)
        assert member.records[2].partition == (first, 1)
        await member.close()
        kafka.disconnect()

    @pytest.mark.parametrize("grouped", [True, False])
    async def test_a_pattern_takes_topics_that_come_later(self, kafka, grouped):
        prefix = f"pattern-{grouped}-"
        kafka.topic(name=prefix + "a")
        group = prefix if grouped else None
        pattern = f"^{prefix}.*"
        member = Member(
            connect.kafka(kafka.address, pattern, group=group, refresh=0.2, config=FAST)
        )
        kafka.produce(prefix + "a", [b"1"])
        await member.read(1)
        kafka.topic(name=prefix + "b")
        kafka.produce(prefix + "b", [b"2"])
        await member.read(2)
        assert member.values == [1, 2]
        await member.close()
        with pytest.raises(ValueError, match="one topic"):
            await connect.kafka(kafka.address, pattern).write([(None, 1)])
        kafka.disconnect()

    async def test_a_missing_topic_is_named(self, kafka):
        for group in (None, "g"):
            error = await failure(connect.kafka(kafka.address, "missing", group=group))
            assert type(error) is NoSuchTopic
            assert "`missing`" in str(error)
        sink = connect.kafka(kafka.address, "missing")
        with pytest.raises(NoSuchTopic, match="`missing`"):
            await sink.write([("k", 1)])
        await sink.close()


class TestRecords:
    @pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
    async def test_compressed_records(self, peer, codec):
        sink = peer.sink(config={"compression.type": codec})
        await sink.write([("k", {"text": "a" * 100, "number": number}) for number in range(100)])
        await sink.flush()
        await sink.close()
        records = await everything(peer.source(until="end"))
        assert [record.value["number"] for record in records] == list(range(100))

    async def test_tombstones_and_missing_keys(self, peer):
        sink = peer.sink()
        await sink.write([("k", None), (None, 1)])
        await sink.flush()
        await sink.close()
        first, second = await everything(peer.source(until="end"))
        assert (first.key, first.value) == (b"k", None)
        assert (second.key, second.value) == (None, 1)

    async def test_keys_are_decoded(self, peer):
        await peer.produce([b"1"], key=b"caf\xc3\xa9")
        await peer.produce([b"2"], key=b"\xff")
        good, bad = await everything(peer.source(decode_key="text", until="end"))
        assert good.key == "café"
        assert type(bad) is Bad
        assert (bad.record.key, bad.record.value) == (b"\xff", b"2")

    async def test_results_say_where_they_go(self, peer):
        other = peer.server.topic()
        sink = peer.sink()
        result = connect.to({"a": 1}, topic=other, key="their", headers={"trace": "t", "n": b"\0"})
        await sink.write([("mine", result), ("mine", connect.to(2))])
        await sink.flush()
        await sink.close()
        (there,) = peer.server.read(other, 1)
        assert (there.key(), there.value()) == (b"their", b'{"a":1}')
        assert there.headers() == [("trace", b"t"), ("n", b"\0")]
        (here,) = await peer.read(1)
        assert (here.key(), here.value(), here.headers()) == (b"mine", b"2", None)

    async def test_partitions_are_chosen_as_java_does(self, wide):
        # Hashes of Kafka's own tests of murmur2, without their sign.
        hashes = {"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536}
        sink = wide.sink()
        await sink.write([(key, 1) for key in hashes])
        await sink.flush()
        await sink.close()
        found = {m.key().decode(): m.partition() for m in await wide.read(3)}
        assert found == {key: (number & 0x7FFFFFFF) % 3 for key, number in hashes.items()}

    async def test_more_results_than_the_producer_queues(self, peer):
        sink = peer.sink(config={"queue.buffering.max.messages": 100})
        await sink.write([("k", number) for number in range(1000)])
        await sink.flush()
        await sink.close()
        assert await peer.written(1000) == [b"%d" % number for number in range(1000)]

    async def test_of_results_one_of_which_has_no_form_none_is_written(self, peer):
        sink = peer.sink()
        with pytest.raises(TypeError):
            await sink.write([("k", 1), ("k", object()), ("k", 2)])
        await sink.write([("k", 3)])
        await sink.flush()
        await sink.close()
        assert await peer.written(1) == [b"3"]

    async def test_order_holds_where_results_name_topics_and_headers_and_the_queue_is_full(
        self, peer
    ):
        sink = peer.sink(config={"queue.buffering.max.messages": 7})
        headers = {"trace": "1"}
        results = [
            connect.to(number, headers=headers) if number % 5 == 0 else number
            for number in range(200)
        ]
        await sink.write([("k", result) for result in results])
        await sink.flush()
        await sink.close()
        assert await peer.written(200) == [b"%d" % number for number in range(200)]

    @pytest.mark.parametrize("in_transactions", [False, True])
    async def test_the_first_result_of_a_partition_is_not_lost_where_that_has_no_leader(
        self, peer, in_transactions
    ):
        async with Leaderless(peer.server.port, peer.topic) as broker, asyncio.timeout(30):
            sink = connect.kafka(broker.address, peer.topic, config=FAST)
            if in_transactions:
                await sink.begin(peer.topic)
            await sink.write([(None, 1)])
            await broker.asked.wait()
            await sink.write([(None, 2)])
            await sink.flush()
            if in_transactions:
                await sink.commit(1, {})
            await sink.close()
        found = [record.value for record in await everything(peer.source(until="end"))]
        assert found == [1, 2]

    async def test_a_result_that_is_not_delivered_is_named(self, kafka):
        peer = KafkaPeer(kafka, **{"max.message.bytes": 1000})
        sink = peer.sink()
        await sink.write([("k", "a" * 10_000)])
        with pytest.raises(ConnectError, match=f"`{peer.topic}`.*too large"):
            await sink.flush()
        await sink.write([("k", "short")])
        await sink.flush()
        await sink.close()
        assert await peer.written(1) == [b'"short"']
        kafka.disconnect()

    async def test_a_function_encodes_off_the_event_loop(self, peer):
        loop_thread, threads = threading.get_ident(), set()

        def encode(value):
            threads.add(threading.get_ident())
            return str(value).encode()

        sink = peer.sink(encode=encode)
        await sink.write([("k", 1)])
        await sink.flush()
        await sink.close()
        assert await peer.written(1) == [b"1"]
        assert loop_thread not in threads


class TestFlow:
    async def test_a_paused_partition_waits_and_the_others_go_on(self, wide):
        member = Member(wide.source(batch=5))
        await member.until(lambda: len(member.partitions) == 3)
        slow = (wide.topic, 0)
        member.source.pause([slow])
        # More than is held back, so that the consumer pauses the partition as well.
        await wide.produce([b"%d" % number for number in range(100)], partition=0)
        await wide.produce([b"%d" % number for number in range(100)], partition=1)
        await member.read(100)
        assert {record.partition for record in member.records} == {(wide.topic, 1)}
        member.source.resume([slow])
        await member.read(200)
        slow_values = [r.value for r in member.records if r.partition == slow]
        assert slow_values == list(range(100))
        await member.close()

    async def test_it_reads_ahead_a_bounded_part(self, peer):
        await peer.produce([b"%d" % number for number in range(2000)])
        source = peer.source(batch=10)
        iteration = aiter(source)
        first = []
        while not first:
            item = await anext(iteration)
            first = item if isinstance(item, list) else []
        await until(lambda: source.lag())
        assert source.lag()[peer.topic, 0] > 1800
        rest = []
        while len(first) + len(rest) < 2000:
            rest += await anext(iteration)
        assert [record.value for record in first + rest] == list(range(2000))
        await until(lambda: source.lag() == {(peer.topic, 0): 0})
        await close(source, iteration)

    @pytest.mark.parametrize("fails", [False, True])
    async def test_a_source_that_is_dropped_ends_its_thread(self, peer, fails):
        def decode(data):
            if fails:
                raise ConnectError("the schema registry is away")
            return data

        await peer.produce([b"1"])
        source = peer.source(decode=decode)
        if fails:
            with pytest.raises(ConnectError, match="registry"):
                await take(source, 1)
        else:
            await take(source, 1)
        name = f"velo {source.name}"
        assert any(thread.name == name for thread in threading.enumerate())
        del source

        def ended():
            gc.collect()
            return all(thread.name != name for thread in threading.enumerate())

        await until(ended)


class TestAccess:
    def settings(self, **settings):
        return {"user": "alice", "password": USERS["alice"], "config": FAST, **settings}

    def allow(self, kafka, kind, name, operation):
        rule = AclBinding(
            kind, name, ResourcePatternType.LITERAL, "User:alice", "*", operation,
            AclPermissionType.ALLOW,
        )  # fmt: skip
        for done in kafka.admin.create_acls([rule]).values():
            done.result(30)

    async def test_a_wrong_password_is_refused_and_shown_nowhere(self, peer, caplog):
        caplog.set_level(logging.DEBUG)
        secret = "correct-horse-hunter2"
        endpoints = [
            connect.kafka(
                peer.server.sasl_address, peer.topic, group=group,
                **self.settings(password=secret, config={**FAST, "debug": "security"}),
            )
            for group in (None, "g")
        ]  # fmt: skip
        for endpoint in endpoints:
            error = await failure(endpoint)
            assert type(error) is AuthenticationFailed
            assert peer.server.sasl_address in str(error)
            assert secret not in f"{error!r} {endpoint!r} {endpoint.name} {vars(endpoint)}"
            with pytest.raises(AuthenticationFailed):
                await endpoint.write([("k", 1)])
            await endpoint.close()
        assert secret not in caplog.text

    async def test_a_password_in_a_file_or_the_environment(self, peer, tmp_path, monkeypatch):
        await peer.produce([b"1"])
        (tmp_path / "password").write_text(USERS["root"] + "\n")
        monkeypatch.setenv("KAFKA_PASSWORD", USERS["root"])
        for password_file in (str(tmp_path / "password"), None):
            source = connect.kafka(
                peer.server.sasl_address, peer.topic, until="end", user="root",
                password_file=password_file,
            )  # fmt: skip
            assert len(await everything(source)) == 1

    async def test_what_the_user_may_not_do_is_named(self, peer):
        address, topic, group = peer.server.sasl_address, peer.topic, peer.group
        await peer.produce([b"1"])
        error = await failure(connect.kafka(address, topic, **self.settings()))
        assert type(error) is PermissionDenied
        assert topic in str(error)
        sink = connect.kafka(address, topic, **self.settings())
        with pytest.raises(PermissionDenied, match=topic):
            await sink.write([("k", 1)])
        await sink.close()
        self.allow(peer.server, ResourceType.TOPIC, topic, AclOperation.READ)
        source = connect.kafka(address, topic, until="end", **self.settings())
        assert len(await everything(source)) == 1
        error = await failure(connect.kafka(address, topic, group=group, **self.settings()))
        assert type(error) is PermissionDenied
        self.allow(peer.server, ResourceType.GROUP, group, AclOperation.READ)
        source = connect.kafka(address, topic, group=group, until="end", **self.settings())
        assert len(await everything(source)) == 1

    async def test_without_a_rule_for_the_group_beside_its_own_a_checkpoint_is_read_all_the_same(
        self, peer, caplog
    ):
        caplog.set_level(logging.INFO)
        await peer.produce([b"1"])
        self.allow(peer.server, ResourceType.TOPIC, peer.topic, AclOperation.READ)
        self.allow(peer.server, ResourceType.GROUP, peer.group, AclOperation.READ)
        source = connect.kafka(
            peer.server.sasl_address, peer.topic, group=peer.group, **self.settings()
        )
        source.seek({})
        member = Member(source)
        await member.until(lambda: "not known whether another program" in caplog.text)
        await member.read(1)
        await member.commit()
        await member.close()

    async def test_tls_with_a_certificate_that_is_trusted_or_not(self, peer):
        address, ca = peer.server.tls_address, str(peer.server.certificate)
        sink = connect.kafka(address, peer.topic, tls_ca=ca)
        await sink.write([("k", 1)])
        await sink.flush()
        await sink.close()
        assert (
            len(await everything(connect.kafka(address, peer.topic, until="end", tls_ca=ca))) == 1
        )
        error = await failure(connect.kafka(address, peer.topic, tls=True, connect_timeout=1))
        assert type(error) is Unreachable
        assert "certificate" in str(error)
        error = await failure(connect.kafka(address, peer.topic, connect_timeout=1))
        assert type(error) is Unreachable


class TestUrl:
    def endpoint(self, url):
        settings = dict(pair.split("=") for pair in urlsplit(url).query.split("&") if pair)
        return of_url(urlsplit(url), settings)

    async def test_it_reads_and_writes(self, peer):
        await peer.produce([b"1"], key="k")
        url = f"kafka://{peer.server.address}/{peer.topic}"
        source = self.endpoint(f"{url}?until=end&decode_key=text&start=earliest&group={peer.group}")
        (record,) = await everything(source)
        assert (record.key, record.value) == ("k", 1)
        sink = self.endpoint(f"{url}?encode=text&config.linger.ms=0")
        await sink.write([("k", "two")])
        await sink.flush()
        await sink.close()
        assert await peer.written(2) == [b"1", b"two"]

    async def test_several_servers_and_a_user(self):
        endpoint = self.endpoint("kafka://alice:hunter2@a:9092,b:9093/x,y?tls=true")
        assert (endpoint.servers, endpoint.name) == ("a:9092,b:9093", "kafka x,y")
        assert "hunter2" not in repr(endpoint)

    @pytest.mark.parametrize(
        ("url", "why"),
        [
            ("kafka://a", "name the topic"),
            ("kafka://a/t?grupo=x", "no setting `grupo`.*group"),
            ("kafka://a/t?tls=perhaps", "setting `tls`"),
        ],
    )
    def test_urls_that_do_not_fit(self, url, why):
        with pytest.raises(ValueError, match=why):
            self.endpoint(url)


@pytest.mark.parametrize(
    ("name", "extra"), [("kafka", "kafka"), ("schema_registry", "schema-registry")]
)
def test_a_missing_package_is_named(name, extra):
    program = (
        "import sys; sys.modules['confluent_kafka'] = None\n"
        f"from velo import connect; connect.{name}"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert f"pip install 'velo-stream[{extra}]'" in done.stderr


class TestSilence:
    """A network that is cut ends no connection, and the client waits for those that it has."""

    @pytest.fixture
    def link(self):
        link = Link("kafka in", "localhost:1", 1.0)
        link.answered()
        link.on_error(KafkaError(KafkaError._TRANSPORT, "1 request timed out"))
        return link

    def asked(self, link, answer):
        class Client:
            def list_topics(self, *_topics, timeout):
                if not answer:
                    raise KafkaException(KafkaError(KafkaError._TRANSPORT))

        reading, nothing = connect.kafka("localhost:1", "in")._reading, types.SimpleNamespace()
        Lookout(reading, link, nothing).look(Client(), types.SimpleNamespace(names=()), None)

    def test_when_one_broker_was_lost_and_none_answers_all_are_away(self, link, caplog):
        assert link.doubtful
        assert not link.down
        self.asked(link, answer=False)
        assert link.down
        assert "lost the server localhost:1: 1 request timed out" in caplog.text

    def test_when_another_one_answers_nothing_is_lost(self, link):
        self.asked(link, answer=True)
        assert not link.doubtful
        assert not link.down


class TestStandstill:
    """A source with an end whose records do not come says once for which it waits."""

    @pytest.fixture
    def bound(self):
        bound = object.__new__(Bound)
        bound._reached = {("in", 0): 7, ("in", 1): 2}
        bound._ends = {("in", 0): 7, ("in", 1): 5, ("in", 2): 3}
        return bound

    def lookout(self, held=()):
        link = Link("kafka in", "localhost:1", 1.0)
        link.answered()
        reading = connect.kafka("localhost:1", "in", group="g")._reading
        return Lookout(reading, link, types.SimpleNamespace(held=lambda: held))

    def look(self, lookout, bound, silent):
        lookout._look_at, lookout._heard_at = 0.0, time.monotonic() - silent
        assignment = types.SimpleNamespace(names=set(bound._ends), lag=dict)
        lookout.look(None, assignment, bound)

    def test_it_names_what_is_left(self, bound, caplog):
        lookout = self.lookout()
        self.look(lookout, bound, 31.0)
        self.look(lookout, bound, 32.0)
        assert caplog.messages == [
            "kafka in: has read nothing for 30 s, and goes on waiting for ('in', 1) from 2 to 5, "
            "('in', 2) from 0 to 3"
        ]

    def test_it_says_nothing_before_nor_while_records_wait_to_be_handled(self, bound, caplog):
        self.look(self.lookout(), bound, 20.0)
        self.look(self.lookout(held={("in", 0)}), bound, 31.0)
        assert caplog.messages == []


class TestLeaders:
    """While a partition changes its leader, brokers and client disagree about that for a moment."""

    @pytest.mark.parametrize(
        "code",
        [
            KafkaError.UNKNOWN_LEADER_EPOCH,
            KafkaError.FENCED_LEADER_EPOCH,
            KafkaError.OFFSET_NOT_AVAILABLE,
            KafkaError._UNKNOWN_PARTITION,
            KafkaError._DESTROY_BROKER,
        ],
    )
    def test_what_is_asked_of_it_is_asked_again(self, code):
        link = Link("kafka in", "localhost:1", 1.0)
        refused = types.SimpleNamespace(error=KafkaError(code))
        answers = iter([KafkaException(KafkaError(code)), [refused], [TopicPartition("in", 0, 7)]])

        def call():
            if isinstance(answer := next(answers), KafkaException):
                raise answer
            return answer

        assert [place.offset for place in link.ask(call, lambda: False)] == [7]

    def test_a_topic_that_is_not_there_is_not(self):
        link = Link("kafka in", "localhost:1", 1.0)

        def call():
            raise KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))

        with pytest.raises(KafkaException):
            link.ask(call, lambda: False)


def test_a_source_fetches_again_soon_after_its_queue_was_full():
    """librdkafka waits for a second by default, in which a fast function uses up the queue."""
    setting = "fetch.queue.backoff.ms"
    assert connect.kafka("localhost:1", "t")._reading.config[setting] == 20
    own = connect.kafka("localhost:1", "t", config={setting: 1000})
    assert own._reading.config[setting] == 1000
