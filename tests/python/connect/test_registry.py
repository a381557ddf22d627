"""Avro and Protobuf through a real broker, with a stand-in of a schema registry."""

import json

import pytest

from servers.registry_stand_in import RegistryStandIn
from velo import connect
from velo.connect import Bad
from velo.connect.errors import AuthenticationFailed, Unreachable

pytest.importorskip("confluent_kafka.schema_registry", exc_type=ImportError)
descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2")
from google.protobuf import descriptor_pool, message_factory  # noqa: E402

SCHEMA = json.dumps(
    {
        "type": "record",
        "name": "Payment",
        "fields": [{"name": "card", "type": "string"}, {"name": "amount", "type": "double"}],
    }
)


def payment_class():
    """The class of a Protobuf message, as `protoc` makes it."""
    file = descriptor_pb2.FileDescriptorProto(name="payment.proto", syntax="proto3")
    fields = file.message_type.add(name="Payment").field
    kinds = descriptor_pb2.FieldDescriptorProto
    for number, (name, kind) in enumerate((("card", 9), ("amount", 1)), 1):
        fields.add(name=name, number=number, type=kind, label=kinds.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Payment"))


@pytest.fixture
def stand_in():
    stand_in = RegistryStandIn()
    yield stand_in
    stand_in.close()


async def through(kafka, topic, encode, decode, results):
    """Results that were written to a topic and read back."""
    sink = connect.kafka(kafka.address, topic, encode=encode)
    await sink.write([("k", result) for result in results])
    await sink.flush()
    await sink.close()
    source = connect.kafka(kafka.address, topic, decode=decode, until="end")
    try:
        return [record async for item in source if isinstance(item, list) for record in item]
    finally:
        await source.close()


async def test_avro_travels_with_the_id_of_its_schema(kafka, stand_in):
    registry = connect.schema_registry(stand_in.url)
    topic = kafka.topic()
    payments = [{"card": f"c{number}", "amount": number / 2} for number in range(100)]
    encode = registry.encode_avro(SCHEMA, topic=topic)
    found = await through(kafka, topic, encode, registry.decode_avro(), payments)
    assert [record.value for record in found] == payments
    assert list(stand_in.subjects) == [f"{topic}-value"]
    # One request to register, and one for all records that are read.
    assert stand_in.requests == [f"subjects/{topic}-value/versions", "schemas/ids/1"]
    (first,) = kafka.read(topic, 1)[:1]
    assert first.value()[:5] == b"\0\0\0\0\1"
    kafka.disconnect()


async def test_protobuf_travels_with_the_id_of_its_schema(kafka, stand_in):
    registry = connect.schema_registry(stand_in.url)
    topic = kafka.topic()
    message = payment_class()
    encode = registry.encode_protobuf(message, topic=topic)
    values = [message(card=f"c{number}", amount=number / 2) for number in range(10)]
    found = await through(kafka, topic, encode, registry.decode_protobuf(message), values)
    assert [record.value for record in found] == values
    kafka.disconnect()


async def test_bytes_that_do_not_fit_are_a_bad_record(kafka, stand_in):
    registry = connect.schema_registry(stand_in.url)
    topic = kafka.topic()
    unknown = b"\0\0\0\0\x63abc"
    good = registry.encode_avro(SCHEMA, topic=topic)({"card": "c", "amount": 1.0})
    found = await through(kafka, topic, "bytes", registry.decode_avro(), [b"{}", unknown, good])
    assert [type(item) is Bad for item in found] == [True, True, False]
    assert found[0].record.value == b"{}"
    with pytest.raises(ValueError, match="card"):
        registry.encode_avro(SCHEMA, topic=topic)({"amount": 1.0})
    kafka.disconnect()


async def test_a_registry_that_is_away_ends_the_source(kafka, stand_in):
    registry = connect.schema_registry(stand_in.url)
    topic = kafka.topic()
    good = registry.encode_avro(SCHEMA, topic=topic)({"card": "c", "amount": 1.0})
    stand_in.status = 500
    for url in (stand_in.url, "http://127.0.0.1:1"):
        decode = connect.schema_registry(url).decode_avro()
        with pytest.raises(Unreachable, match=url):
            await through(kafka, topic, "bytes", decode, [good])
    kafka.disconnect()


def test_a_user_is_refused_and_the_password_is_shown_nowhere(tmp_path, monkeypatch):
    monkeypatch.delenv("SCHEMA_REGISTRY_PASSWORD", raising=False)
    stand_in = RegistryStandIn(login="alice:hunter2")
    try:
        (tmp_path / "password").write_text("hunter2\n")
        file = str(tmp_path / "password")
        registry = connect.schema_registry(stand_in.url, user="alice", password_file=file)
        registry.encode_avro(SCHEMA, topic="t")({"card": "c", "amount": 1.0})
        registry = connect.schema_registry(stand_in.url, user="alice", password="hunter3")
        with pytest.raises(AuthenticationFailed) as caught:
            registry.encode_avro(SCHEMA, topic="t")({"card": "c", "amount": 1.0})
        assert "hunter3" not in f"{caught.value!r} {registry!r}"
        with pytest.raises(ValueError, match="no password"):
            connect.schema_registry(stand_in.url, user="alice")
    finally:
        stand_in.close()
