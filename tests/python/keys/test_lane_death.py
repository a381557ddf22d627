"""A worker that dies under many keys: errors name the keys, and keys of other workers go on."""

import asyncio
import os
import signal

import pytest

from functions import mark
from helpers import HANG, run_script, until
from recovering import fresh_pool, gate, links  # noqa: F401
from velo import stream_fn
from velo.errors import StallWarning, WorkerDied

# What functions look at reaches the workers of the process's own supervisor.
pytestmark = pytest.mark.embedded

# Seconds: far more than a worker waits for a core on a machine that is busy with other things.
LIMIT = 3


@stream_fn(mode="process", workers=1)
async def falls(events):
    """Ends its worker at ("...", "fall"), and tells its process for every other event."""
    async for key, what in events:
        if what == "fall":
            os._exit(7)
        if what == "wait":
            mark(os.environ["VELO_TEST_GATE"])
            await asyncio.sleep(3600)
        yield what, os.getpid()


async def test_the_error_names_the_key_that_ran_and_its_event():
    got = []
    with pytest.raises(WorkerDied) as info:
        async for key, (what, _) in falls.keyed(
            [("a", 1), ("b", 1), ("a", 2), ("b", 2), ("c", 1), ("b", "fall")], key=0, max_pending=1
        ):
            got.append((key, what))
    error = info.value
    assert got == [("a", 1), ("b", 1), ("a", 2), ("b", 2), ("c", 1)]
    assert (error.culprit, error.event, error.exit_code) == (True, 3, 7)
    assert error.stream.endswith("['b']")
    assert "in the stream of key 'b'" in error.__notes__
    others = "the worker ran other keys, which are lost with it: 'a', 'c'"
    assert others in error.__notes__


async def test_of_many_other_keys_some_are_named():
    source = [(key, 1) for key in range(100)] + [(7, "fall")]
    with pytest.raises(WorkerDied) as info:
        async for _ in falls.keyed(source, key=0, max_pending=1):
            pass
    assert any("0, 1, 2, 3, 4 and 94 more" in note for note in info.value.__notes__)


async def test_before_its_first_event():
    @stream_fn(mode="process", workers=1)
    async def never_begins(events):
        os._exit(5)
        yield

    with pytest.raises(WorkerDied, match="before its first event") as info:
        async for _ in never_begins.keyed([("a", 1)], key=0):
            pass
    assert "in the stream of key 'a'" in info.value.__notes__


async def test_a_callable_gets_the_error_of_each_key_and_others_go_on():
    """Both keys of the worker are lost, begin anew with their next event, and no other key is."""
    failed, where, got = {}, {}, []

    async def source():
        for number in range(4):
            for key in range(4):
                yield key, number
        await until(lambda: len(got) == 16)
        assert len(set(where.values())) == 2
        yield 0, "fall"
        await until(lambda: len(failed) == 2)
        for key in range(4):
            yield key, "after"

    fn = falls.options(workers=2)
    async with asyncio.timeout(HANG):
        async for key, (what, pid) in fn.keyed(source(), key=0, on_error=failed.__setitem__):
            where.setdefault(key, pid)
            got.append((key, what, pid))
    lost = {key for key, pid in where.items() if pid == where[0]}
    assert failed.keys() == lost
    assert len(lost) == 2
    for key, error in failed.items():
        assert isinstance(error, WorkerDied)
        assert error.pid == where[0]
        assert error.culprit == (key == 0)
        assert f"in the stream of key {key!r}" in error.__notes__
        assert error.stream.endswith(f"[{key}]")
    (neighbour,) = lost - {0}
    assert failed[neighbour].culprit_stream.endswith("[0]")
    after = {key: pid for key, what, pid in got if what == "after"}
    assert after.keys() == {0, 1, 2, 3}
    for key in after:
        assert (after[key] == where[key]) == (key not in lost)


async def test_dropping_keys_goes_on_with_those_that_begin_anew():
    source = [("a", 1), ("b", 1), ("a", "fall"), ("a", 2), ("b", 2)]

    async def slowly():
        for event in source:
            yield event
            await until(lambda: len(done) >= min(source.index(event) + 1, 2))
            if event[1] == "fall":
                dead = links()
                await until(lambda: not any(link in links() for link in dead))

    done = []
    async with asyncio.timeout(HANG):
        async for key, (what, _) in falls.keyed(slowly(), key=0, on_error="drop"):
            done.append((key, what))
    assert sorted(done) == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]


async def test_a_kill_while_nothing_runs_blames_no_key():
    waits = os.environ["VELO_TEST_GATE"]

    async def source():
        yield "a", 1
        yield "b", "wait"
        await until(lambda: got and os.path.exists(waits))
        await until(lambda: not any(link.end.culprit() for link in links()))
        os.kill(got[0][1], signal.SIGKILL)
        await asyncio.sleep(3600)

    got = []
    with pytest.raises(WorkerDied, match="none of its stream functions") as info:
        async with asyncio.timeout(HANG):
            async for _, result in falls.keyed(source(), key=0):
                got.append(result)
    notes = info.value.__notes__
    assert {note[-3:] for note in notes} == {
        "'a'",
        "'b'",
    }  # the one in the error, the other beside it
    assert info.value.culprit is None


