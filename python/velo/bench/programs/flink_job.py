"""PyFlink: a keyed process function of the DataStream API, in a cluster within the program."""

import json
import os

from pyflink.common import SimpleStringSchema, Types, WatermarkStrategy
from pyflink.datastream import KeyedProcessFunction, StreamExecutionEnvironment
from pyflink.datastream.connectors.kafka import (
    KafkaOffsetsInitializer,
    KafkaRecordSerializationSchema,
    KafkaSink,
    KafkaSource,
)
from pyflink.datastream.state import ValueStateDescriptor


class Spending(KeyedProcessFunction):
    """Count the payments of a user, and add them up."""

    def open(self, context):
        """Declare the state."""
        kind = Types.TUPLE([Types.LONG(), Types.DOUBLE()])
        self.state = context.get_state(ValueStateDescriptor("spending", kind))

    def process_element(self, payment, context):
        """Take a payment."""
        count, total = self.state.value() or (0, 0.0)
        count, total = count + 1, total + payment["amount"]
        self.state.update((count, total))
        yield json.dumps({"user": payment["user"], "count": count, "total": total})


env = StreamExecutionEnvironment.get_execution_environment()
env.add_jars(f"file://{os.environ['JAR']}")
source = (
    KafkaSource.builder()
    .set_bootstrap_servers(os.environ["SERVERS"])
    .set_topics(os.environ["SOURCE"])
    .set_group_id(os.environ["GROUP"])
    .set_starting_offsets(KafkaOffsetsInitializer.earliest())
    .set_value_only_deserializer(SimpleStringSchema())
    .build()
)
schema = (
    KafkaRecordSerializationSchema.builder()
    .set_topic(os.environ["RESULTS"])
    .set_value_serialization_schema(SimpleStringSchema())
    .build()
)
sink = (
    KafkaSink.builder()
    .set_bootstrap_servers(os.environ["SERVERS"])
    .set_record_serializer(schema)
    .build()
)
payments = env.from_source(source, WatermarkStrategy.no_watermarks(), "payments").map(json.loads)
users = payments.key_by(lambda payment: payment["user"], key_type=Types.STRING())
users.process(Spending(), output_type=Types.STRING()).sink_to(sink)
env.execute("payments")
