"""A stream function that writes over the memory of its own link, and all that it can aim at."""

import ctypes
import functools
import os
import random
import re
import struct
import time

from velo import stream_fn

_HEADER = 192  # of a ring
_LINE = 64
_WORDS = 16384 // 8  # the ready bitmap, in bytes: one bit for each slot
_DIRECTION = 2 * _LINE + _WORDS + _LINE
_DIRECTIONS = 320  # where what is said to the client begins; what is said to the worker follows


class Links:
    """The links that are mapped in this process, as raw memory."""

    def __init__(self):
        """Find them by the name that velo gives its segments."""
        self.found = []
        with open("/proc/self/maps") as maps:
            for line in maps:
                if "memfd:velo-link" in line:
                    start, end = (int(part, 16) for part in re.split("[- ]", line)[:2])
                    self.found.append((start, end))
        assert self.found, "a worker has a link"
        self.base, self.end = self.found[-1]
        header = ctypes.string_at(self.base, 72)
        (
            self.magic,
            self.version,
            self.slots,
            self.ring_bytes,
            self.header_len,
            self.heap_bytes,
            self.slots_offset,
            self.stride,
            self.heap_to_client,
            self.heap_to_worker,
            self.total,
        ) = struct.unpack("<8sIIIIQQQQQQ", header)
        assert self.magic == b"velolink"
        assert self.header_len == _DIRECTIONS + 2 * _DIRECTION

    def put(self, offset, value, size=8):
        """Store a number."""
        assert 0 <= offset <= self.end - self.base - size
        value &= (1 << (8 * size)) - 1
        ctypes.memmove(self.base + offset, value.to_bytes(size, "little"), size)

    def get(self, offset, size=8):
        """Load a number."""
        return int.from_bytes(ctypes.string_at(self.base + offset, size), "little")

    def slot(self, number):
        """Where a slot begins."""
        return self.slots_offset + self.stride * number

    def in_use(self):
        """How many slots were ever used, by the link's own account, if that can be believed."""
        return min(max(self.get(132, 4), 2), 12)


def _value(rng, old):
    """A number that is wrong, and often nearly right."""
    kind = rng.randrange(6)
    return [
        lambda: 0,
        lambda: rng.getrandbits(64),
        lambda: (1 << 64) - 1 - rng.randrange(16),
        lambda: rng.randrange(1024) & ~7,
        lambda: old + rng.choice((-8, -1, 1, 8, 64)),
        lambda: 1 << rng.randrange(64),
    ][kind]()


def _direction(links, which):
    """Where what tells one side begins: 0 for the client, 1 for the worker."""
    return _DIRECTIONS + which * _DIRECTION


def info(links, rng):
    """The numbers that the link is described by."""
    for _ in range(4):
        at = rng.randrange(9) * 8
        links.put(at, _value(rng, links.get(at)))


def residents(links, rng):
    """How many streams there are, and that there may be more."""
    links.put(
        128, rng.choice((0, 1, 1 << 31, (1 << 32) - 1, (1 << 31) - 2, rng.getrandbits(32))), 4
    )
    links.put(136, _value(rng, links.get(136)))


def board(links, rng):
    """Which function runs, and how far it has come."""
    for at in range(192, 256, 8):
        links.put(at, _value(rng, links.get(at)))


def watch(links, rng):
    """Whether there are limits to keep, whether they are kept, and whether a core is free."""
    for at in (256, 260, 264):
        links.put(at, rng.choice((0, 1, 2, (1 << 32) - 1)), 4)


def flags(links, rng):
    """Whether each side sleeps, and waits for room."""
    for which in (0, 1):
        links.put(_direction(links, which), rng.choice((0, 1, 2, (1 << 32) - 1)), 4)
    for slot in range(links.in_use()):
        for ring in (0, 1):
            at = links.slot(slot) + ring * _HEADER + 2 * _LINE
            links.put(at, rng.choice((0, 1, 7)), 4)


