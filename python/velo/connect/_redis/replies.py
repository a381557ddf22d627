"""Replies of a Redis server, taken apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from velo.connect._redis.entries import Entry, text
from velo.connect._redis.link import Link
from velo.connect.errors import ConnectError

__all__ = ["entries_of", "last_id", "stream_info"]


def entries_of(reply: Any) -> list[Entry]:
    """Take a reply of XREAD or XREADGROUP apart."""
    return [
        Entry(text(stream), text(entry_id), fields or None)
        for stream, entries in reply or ()
        for entry_id, fields in entries
    ]


async def stream_info(link: Link, stream: str) -> dict[str, Any]:
    """Ask for XINFO STREAM; an empty dict where there is no such stream."""
    try:
        return await link.command("XINFO STREAM", stream)  # type: ignore[no-any-return]
    except ConnectError as error:
        if "no such key" in str(error):
            return {}
        raise


def last_id(info: Mapping[str, Any]) -> str:
    return text(info.get("last-generated-id", "0-0"))
