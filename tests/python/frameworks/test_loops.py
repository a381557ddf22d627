"""Other event loops, asyncio's debug mode, anyio: what streams do does not depend on them."""

import asyncio
import contextlib

import pytest

import functions
from helpers import NO_SLOW_STEPS, run_script
from velo import stream_fn

LOOPS = ["asyncio", "debug", "uvloop", "anyio", "eager"]


def run(loop, main):
    """Runs a coroutine function in a loop of this kind."""
    if loop == "uvloop":
        uvloop = pytest.importorskip("uvloop", reason="needs velo-stream[test]")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main())
    if loop == "anyio":
        anyio = pytest.importorskip("anyio", reason="needs velo-stream[test]")
        return anyio.run(main)
    if loop == "eager":
        if not hasattr(asyncio, "eager_task_factory"):
            pytest.skip("Python 3.11 has no eager tasks")

        def eager():
            new = asyncio.new_event_loop()
            new.set_task_factory(asyncio.eager_task_factory)
            return new

        with asyncio.Runner(loop_factory=eager) as runner:
            return runner.run(main())
    with asyncio.Runner(debug=loop == "debug") as runner:
        return runner.run(main())


@pytest.fixture(params=LOOPS)
def loop(request):
    return request.param


def test_run_feed_and_keyed(mode, loop):
    async def main():
        echo = functions.echo.options(mode=mode)
        assert await echo.run(range(3_000)) == list(range(3_000))
        async with echo.open() as stream:
            assert [r async for r in stream.feed(range(1_000))] == list(range(1_000))

            async def source():
                for number in range(100):
                    await asyncio.sleep(0)
                    yield number

            assert [r async for r in stream.feed(source())] == list(range(100))
        found = {}
        async for key, result in echo.keyed(range(100), key=lambda event: event % 7):
            found.setdefault(key, []).append(result)
        assert found == {key: list(range(key, 100, 7)) for key in range(7)}

    run(loop, main)


def test_send_and_recv_one_by_one(mode, loop):
    async def main():
        async with functions.running_sum.options(mode=mode).open() as stream:
            total = 0
            for number in range(500):
                await stream.send(number)
                total += number
                assert await stream.recv() == total

    run(loop, main)


def test_two_tasks_on_one_stream(mode, loop):
    async def main():
        async with functions.echo.options(mode=mode, buffer=8).open() as stream:

            async def sends():
                for number in range(2_000):
                    await stream.send(number)
                await stream.end()

            sending = asyncio.create_task(sends())
            assert [result async for result in stream] == list(range(2_000))
            await sending

    run(loop, main)


def test_cancelled_waits_lose_nothing(mode, loop):
    async def main():
        async with functions.echo.options(mode=mode).open() as stream:
            for number in range(50):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.0005):
                        await stream.recv()
                        raise AssertionError("nothing was sent")
                await stream.send(number)
                assert await stream.recv() == number

    run(loop, main)


def test_an_anyio_cancel_scope(mode):
    anyio = pytest.importorskip("anyio", reason="needs velo-stream[test]")

    async def main():
        async with functions.echo.options(mode=mode).open() as stream:
            with anyio.move_on_after(0.005) as scope:
                await stream.recv()
            assert scope.cancelled_caught
            async with anyio.create_task_group() as group:
                group.start_soon(stream.send, 1)
                assert await stream.recv() == 1

    anyio.run(main)


def test_an_error_and_a_timeout(mode, loop):
    async def main():
        async with functions.fails.options(mode=mode).open() as stream:
            await stream.send("own")
            with pytest.raises(functions.OwnError):
                await stream.recv()
        async with functions.after_loop.options(mode=mode, timeout=0.02).open() as stream:
            await stream.send(1)
            assert [result async for result in stream] == [1, "done"]

    run(loop, main)


def test_a_task_factory_of_the_users_own(mode):
    """Inline functions are not stepped behind its back."""
    names = []

    def factory(loop, coroutine, **options):
        names.append(type(coroutine).__name__)
        return asyncio.Task(coroutine, loop=loop, **options)

    async def main():
        asyncio.get_running_loop().set_task_factory(factory)
        assert await functions.echo.options(mode=mode).run(range(100)) == list(range(100))
        async with functions.echo.options(mode=mode).open() as stream:
            await stream.send(1)
            assert await stream.recv() == 1

    asyncio.run(main())
    assert ("Pump" in names) is (mode == "inline")


def test_the_users_own_tests_with_pytest_asyncio(tmp_path, mode):
    """A test file as a user would write it."""
    scope = "asyncio_default_fixture_loop_scope = function"
    (tmp_path / "pytest.ini").write_text(f"[pytest]\nasyncio_mode = auto\n{scope}\n")
    script = f"""
        import pytest
        from velo import stream_fn

        @stream_fn(mode={mode!r})
        async def double(events):
            async for event in events:
                yield event * 2

        @pytest.fixture
        async def stream():
            async with double.open() as stream:
                yield stream

        async def test_alive(stream):
            await stream.send(2)
            assert await stream.recv() == 4

        async def test_run():
            assert await double.run([1, 2]) == [2, 4]

        async def test_by_hand():
            assert [r async for r in double([1, 2])] == [2, 4]

        def test_sync():
            assert double.run_sync([1]) == [2]

        if __name__ == "__main__":
            strict = ["-W", "error", "-W", {NO_SLOW_STEPS!r}]
            raise SystemExit(pytest.main([__file__, "-q", *strict, "-p", "no:cacheprovider"]))
    """
    code, output, errors = run_script(tmp_path, script, cwd=tmp_path)
    assert code == 0, output + errors
    assert "4 passed" in output


async def test_values_of_context_variables(mode):
    """An inline function sees its opener's; one in a worker has defaults; neither changes them."""
    import contextvars

    from functions import tenant

    @stream_fn(mode=mode)
    async def reads(events):
        from functions import tenant

        async for event in events:
            before = tenant.get("nobody")
            tenant.set(event)
            yield before, tenant.get()

    assert isinstance(tenant, contextvars.ContextVar)
    tenant.set("opener")
    async with reads.open() as stream:
        tenant.set("later")
        await stream.send("inside")
        await stream.send("again")
        first = "opener" if mode == "inline" else "nobody"
        assert await stream.recv() == (first, "inside")
        assert await stream.recv() == ("inside", "again")
    assert tenant.get() == "later"
