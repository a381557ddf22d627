"""Messages of Kafka to records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from velo.connect._kafka.places import Name
from velo.connect.errors import ConnectError
from velo.connect.model import Bad, Record

__all__ = ["records_of"]


def records_of(
    messages: Iterable[Any],
    names: Mapping[str, Mapping[int, Name]],
    decode: Callable[[bytes], Any],
    decode_key: Callable[[bytes], Any],
    on_error: Callable[[Any], None],
) -> list[Record | Bad]:
    """Make records of messages; `on_error` takes the messages that are errors of the client.

    Args:
        messages: Of `consume`.
        names: The name of each partition by topic and number, so that records share it.
        decode: Makes an event of a value.
        decode_key: Makes a key of a key's bytes.
        on_error: Called with a message that is an error.

    """
    plain_key = decode_key is bytes
    records: list[Record | Bad] = []
    for message in messages:
        if message.error() is not None:
            on_error(message)
            continue
        name = names[message.topic()][message.partition()]
        value, key = message.value(), message.key()
        stamp, headers = message.timestamp()[1], message.headers()
        origin = (
            name[0],
            name,
            message.offset(),
            stamp / 1000 if stamp >= 0 else None,
            tuple((header, data or b"") for header, data in headers) if headers else (),
        )
        try:
            # A tombstone has no value, and no key is no key.
            event = None if value is None else decode(value)
            if not plain_key and key is not None:
                records.append(Record(event, decode_key(key), *origin))
            else:
                records.append(Record(event, key, *origin))
        except ConnectError:
            raise  # a schema registry that is away is not the record's fault
        except Exception as error:
            records.append(Bad(Record(value, key, *origin), error))
    return records
