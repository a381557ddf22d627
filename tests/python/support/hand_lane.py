"""A key whose worker is the test: it sees each frame that is sent, and says each that is read."""

import asyncio
import struct

from helpers import HANG, until
from velo import _core
from velo._function.exceptions import pack
from velo.connect import Record
from velo.errors import WorkerDied

__all__ = ["HandLane"]

# Kinds of frames, as in `lane_frames.rs`.
_SENT = {8: "terms", 9: "open", 10: "event", 11: "last", 12: "cancel", 22: "save"}
_ENDED, _FAILED, _HANDLED, _RETURNED, _SAVED = 14, 15, 16, 21, 23
_NO_LIMIT = 1 << 40


class HandLane:
    """The key `"key"` in one lane at a time, which the test holds the other end of.

    Attributes:
        keys: The keys, of which there is this one.
        sent: The kinds of the frames that the present lane has sent.
        failures: What has failed.
        state: What the key opens with; None for no state.

    Args:
        finished_keys: As for `StreamFn.keyed`.
        buffer: As in `StreamConfig`.

    """

    def __init__(self, finished_keys="restart", buffer=8):
        self.sent = []
        self.failures = []
        self.state = None
        self.exhausted = False
        self._events = []
        self._lane = None
        # Of the key, as the lane knows it.
        self._name = b""
        settings = (buffer, _NO_LIMIT, 1 << 20, None, False, finished_keys, 100, "raise")
        self.keys = _core.Keys(self, self, True, "k", 1, settings)
        self.keys.track(False, True, False, 3)
        self.keys.may_restore()
        self._driver = asyncio.get_running_loop().create_task(self._drive())

    async def _drive(self):
        async for _ in _core.KeyedResults(self.keys, None):
            self.failures += self.keys.take(1_000)[1]

    # The source.

    def feed(self, *positions):
        """Have records of the key come, at these positions of one partition."""
        self._events += [Record({"k": "key"}, partition="p", position=p) for p in positions]
        self.keys.nudge()

    def exhaust(self):
        """Have no more records come."""
        self.exhausted = True
        self.keys.nudge()

    def __iter__(self):
        return self

    def __next__(self):
        if not self._events:
            raise StopIteration
        return self._events.pop(0)

    # The host.

    def open_lane(self):
        self._lane = _core.RemoteLane(self._carry, "a machine", 1 << 20)
        self.keys.add_remote_lane(self._lane)

    def restore(self, keys):
        return [self.state for _ in keys]

    def closes(self, failed):
        self.keys.clear()
        closed = asyncio.get_running_loop().create_future()
        closed.set_result(None)
        return closed

    # The worker.

    def _carry(self):
        frames = self._lane.take(1 << 20)
        while frames:
            kind, length = struct.unpack_from("<BI", frames)
            payload, frames = frames[5 : 5 + length], frames[5 + length :]
            if _SENT[kind] == "open":
                self._name = payload[:8]
            if _SENT[kind] != "terms":
                self.sent.append(_SENT[kind])

    async def until_sent(self, *frames):
        """Wait until the present lane has these frames, and no other ones."""
        await until(lambda: len(self.sent) >= len(frames))
        assert self.sent == list(frames)

    def _tell(self, kind, payload):
        self._push(kind, self._name + payload)

    def _push(self, kind, payload):
        self._lane.push(struct.pack("<BI", kind, len(payload)) + payload)

    def returns(self, taken):
        """The function has returned after these events, and is run anew with the next one."""
        self._tell(_SAVED, struct.pack("<Q", taken))
        self._tell(_RETURNED, struct.pack("<I", taken))

    def handles(self, count):
        """The function has handled its first events, as many as this."""
        self._push(_HANDLED, struct.pack("<QQ", count, 0) + self._name + struct.pack("<I", count))

    def ends(self, handled=0, error=None):
        """The function has returned or raised, and has handled this many more events before."""
        rest = struct.pack("<IB", handled, False)
        if error is None:
            self._tell(_ENDED, rest)
        else:
            self._tell(_FAILED, rest + _core.dumps(pack(error, 10_000)))

    def die(self):
        """The worker dies, at no key."""
        self.sent = []
        error = WorkerDied("keyed", 1, 9, None, 0, None, None, None)
        self._lane.close(error, (False, 0, True))

    # The end.

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        self._driver.cancel()
        await asyncio.wait([self._driver])
        self.keys.clear()

    async def outcome(self):
        """Wait for the end of the iteration, and raise its error."""
        async with asyncio.timeout(HANG):
            await self._driver
