"""As many keys as memory holds, and nothing that grows with keys that are gone."""

import contextlib
import time

import psutil
import pytest

from velo import stream_fn
from velo._api import lanes

# What 10,000,000 keys take, with room to spare.
GIB = 14


@stream_fn
async def counts(events):
    """Counts its events, and says so again at the end."""
    count = 0
    async for _ in events:
        count += 1
        yield count
    yield -count


@pytest.fixture
def number(long):
    """How many keys there are."""
    if long and psutil.virtual_memory().available < GIB << 30:
        pytest.skip(f"10,000,000 keys need {GIB} GiB of memory")
    return 10_000_000 if long else 50_000


async def test_all_keys_at_once(mode, number):
    """Each of them gets its second event after all others have got their first one."""

    async def source():
        for _ in range(2):
            for key in range(number):
                yield key

    function = counts.options(mode=mode)
    open_at_most = total = results = 0
    async for key, result in function.keyed(source(), key=lambda key: key):
        results += 1
        total += result * (key + 1)
        if results % 4096 == 0:
            open_at_most = max(open_at_most, function.metrics.open)
    assert results == 3 * number
    assert total == number * (number + 1) // 2  # 1, 2 and -2 of each
    assert open_at_most == number


async def test_keys_that_are_gone_leave_nothing(mode, number, long):
    """Keys that make room for others, ten thousand at a time."""
    function = counts.options(mode=mode, max_concurrent=min(10_000, number // 10))
    resident, results = [], 0

    async def source():
        for key in range(number):
            yield key
            if key % (number // 5) == 0:
                resident.append(memory())

    async for _, _ in function.keyed(source(), key=lambda key: key):
        results += 1
    assert results == 2 * number
    if long:  # of 8,000,000 keys, 8 bytes each would be left
        assert resident[-1] - resident[1] < 8 * number * 4 // 5


def memory():
    """Bytes of this process and those that it has started."""
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # one that has just ended
            total += process.memory_info().rss
    return total


async def test_many_keys_have_time_for_their_finally_blocks(mode, monkeypatch, recwarn):
    """Keys end one after the other: more of them have more time than the function alone has."""
    monkeypatch.setattr(lanes, "_GRACE_OF_KEY", 1.0)
    ended = 0

    @stream_fn(mode=mode, close_timeout=0)
    async def slow_to_end(events):
        nonlocal ended
        try:
            async for event in events:
                yield event
        finally:
            time.sleep(0.002)
            ended += 1

    keyed = slow_to_end.keyed(range(1000), key=lambda event: event)
    for _ in range(1000):
        await anext(keyed)
    await keyed.aclose()
    assert not [warning for warning in recwarn if "did not end" in str(warning.message)]
    if mode == "inline":
        assert ended == 1000
