"""The end of a key, told in each order in which its frames may come."""

import pytest

from hand_lane import HandLane
from helpers import until
from velo.errors import StreamClosed


async def test_events_behind_a_function_that_has_returned_see_no_end():
    """Its worker dies before it has said that the key has ended, and the next event has come."""
    async with HandLane() as lane:
        lane.feed(0)
        await lane.until_sent("open", "event")
        lane.handles(1)
        lane.returns(1)
        await lane.until_sent("open", "event", "last")
        lane.feed(1)
        await until(lambda: lane.keys.unhandled == 1)
        lane.die()
        await lane.until_sent("open", "event")
        lane.exhaust()
        await lane.until_sent("open", "event", "last")
        lane.handles(1)
        lane.ends()
        await lane.outcome()
        assert not lane.failures


async def test_a_key_that_was_ending_ends_in_the_next_worker():
    async with HandLane() as lane:
        lane.feed(0)
        lane.exhaust()
        await lane.until_sent("open", "event", "last")
        lane.die()
        await lane.until_sent("open", "event", "last")
        lane.ends(handled=1)
        await lane.outcome()


async def test_a_failure_at_the_end_of_the_input_blames_no_event_of_the_next_run():
    async with HandLane() as lane:
        lane.state = b"state"
        lane.keys.recall(["key"])
        await lane.until_sent("open", "last")
        lane.feed(0)
        await until(lambda: lane.keys.unhandled == 1)
        lane.ends(error=ValueError("refused"))
        await until(lambda: lane.failures)
        failure = lane.failures.pop()
        assert failure.record is None
        lane.sent.clear()
        lane.keys.release(failure.held, None)
        await lane.until_sent("open", "event")


@pytest.mark.parametrize("buffer", [1, 2, 3], ids=["none", "some", "all"])
@pytest.mark.parametrize("ends", [False, True], ids=["open", "ending"])
async def test_events_that_a_function_has_left_raise(buffer, ends):
    """With `finished_keys="raise"`, wherever they are: sent, or behind the `buffer`."""
    async with HandLane("raise", buffer) as lane:
        lane.feed(0, 1, 2)
        if ends:
            lane.exhaust()
        await lane.until_sent("open", *["event"] * buffer, *["last"] * (ends and buffer == 3))
        lane.ends(handled=1)
        with pytest.raises(StreamClosed, match="key 'key', whose function has returned"):
            await lane.outcome()
        assert lane.keys.unhandled == 2  # the next run of the program gets them again


async def test_what_is_in_no_snapshot_is_absorbed_by_no_cut_behind_the_end():
    async with HandLane() as lane:
        lane.feed(0)
        await lane.until_sent("open", "event")
        lane.handles(1)
        await until(lambda: lane.keys.unhandled == 0)
        assert lane.keys.cut(False) == ([], [], ["key"])
        lane.keys.fail(ValueError("stopped"))
        with pytest.raises(ValueError, match="stopped"):
            await lane.outcome()
        assert lane.keys.cut(False) is None


async def test_a_cut_behind_the_end_of_all_keys_absorbs_all():
    async with HandLane() as lane:
        lane.feed(0)
        lane.exhaust()
        await lane.until_sent("open", "event", "last")
        lane.ends(handled=1)
        await lane.outcome()
        assert lane.keys.cut(False) == ([("p", 0)], [], [])
