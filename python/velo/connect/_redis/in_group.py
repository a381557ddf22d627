"""Reading Redis streams as a consumer of a group."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from velo.connect._redis.entries import Bound, Entry, begin_id, order, text
from velo.connect._redis.link import Link
from velo.connect._redis.replies import entries_of, last_id, stream_info
from velo.connect.errors import ConnectError
from velo.connect.receipts import Receipts
from velo.connect.settings import log

__all__ = ["InGroup"]

# The most ids of one XACK or XCLAIM.
_CHUNK = 1000


class InGroup:
    """Reads by XREADGROUP, and takes over what a dead consumer of the group left.

    Attributes:
        redelivered: How many entries were delivered before, to this consumer or to another.

    """

    def __init__(
        self,
        link: Link,
        streams: Sequence[str],
        start: Any,
        batch: int,
        *,
        group: str,
        rewind: bool,
        consumer: str,
        lasting: bool,
        claim_after: float,
        limit: float,
    ) -> None:
        self.redelivered = 0
        self._link = link
        self._bound = Bound(None)
        self._begin = {stream: begin_id(start, stream) for stream in streams}
        self._batch = batch
        self._group = group
        self._rewind = rewind
        self._consumer = consumer
        self._lasting = lasting
        self._claim_after = claim_after
        self._limit = limit
        self._receipts: Receipts[None] = Receipts()
        # Behind which id to ask next for entries that this consumer has not acknowledged; and in
        # which streams to go on looking for what other consumers left.
        self._own: dict[str, str] = {}
        self._claims: dict[str, str] = {}
        self._claim_at = 0.0

    async def begin(self, bound: Bound) -> None:
        """Make the group where there is none, with its stream."""
        self._bound = bound
        for stream, start in self._begin.items():
            words = ("XGROUP", "CREATE", stream, self._group, start, "MKSTREAM")
            try:
                await self._link.command(*words)
            except ConnectError as error:
                if "BUSYGROUP" not in str(error):
                    raise
                if self._rewind:
                    await self._link.command("XGROUP", "SETID", stream, self._group, start)
            bound.begin(stream, last_id(await stream_info(self._link, stream)))
        self._ask_for_own()

    def _ask_for_own(self) -> None:
        # Also after an outage: the reply that was lost with the connection may have had entries.
        self._own = dict.fromkeys(self._begin, "0")

    async def read(self, streams: Sequence[str], wait: float) -> list[Entry]:
        """Give the next entries: own ones first, then a dead consumer's, then new ones."""

        async def look(client: Any) -> list[Entry]:
            for stream in streams:
                if entries := await self._own_entries(client, stream):
                    return self._again(entries)
            if time.monotonic() >= self._claim_at:
                self._claims = dict.fromkeys(self._begin, "0-0")
                self._claim_at = time.monotonic() + self._claim_after / 2
            for stream in streams:
                if entries := await self._claim(client, stream):
                    return self._again(entries)
            block = min(wait, self._claim_after / 2)
            blocking = ("BLOCK", int(block * 1000) or 1) if wait > 0 else ()
            reply = await client.execute_command(
                *("XREADGROUP", "GROUP", self._group, self._consumer, "COUNT", self._batch),
                *(*blocking, "STREAMS", *streams, *(">" for _ in streams)),
            )
            # Those behind the bound stay pending, for the next run.
            return [entry for entry in entries_of(reply) if self._bound.holds(entry)]

        entries = await self._link.call(look, on_outage=self._ask_for_own)
        return [entry for entry in entries if self._receipts.add(entry.stream, entry.id, None)]

    def _again(self, entries: list[Entry]) -> list[Entry]:
        self.redelivered += len(entries)
        return entries

    def _unknown(self, entries: list[Entry]) -> list[Entry]:
        return [entry for entry in entries if entry.id not in self._receipts.of(entry.stream)]

    async def _own_entries(self, client: Any, stream: str) -> list[Entry]:
        """Give what this consumer was sent and has not acknowledged, without what it works on."""
        while (behind := self._own.get(stream)) is not None:
            reply = await client.execute_command(
                *("XREADGROUP", "GROUP", self._group, self._consumer, "COUNT", self._batch),
                *("STREAMS", stream, behind),
            )
            entries = entries_of(reply)
            if not entries:
                del self._own[stream]
            else:
                self._own[stream] = entries[-1].id
            if unknown := self._unknown(entries):
                return unknown
        return []

    async def _claim(self, client: Any, stream: str) -> list[Entry]:
        """Take over entries that no consumer has worked on for `claim_after` seconds."""
        while (cursor := self._claims.get(stream)) is not None:
            after_this, found, *deleted = await client.execute_command(
                *("XAUTOCLAIM", stream, self._group, self._consumer),
                *(int(self._claim_after * 1000), cursor, "COUNT", self._batch),
            )
            if text(after_this) == "0-0":
                del self._claims[stream]
            else:
                self._claims[stream] = text(after_this)
            entries = [Entry(stream, text(item[0]), item[1] or None) for item in found if item]
            entries += [Entry(stream, text(gone), None) for gone in (deleted[0] if deleted else ())]
            if unknown := self._unknown(entries):
                log.info(
                    "redis %s: took over %d entries that were not acknowledged in group `%s` for "
                    "%g s", stream, len(unknown), self._group, self._claim_after,
                )  # fmt: skip
                return unknown
        return []

    async def tend(self) -> dict[str, int]:
        """Tell the group that this consumer works on its entries; give the lag of each stream."""
        for stream in self._begin:
            waiting = list(self._receipts.of(stream))
            for start in range(0, len(waiting), _CHUNK):
                await self._keep(stream, waiting[start : start + _CHUNK])
        lag = {}
        for stream in self._begin:
            groups = await self._link.command("XINFO GROUPS", stream)
            for group in groups:
                if text(group["name"]) == self._group and group.get("lag") is not None:
                    lag[stream] = group["lag"]
        return lag

    async def _keep(self, stream: str, ids: list[str]) -> None:
        """Set back the idle time of those entries that are this consumer's still."""
        ordered = sorted(ids, key=order)
        pending = await self._link.command(
            "XPENDING", stream, self._group, ordered[0], ordered[-1], 2 * _CHUNK, self._consumer
        )
        known = set(ids)
        mine = [text(item[0]) for item in pending if text(item[0]) in known]
        if mine:
            words = ("XCLAIM", stream, self._group, self._consumer, 0, *mine, "JUSTID")
            await self._link.command(*words)

    async def commit(self, positions: Mapping[Any, Any]) -> None:
        """Acknowledge all entries that came up to these."""
        for stream, position in positions.items():
            ids = list(self._receipts.up_to(stream, position))
            for start in range(0, len(ids), _CHUNK):
                chunk = ids[start : start + _CHUNK]
                words = ("XACK", stream, self._group, *chunk)
                await self._link.command(*words, limit=self._limit)
                self._receipts.remove(stream, chunk)

    async def end(self) -> None:
        """Leave the group, where this consumer's name was made for this run and owes nothing."""
        if self._lasting:
            return
        for stream in self._begin:
            for consumer in await self._link.command("XINFO CONSUMERS", stream, self._group):
                if text(consumer["name"]) == self._consumer and consumer["pending"] == 0:
                    words = ("XGROUP", "DELCONSUMER", stream, self._group, self._consumer)
                    await self._link.command(*words)
