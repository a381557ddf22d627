"""Formats: bytes to events, and results to bytes. Nothing here unpickles."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from typing import Any, Literal

from velo.connect.errors import missing
from velo.connect.rows import Csv, Rows, csv

__all__ = ["Decode", "Encode", "decoder", "encoder", "key_bytes", "line_decoder"]

Decode = Literal["json", "msgpack", "text", "bytes", "csv"] | Csv | Callable[[bytes], Any]
"""How the bytes of a record become an event: a format, or a function of the bytes.

`"csv"` is `csv()`, and `"csv:user,amount"` is `csv(columns=["user", "amount"])`.
"""

Encode = Literal["json", "msgpack", "text", "bytes"] | Callable[[Any], bytes]
"""How a result becomes bytes: a format, or a function of the result."""


def decoder(decode: Decode) -> Callable[[bytes], Any]:
    """Give the function that makes an event of the bytes of a record.

    Raises:
        ValueError: When there is no such format, or CSV has no names for its fields.
        ImportError: When its package is not installed.

    """
    if callable(decode):
        return decode
    if (rules := _csv_rules(decode)) is not None:
        if rules.columns is None:
            raise ValueError(
                'decode="csv": a record of this source is one row, and no header comes: name the '
                'fields, `decode=connect.csv("user,amount")`, or `decode=csv:user,amount` in a URL'
            )
        return Rows(rules)
    if decode == "bytes":
        return bytes
    if decode == "text":
        return lambda data: data.decode()
    if decode == "json":
        return _json_loads()
    if decode == "msgpack":
        loads: Callable[[bytes], Any] = _import("msgpack", "msgpack").unpackb
        return loads
    raise ValueError(_no_format("decode", decode))


def line_decoder(decode: Decode) -> Callable[[], Callable[[bytes], Any]]:
    """Give what makes the function for the lines of each file, which may begin with a header.

    Raises:
        ValueError, ImportError: As `decoder`.

    """
    if (rules := _csv_rules(decode)) is not None:
        return lambda: Rows(rules)
    decoded = decoder(decode)
    return lambda: decoded


def _csv_rules(decode: object) -> Csv | None:
    if isinstance(decode, str) and decode.partition(":")[0] == "csv":
        _, given, columns = decode.partition(":")
        return csv(columns if given else None)
    return decode if isinstance(decode, Csv) else None


def encoder(encode: Encode) -> Callable[[Any], bytes]:
    """Give the function that makes bytes of a result; as `decoder`."""
    if callable(encode):
        return encode
    if encode == "bytes":
        return _as_bytes
    if encode == "text":
        return lambda value: str(value).encode()
    if encode == "json":
        return _json_dumps()
    if encode == "msgpack":
        dumps: Callable[[Any], bytes] = _import("msgpack", "msgpack").packb
        return dumps
    raise ValueError(_no_format("encode", encode))


def key_bytes(key: Any) -> bytes | None:
    """Make bytes of a key, so that equal keys give equal bytes: text as UTF-8, others as JSON."""
    if key is None or isinstance(key, bytes):
        return key
    if isinstance(key, str):
        return key.encode()
    return _json_dumps()(key)


def _as_bytes(value: Any) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(
            f'encode="bytes" takes bytes, not {type(value).__name__}: yield bytes, or choose '
            "another format"
        )
    return bytes(value)


def _json_loads() -> Callable[[bytes], Any]:
    try:
        import orjson
    except ImportError:
        return json.loads
    return orjson.loads


def _json_dumps() -> Callable[[Any], bytes]:
    try:
        import orjson
    except ImportError:
        return lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS

    def dumps(value: Any) -> bytes:
        try:
            return orjson.dumps(value, option=options)
        except TypeError as error:
            if "Integer exceeds 64-bit range" in str(error):
                return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
            raise

    return dumps


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing(f'the format "{package}"', package) from error


def _no_format(setting: str, given: object) -> str:
    more = ', "csv"' if setting == "decode" else ""
    return f'{setting}={given!r}: one of "json", "msgpack", "text", "bytes"{more}, or a function'
