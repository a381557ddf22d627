"""Reading Redis streams by id: the caller keeps the positions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from velo.connect._redis.entries import Bound, Entry, after, begin_id, order, start_of, text
from velo.connect._redis.link import Link
from velo.connect._redis.replies import entries_of, last_id, stream_info
from velo.connect.errors import PositionLost
from velo.connect.settings import log

__all__ = ["ById"]


class ById:
    """Reads by XREAD: the caller keeps the positions."""

    redelivered = 0

    def __init__(self, link: Link, streams: Sequence[str], start: Any, batch: int) -> None:
        self._link = link
        self._bound = Bound(None)
        self._batch = batch
        self._behind = {stream: begin_id(start, stream) for stream in streams}
        # The streams whose position is an entry that was handled, and not a time.
        self._handled = {
            stream for stream in streams if not isinstance(start_of(start, stream), int | float)
        }
        # How many entries were ever added to a stream up to `_behind`, where that is known.
        self._added: dict[str, int] = {}

    def seek(self, positions: Mapping[Any, Any]) -> None:
        """Begin behind these entries."""
        mine = {stream: positions[stream] for stream in self._behind if stream in positions}
        self._behind |= mine
        self._handled |= mine.keys()

    async def begin(self, bound: Bound) -> None:
        """Find where each stream begins and ends."""
        self._bound = bound
        for stream, behind in self._behind.items():
            info = await stream_info(self._link, stream)
            last = last_id(info)
            if behind == "$":
                self._behind[stream] = last
            bound.begin(stream, last)
            if not info and not bound.exists:
                log.warning(
                    "redis %s: there is no such stream on %s yet; waiting for its first entry",
                    stream, self._link.address,
                )  # fmt: skip
            added = info.get("entries-added")
            if added is not None and behind == "$":
                self._added[stream] = added
            elif added is not None and behind == "0-0":
                self._added[stream] = added - info["length"]
        await self._check(self._behind)

    async def read(self, streams: Sequence[str], wait: float) -> list[Entry]:
        """Give the next entries, at once where there are some."""
        first: dict[str, str | None] = {}

        async def look(client: Any) -> Any:
            # One transaction: what was deleted is deleted before the entries were read.
            async with client.pipeline(transaction=True) as pipe:
                pipe.execute_command("XREAD", "COUNT", self._batch, *self._places(streams))
                for stream in streams:
                    pipe.execute_command("XRANGE", stream, "-", "+", "COUNT", 1)
                reply, *firsts = await pipe.execute()
            for stream, entry in zip(streams, firsts, strict=True):
                first[stream] = text(entry[0][0]) if entry else None
            return reply

        reply = await self._link.call(look)
        begun = {entry.stream for entry in entries_of(reply)}
        await self._check(
            stream
            for stream, entry_id in first.items()
            if entry_id is None
            or (stream in begun and order(entry_id) > order(self._behind[stream]))
        )
        if not reply and wait > 0:
            # This stands at the end of the streams: nothing is deleted before it is read.
            words = ("XREAD", "COUNT", self._batch, "BLOCK", int(wait * 1000) or 1)
            reply = await self._link.command(*words, *self._places(streams))
        entries = entries_of(reply)
        begun = {entry.stream for entry in entries}
        self._handled |= begun
        for entry in entries:
            self._behind[entry.stream] = entry.id
            if entry.stream in self._added:
                self._added[entry.stream] += 1
        return [entry for entry in entries if self._bound.holds(entry)]

    def _places(self, streams: Sequence[str]) -> list[str]:
        return ["STREAMS", *streams, *(self._behind[stream] for stream in streams)]

    async def _check(self, streams: Iterable[str]) -> None:
        """Raise where entries behind the position were deleted before they were read."""
        for stream in list(streams):
            behind = self._behind[stream]
            if behind == "0-0" or stream not in self._handled:
                continue
            info = await stream_info(self._link, stream)
            last = last_id(info)
            where = f"`{behind}` of the stream `{stream}` on {self._link.address}"
            entry = info.get("first-entry")
            if not entry and order(last) < order(behind):
                raise PositionLost(
                    f"the position {where} is behind the stream's last entry `{last}`: the stream "
                    "was deleted, or the server came back without its data. Choose where to begin "
                    "with `start=`"
                )
            first = text(entry[0]) if entry else after(last)
            if order(first) <= order(behind) or order(last) == order(behind):
                continue
            if text(info.get("max-deleted-entry-id", "0-0")) == behind:
                continue  # deleted by itself, as programs do that delete what they have handled
            raise PositionLost(
                f"entries behind the position {where} were deleted before they were read: its "
                f"first entry is `{first}`. Choose where to begin with `start=`, and keep more "
                "entries (MAXLEN, MINID)"
            )

    async def tend(self) -> dict[str, int]:
        """Give how many entries each stream holds that were not read."""
        lag = {}
        for stream, added in list(self._added.items()):
            info = await stream_info(self._link, stream)
            if last_id(info) == self._behind[stream]:
                self._added[stream] = added = info["entries-added"]
            lag[stream] = max(0, info.get("entries-added", added) - added)
        return lag

    async def commit(self, positions: Mapping[Any, Any]) -> None:
        """Do nothing: the caller keeps the positions."""

    async def end(self) -> None:
        """Nothing is left behind."""
