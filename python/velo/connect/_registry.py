"""Avro and Protobuf with a schema registry, by Confluent's own serializers."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from velo.connect.errors import AuthenticationFailed, PermissionDenied, Unreachable, missing
from velo.connect.settings import secret

try:
    from confluent_kafka.schema_registry import (
        SchemaRegistryClient,
        topic_subject_name_strategy,
    )
    from confluent_kafka.schema_registry.error import SchemaRegistryError
    from confluent_kafka.serialization import MessageField, SerializationContext
except ImportError as error:
    raise missing("`connect.schema_registry`", "schema-registry") from error

__all__ = ["SchemaRegistry", "schema_registry"]

_BY_TOPIC = {"subject.name.strategy": topic_subject_name_strategy}


def schema_registry(
    url: str,
    *,
    user: str | None = None,
    password: str | None = None,
    password_file: str | None = None,
    tls_ca: str | None = None,
    timeout: float = 10.0,
) -> SchemaRegistry:
    """Give the formats of a schema registry with Confluent's interface.

    Args:
        url: Its address, `http://localhost:8081`, without a user.
        user: The user, or the API key.
        password: The password. Without one, the environment variable `SCHEMA_REGISTRY_PASSWORD`
            gives it.
        password_file: A file with the password.
        tls_ca: A file with the certificates to trust.
        timeout: Seconds for an answer.

    Raises:
        ImportError: When its packages are not installed.
        ValueError: When a user has no password.

    """
    config: dict[str, Any] = {"url": url, "timeout": timeout}
    if user is not None:
        known = secret(password, password_file) or os.environ.get("SCHEMA_REGISTRY_PASSWORD")
        if known is None:
            raise ValueError(
                f"user {user!r} has no password: give `password_file`, or set "
                "SCHEMA_REGISTRY_PASSWORD"
            )
        config["basic.auth.user.info"] = f"{user}:{known}"
    if tls_ca is not None:
        config["ssl.ca.location"] = tls_ca
    return SchemaRegistry(url, SchemaRegistryClient(config))


class SchemaRegistry:
    """Makes `decode=` and `encode=` for connectors.

    A schema is fetched once, when the first record of it comes. A registry that does not answer
    ends the source; a record that does not fit its schema is a bad record.
    """

    def __init__(self, url: str, client: Any) -> None:
        self._url = url
        self._client = client

    def __repr__(self) -> str:
        """Show the address."""
        return f"<schema registry at {self._url}>"

    def decode_avro(self, schema: str | None = None) -> Callable[[bytes], Any]:
        """Give a `decode=` for Avro: records become dicts.

        Args:
            schema: The schema to read with, as JSON; None takes the one that the writer had.

        """
        avro = self._serializers("avro")
        return self._reading(avro.AvroDeserializer(self._client, schema))

    def encode_avro(self, schema: str, *, topic: str, register: bool = True) -> Any:
        """Give an `encode=` for Avro.

        Args:
            schema: The schema, as JSON.
            topic: The topic: the subject of the schema is `TOPIC-value`.
            register: Whether a schema that the registry does not have is registered.

        """
        avro = self._serializers("avro")
        config = {**_BY_TOPIC, "auto.register.schemas": register}
        return self._writing(avro.AvroSerializer(self._client, schema, conf=config), topic)

    def decode_protobuf(self, message: Any) -> Callable[[bytes], Any]:
        """Give a `decode=` for Protobuf: records become messages of this class."""
        protobuf = self._serializers("protobuf")
        return self._reading(
            protobuf.ProtobufDeserializer(message, {"use.deprecated.format": False}, self._client)
        )

    def encode_protobuf(self, message: Any, *, topic: str, register: bool = True) -> Any:
        """Give an `encode=` for Protobuf messages of this class; as `encode_avro`."""
        protobuf = self._serializers("protobuf")
        config = {**_BY_TOPIC, "auto.register.schemas": register, "use.deprecated.format": False}
        return self._writing(protobuf.ProtobufSerializer(message, self._client, config), topic)

    def _serializers(self, format: str) -> Any:
        try:
            if format == "avro":
                import confluent_kafka.schema_registry.avro as avro

                return avro
            import confluent_kafka.schema_registry.protobuf as protobuf
        except ImportError as error:
            raise missing(f"the format {format}", "schema-registry") from error
        return protobuf

    def _reading(self, deserializer: Any) -> Callable[[bytes], Any]:
        def decode(data: bytes) -> Any:
            # The bytes begin with the id of their schema, so it needs no subject.
            return self._call(deserializer, data, None)

        return decode

    def _writing(self, serializer: Any, topic: str) -> Callable[[Any], bytes]:
        context = SerializationContext(topic, MessageField.VALUE)

        def encode(value: Any) -> bytes:
            data: bytes = self._call(serializer, value, context)
            return data

        return encode

    def _call(self, serializer: Any, value: Any, context: Any) -> Any:
        try:
            return serializer(value, context)
        except SchemaRegistryError as error:
            status = error.http_status_code
            if status == 401:
                raise AuthenticationFailed(
                    f"the schema registry at {self._url} refuses the user: {error}"
                ) from None
            if status == 403:
                raise PermissionDenied(
                    f"the user may not do this at the schema registry at {self._url}: {error}"
                ) from None
            if status >= 500 or status == 429:
                raise Unreachable(f"the schema registry at {self._url} fails: {error}") from None
            raise
        except Exception as error:
            # Its HTTP library is another one in each version of the client.
            if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore2"):
                raise Unreachable(
                    f"no schema registry answers at {self._url}: {error or type(error).__name__}"
                ) from None
            raise