def bitmaps(links, rng):
    """Which slots have something to do."""
    for which in (0, 1):
        start = _direction(links, which) + _LINE
        for _ in range(8):
            at = start + rng.randrange((_LINE + _WORDS) // 8) * 8
            links.put(at, rng.choice((0, rng.getrandbits(64), (1 << 64) - 1)))
        links.put(start + _LINE, rng.choice((0, (1 << 64) - 1)))


def indices(links, rng, slots=None):
    """Head, tail and what was released, of every ring but the control slot's."""
    for slot in slots or range(1, links.in_use()):
        for ring in (0, 1):
            start = links.slot(slot) + ring * _HEADER
            for field in (0, _LINE, _LINE + 8):
                if rng.random() < 0.7:
                    links.put(start + field, _value(rng, links.get(start + field)))


def counts(links, rng):
    """Statistics, and what is held, wanted and skipped."""
    for slot in range(1, links.in_use()):
        for ring in (0, 1):
            start = links.slot(slot) + ring * _HEADER
            for field in (8, 16, 24, 32, _LINE + 16, _LINE + 24):
                links.put(start + field, _value(rng, links.get(start + field)))


def lengths(links, rng):
    """Frames that are longer than they are."""
    for slot in range(1, links.in_use()):
        for ring in (0, 1):
            data = links.slot(slot) + 2 * _HEADER + ring * links.ring_bytes
            for _ in range(12):
                at = data + rng.randrange(links.ring_bytes // 8) * 8
                word = links.get(at)
                links.put(
                    at, (word & ~0xFFFFFFFF) | rng.choice((0xFFFFFFFF, 4096, word + 8 & 0xFFF))
                )


def moves(links, rng):
    """Frames that send the reader to rings that are not there."""
    for slot in range(1, links.in_use()):
        data = links.slot(slot) + 2 * _HEADER
        for at in range(data, data + links.ring_bytes - 24, 64):
            links.put(at, 16 | 1 << 32)
            links.put(
                at + 8,
                rng.choice((0, links.heap_to_client + 4096, links.total, links.heap_to_worker)),
            )
            links.put(at + 16, 1 << rng.randrange(40))


def control(links, rng):
    """The ring of control messages: indices and bytes."""
    indices(links, rng, [0])
    control_bytes(links, rng)


def control_bytes(links, rng):
    """The control messages themselves."""
    data = links.slot(0) + 2 * _HEADER
    for _ in range(64):
        links.put(data + rng.randrange(2 * links.ring_bytes), rng.getrandbits(8), 1)


def data(links, rng):
    """The bytes of events and results."""
    for slot in range(1, links.in_use()):
        start = links.slot(slot) + 2 * _HEADER
        for _ in range(64):
            links.put(start + rng.randrange(2 * links.ring_bytes), rng.getrandbits(8), 1)


def heap(links, rng):
    """Grown rings: their headers and what lies in them."""
    for start in (links.heap_to_client, links.heap_to_worker):
        for _ in range(200):
            page = start + rng.randrange(64) * 4096
            links.put(page + rng.choice((0, 8, 64, 72, 80, 128, 4096, 4104)), rng.getrandbits(64))


def anything(links, rng):
    """All of it, at random."""
    for _ in range(400):
        at = rng.choice((0, links.slots_offset, links.slot(1))) + rng.randrange(links.slots_offset)
        links.put(at & ~7, _value(rng, links.get(at & ~7)))


TARGETS = {
    aim.__name__: aim
    for aim in (
        info,
        residents,
        board,
        watch,
        flags,
        bitmaps,
        indices,
        counts,
        lengths,
        moves,
        control,
        control_bytes,
        data,
        heap,
        anything,
    )
}


@functools.cache
def links():
    """Return what was found before anything was written over."""
    return Links()


@stream_fn(mode="process")
async def citizen(events):
    """Doubles numbers; says its pid; writes over its link when it is told to."""
    async for event in events:
        if event == "pid":
            links()
            yield os.getpid()
        elif isinstance(event, tuple):
            what, seed = event
            rng = random.Random(f"{what} {seed}")
            for _ in range(rng.randrange(1, 4)):
                TARGETS[what](links(), rng)
                time.sleep(rng.choice((0, 0.001)))
            yield what
        else:
            yield event * 2
