"""Fork in the client, and `multiprocessing`."""

import json

import pytest

from helpers import run_script

pytestmark = [pytest.mark.embedded, pytest.mark.slow]

FORK = """
    import asyncio, os, sys, time
    from velo import stream_fn

    @stream_fn(mode="MODE", workers=1)
    async def pids(events):
        async for event in events:
            yield (event, os.getpid())

    if BEFORE:
        first = pids.run_sync([1])[0][1]
    child = os.fork()
    try:
        results = pids.run_sync([2, 3])
        assert [event for event, _ in results] == [2, 3], results
        if BEFORE and "MODE" == "process":
            assert (results[0][1] == first) is (child != 0), "the child has workers of its own"
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(9)
    if child == 0:
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    if BEFORE:
        assert pids.run_sync([4])[0][0] == 4
    print("fine")
"""


@pytest.mark.parametrize("before", [True, False])
def test_fork_in_the_client(tmp_path, mode, before):
    script = FORK.replace("MODE", mode).replace("BEFORE", str(before))
    code, output, errors = run_script(tmp_path, script)
    assert (code, output) == (0, "fine\n"), errors


def test_fork_with_open_streams(tmp_path):
    """The child leaves its parent's streams alone, even when it collects them."""
    script = """
        import asyncio, gc, os, warnings
        from velo import stream_fn

        @stream_fn(mode="process", workers=1)
        async def add(events):
            total = 0
            async for event in events:
                total += event
                yield total

        async def main():
            stream = await add.open()
            await stream.send(1)
            assert await stream.recv() == 1
            child = os.fork()
            if child == 0:
                warnings.simplefilter("ignore")
                del stream
                gc.collect()
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            await stream.send(2)
            assert await stream.recv() == 3
            await stream.aclose()

        asyncio.run(main())
        print("fine")
    """
    code, output, errors = run_script(tmp_path, script)
    assert (code, output) == (0, "fine\n"), errors


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(tmp_path, method):
    script = f"""
        import multiprocessing, os
        from velo import stream_fn

        @stream_fn(mode="process", workers=1)
        async def double(events):
            async for event in events:
                yield event * 2

        def work(number):
            return double.run_sync([number, number + 1])

        if __name__ == "__main__":
            before = double.run_sync([1])
            with multiprocessing.get_context({method!r}).Pool(2) as pool:
                print(pool.map(work, [1, 10, 100], chunksize=1))
            assert double.run_sync([5]) == [10]
    """
    code, output, errors = run_script(tmp_path, script)
    assert (code, output) == (0, "[[2, 4], [20, 22], [200, 202]]\n"), errors


def test_ended_fork_child_leaves_the_parents_workers(tmp_path):
    """The child's exit must not take down what the parent uses."""
    script = """
        import asyncio, json, os
        from velo import stream_fn

        @stream_fn(mode="process", workers=1)
        async def pids(events):
            async for _ in events:
                yield os.getpid()

        async def main():
            stream = await pids.open()
            await stream.send(0)
            before = await stream.recv()
            child = os.fork()
            if child == 0:
                raise SystemExit(0)
            os.waitpid(child, 0)
            await stream.send(0)
            print(json.dumps([before, await stream.recv()]))
            await stream.aclose()

        asyncio.run(main())
    """
    code, output, errors = run_script(tmp_path, script)
    assert code == 0, errors
    before, after = json.loads(output)
    assert before == after
