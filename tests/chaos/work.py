"""What runs while things die: functions whose every result depends on every event before it."""

import zlib

from velo import stream_fn

SETTINGS = {"mode": "process", "workers": 2, "recover": "replay"}


@stream_fn(**SETTINGS)
async def account(events):
    """One result an event: its number, and a checksum of all events so far."""
    count = check = 0
    async for number, payload in events:
        check = zlib.crc32(payload, check)
        count += 1
        yield number, count, check
    yield "end", count, check
