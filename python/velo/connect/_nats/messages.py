"""Messages of NATS as records, and results as messages."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from velo.connect.errors import ConnectError
from velo.connect.formats import key_bytes
from velo.connect.model import Bad, Headers, Partition, Position, Record, To

__all__ = ["ID", "Layout", "Message"]

ID = "Nats-Msg-Id"
"""The header by which JetStream finds a message that it has already."""

# What the client takes for the name of a header.
_HEADER = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


class Message(NamedTuple):
    """A result as a message."""

    subject: str
    data: bytes
    headers: dict[str, str]


class Layout:
    """How events and results lie in messages; the key is a header, or else the subject."""

    def __init__(
        self,
        key_header: str | None,
        decode: Callable[[bytes], Any],
        decode_key: Callable[[bytes], Any],
        encode: Callable[[Any], bytes],
        message_id: Callable[[Any], str] | None,
    ) -> None:
        self._key = key_header
        self._decode = decode
        self._decode_key = decode_key
        self._encode = encode
        self._id = message_id

    def record(
        self, message: Any, partition: Partition, position: Position, timestamp: float | None
    ) -> Record | Bad:
        """Make a record of a message."""
        key: Any = message.subject
        headers: Headers = ()
        if message.headers:
            headers = tuple(
                (name, value.encode(errors="surrogateescape"))
                for name, value in message.headers.items()
                if name != self._key
            )
        origin = (message.subject, partition, position, timestamp, headers)
        try:
            if message.headers and self._key in message.headers:
                key = self._decode_key(message.headers[self._key].encode())
            return Record(self._decode(message.data), key, *origin)
        except ConnectError:
            raise  # a schema registry that is away is not the fault of the record
        except Exception as error:
            return Bad(Record(message.data, key, *origin), error)

    def message(self, result: To, subject: str) -> Message:
        """Make a message of a result.

        Raises:
            TypeError: When the result cannot be encoded.
            ValueError: When key or headers are no text, or the subject.

        """
        headers = {}
        key = key_bytes(result.key)
        pairs = list(result.headers)
        if key is not None and self._key is not None:
            pairs.append((self._key, key))
        subject = result.topic or subject
        subject.encode()  # refused now, or not at all
        for name, value in pairs:
            if not _HEADER.fullmatch(name):
                raise ValueError(f"a header of a NATS message cannot have the name {name!r}")
            try:
                headers[name] = value.decode()
            except UnicodeDecodeError:
                headers[name] = "\n"
            if not headers[name].isprintable() or headers[name] != headers[name].strip():
                raise ValueError(
                    f"the header `{name}` of a NATS message is one line of text, not {value!r}: "
                    "choose another key, or `key_header=None`"
                )
        if self._id is not None and ID not in headers:
            headers[ID] = self._id(result.value)
        return Message(subject, self._encode(result.value), headers)