async def test_places_of_lost_keys_come_back():
    """Under `max_concurrent`, as many keys as before begin in the next worker."""
    source = [(key, what) for what in (1, "fall", 2, "fall", 3) for key in range(3)]
    failed, got = [], []

    def note(key, error):
        failed.append(key)

    fn = falls.options(max_concurrent=3)
    async with asyncio.timeout(HANG):
        async for key, (what, _) in fn.keyed(source, key=0, on_error=note, max_pending=1):
            got.append((key, what))
    assert len(failed) >= 2
    assert {(key, 3) for key in range(3)} <= set(got)
    limiter = fn._spec.limiter
    assert limiter.idle


@pytest.mark.slow
async def test_a_key_that_stalls_is_named_and_killed():
    fn = stalls.options(stall_timeout=LIMIT)
    with pytest.warns(StallWarning, match="at event 2"), pytest.raises(WorkerDied) as info:
        async with asyncio.timeout(HANG):
            async for _ in fn.keyed([("a", 0), ("b", 0), ("b", 1000), ("a", 0)], key=0):
                pass
    error = info.value
    assert "in the stream of key 'b'" in error.__notes__
    assert (error.culprit, error.event, error.signal) == (True, 2, signal.SIGKILL)
    assert "`stall_timeout` allows" in error.why
    assert "in stalls" in error.stack


@pytest.mark.slow
async def test_many_keys_that_take_their_time_are_no_stall():
    """Each step has the time for itself, also when the steps follow each other."""
    fn = stalls.options(stall_timeout=LIMIT)
    source = [(key, LIMIT / 15) for key in range(20)]
    got = [key async for key, _ in fn.keyed(source, key=0)]
    assert len(got) == 20


@stream_fn(mode="process", workers=1)
async def stalls(events):
    import time

    async for _, seconds in events:
        time.sleep(seconds)
        yield seconds


@pytest.mark.slow
async def test_an_event_that_blocks_its_worker_longer_than_event_timeout():
    fn = stalls.options(event_timeout=LIMIT)
    with pytest.warns(StallWarning), pytest.raises(WorkerDied, match="event_timeout") as info:
        async with asyncio.timeout(HANG):
            async for _ in fn.keyed([("a", 0), ("b", 0), ("b", 1000), ("a", 0)], key=0):
                pass
    assert "in the stream of key 'b'" in info.value.__notes__


@pytest.mark.parametrize("how", ["next", "leave", "garbage"])
def test_a_child_of_the_program_leaves_its_keys_alone(tmp_path, how):
    code, output, errors = run_script(
        tmp_path,
        """
        import asyncio, contextlib, gc, os, sys
        from velo import stream_fn
        from velo.errors import StreamClosed

        @stream_fn(mode="process", workers=1)
        async def count(events):
            n = 0
            async for key, event in events:
                n += 1
                yield n, event

        async def child(results, how):
            if how == "next":
                try:
                    async for _ in results:
                        pass  # those that were received before the fork
                except StreamClosed as error:
                    os._exit(0 if "forked" in str(error) else 8)
                os._exit(9)
            if how == "leave":
                await results.aclose()
                os._exit(0)
            gc.collect()
            os._exit(0)

        async def main(how):
            source = [(n % 10, n) for n in range(2000)]
            got, status = [], None
            async with contextlib.aclosing(count.keyed(source, key=0)) as results:
                async for key, (n, event) in results:
                    got.append(event)
                    assert event == key + 10 * (n - 1)
                    if len(got) == 50:
                        if (pid := os.fork()) == 0:
                            await child(results, how)
                        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            print("fine", status, sorted(got) == list(range(2000)), flush=True)

        asyncio.run(main(sys.argv[1]))
        """,
        how,
    )
    assert (code, output) == (0, "fine 0 True\n"), errors


def test_a_child_of_a_function_takes_no_event_of_its_key(tmp_path):
    code, output, errors = run_script(
        tmp_path,
        """
        import asyncio, os, sys
        from velo import stream_fn
        from velo.errors import StreamClosed

        @stream_fn(mode="process", workers=1)
        async def forks(events):
            async for key, event in events:
                status = None
                if event == 3 and (pid := os.fork()) == 0:
                    try:
                        await anext(events)
                    except StreamClosed as error:
                        os._exit(0 if "forked" in str(error) else 8)
                    os._exit(9)
                elif event == 3:
                    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                yield event, status

        async def main():
            source = [(n % 2, n) for n in range(10)]
            got = [result async for _, result in forks.keyed(source, key=0)]
            print(sorted(event for event, _ in got) == list(range(10)), dict(got)[3])

        asyncio.run(main())
        """,
    )
    assert (code, output) == (0, "True 0\n"), errors
