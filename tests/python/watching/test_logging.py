"""`logging` and `print` inside functions."""

import asyncio
import contextlib
import logging
import os
import re
import signal
import threading

import pytest

from functions import mark, marks, running_sum
from helpers import run_script, until, until_sync
from velo import stream_fn
from velo.logs import StreamNames

pytestmark = pytest.mark.slow

logger = logging.getLogger("velo.tests.logging")


@stream_fn
async def logs(events):
    """Logs what it is told to."""
    async for level, text, extra in events:
        logger.log(level, "got %s", text, extra=extra)
        yield os.getpid()


@stream_fn
async def logs_an_exception(events):
    async for event in events:
        try:
            raise ValueError(event)
        except ValueError:
            logger.exception("failed")
        yield "logged"


@stream_fn
async def logs_from_a_thread(events):
    async for event in events:
        await asyncio.to_thread(logger.warning, "in a thread: %s", event)
        thread = threading.Thread(target=logger.warning, args=("in a bare thread: %s", event))
        thread.start()
        thread.join()
        yield event


class Kept(logging.Handler):
    def __init__(self):
        super().__init__()
        self.addFilter(StreamNames())
        self.records = []

    def emit(self, record):
        self.records.append(record)

    @property
    def texts(self):
        return [record.getMessage() for record in self.records]


@pytest.fixture
def kept():
    handler = Kept()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


async def test_records_arrive_with_their_origin(mode, kept):
    async with logs.options(mode=mode).open() as stream:
        await stream.send((logging.WARNING, "one", {"order": 7}))
        pid = await stream.recv()
        await until(lambda: kept.records)
        (record,) = kept.records
        assert (record.getMessage(), record.levelname) == ("got one", "WARNING")
        assert (record.name, record.order) == (logger.name, 7)
        assert (record.stream, record.worker) == (stream.name, pid)
        assert (record.filename, record.funcName) == ("test_logging.py", "logs")


async def test_records_come_in_order_and_in_full(mode, kept):
    async with logs.options(mode=mode).open() as stream:
        async for _ in stream.feed((logging.INFO, n, None) for n in range(3_000)):
            pass
        await until(lambda: len(kept.records) == 3_000)
        assert kept.texts == [f"got {n}" for n in range(3_000)]


async def test_what_nobody_would_handle_does_not_come(mode, kept):
    async with logs.options(mode=mode).open() as stream:
        await stream.send((logging.DEBUG, "quiet", None))
        await stream.send((logging.INFO, "loud", None))
        await stream.recv()
        await stream.recv()
        await until(lambda: kept.records)
        assert kept.texts == ["got loud"]


async def test_the_traceback_arrives(mode, kept):
    await logs_an_exception.options(mode=mode).run(["boom"])
    await until(lambda: kept.records)
    text = logging.Formatter().format(kept.records[0])
    assert "ValueError: boom" in text
    assert "logs_an_exception" in text


async def test_what_cannot_travel_is_told_in_words(kept):
    class Odd:
        def __repr__(self):
            return "<odd>"

    @stream_fn(mode="process")
    async def odd(events):
        async for event in events:
            logging.getLogger("velo.tests.logging").warning(
                "with a lock", extra={"lock": threading.Lock()}
            )
            yield event

    await odd.run([1])
    await until(lambda: kept.records)
    assert kept.texts == ["with a lock"]
    assert "lock" in kept.records[0].lock


async def test_threads_of_a_function_log_too(mode, kept):
    await logs_from_a_thread.options(mode=mode).run([1])
    await until(lambda: len(kept.records) == 2)
    assert kept.texts == ["in a thread: 1", "in a bare thread: 1"]


async def test_a_client_that_does_not_read_loses_records_and_learns_how_many(kept, tmp_path):
    """The function never waits for its log."""
    done = str(tmp_path / "done")

    @stream_fn(mode="process", workers=1)
    async def floods(events):
        async for count in events:
            for number in range(count):
                logging.getLogger("velo.tests.logging").warning("record %d", number)
            mark(done)
            yield "done"

    async with floods.open() as stream:
        await stream.send(12_345)
        until_sync(lambda: marks(done))  # the loop does not run meanwhile: nobody reads
        assert await stream.recv() == "done"
        await until(lambda: len(kept.records) >= 10_000)
        assert kept.texts == [f"record {n}" for n in range(10_000)]
        logging.getLogger("velo").addHandler(kept)
        try:
            await stream.send(1)
            await until(lambda: kept.texts[-1] == "record 0")
        finally:
            logging.getLogger("velo").removeHandler(kept)
        assert kept.texts[10_000].startswith("2345 log records were dropped")


@pytest.mark.embedded
def test_lines_are_not_mixed(tmp_path, mode):
    """Several workers print long lines at once; each arrives whole."""
    script = f"""
        import asyncio
        from velo import stream_fn

        @stream_fn(mode={mode!r}, workers=4)
        async def prints(events):
            async for letter in events:
                for _ in range(50):
                    print(letter * 20_000)
                yield letter

        async def main():
            await asyncio.gather(*(prints.run([letter]) for letter in "abcd"))

        asyncio.run(main())
    """
    code, output, errors = run_script(tmp_path, script)
    assert code == 0, errors
    lines = output.splitlines()
    assert len(lines) == 200
    assert set(lines) == {letter * 20_000 for letter in "abcd"}


@pytest.mark.embedded
def test_a_line_arrives_before_its_function_ends(tmp_path):
    script = """
        import asyncio
        from velo import stream_fn

        @stream_fn(mode="process")
        async def prints(events):
            async for event in events:
                print("got", event)
                yield event

        async def main():
            async with prints.open() as stream:
                await stream.send(1)
                await stream.recv()
                print("received", flush=True)

        asyncio.run(main())
    """
    code, output, errors = run_script(tmp_path, script)
    assert (code, errors) == (0, "")
    assert output.splitlines() == ["got 1", "received"]


def test_a_module_that_sets_up_logging_says_nothing_twice(tmp_path):
    script = """
        import asyncio, logging
        from velo import stream_fn

        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")

        @stream_fn(mode="process")
        async def says(events):
            logging.basicConfig(level=logging.INFO, format="again %(message)s")
            async for event in events:
                logging.info("event %s", event)
                yield event

        print(says.run_sync([1, 2]))
        async def wait():
            await asyncio.sleep(0)
        asyncio.run(wait())
    """
    code, output, errors = run_script(tmp_path, script)
    assert (code, output) == (0, "[1, 2]\n")
    assert errors.splitlines() == ["INFO event 1", "INFO event 2"]


@contextlib.contextmanager
def listening(level):
    """What velo tells at this level, and above."""
    root, handler = logging.getLogger("velo"), Kept()
    before = root.level
    root.addHandler(handler)
    root.setLevel(level)
    try:
        yield handler
    finally:
        root.removeHandler(handler)
        root.setLevel(before)


def told(kept, logger):
    return [record.getMessage() for record in kept.records if record.name == logger]


async def test_the_life_of_a_stream_is_told(mode):
    with listening(logging.DEBUG) as kept:
        async with logs.options(mode=mode).open() as stream:
            opened = f"stream `{stream.name}` opened"
            assert told(kept, "velo.streams") == [opened]
        assert told(kept, "velo.streams") == [opened, f"stream `{stream.name}` closed"]
        life = [record for record in kept.records if record.name == "velo.streams"]
        assert {record.stream for record in life} == {stream.name}
    with listening(logging.INFO) as kept:
        await logs.options(mode=mode).run([])
        assert told(kept, "velo.streams") == []


async def test_the_life_of_a_worker_is_told():
    with listening(logging.DEBUG) as kept:
        function = running_sum.options(mode="process", recover="replay", workers=1)
        async with function.open() as stream:
            await stream.send(1)
            assert await stream.recv() == 1
            (ready,) = told(kept, "velo.workers")
            first = int(re.fullmatch(r"worker process (\d+) is ready for streams", ready)[1])
            os.kill(first, signal.SIGKILL)
            await stream.send(2)
            assert await stream.recv() == 3
        _, gone, again = told(kept, "velo.workers")
        assert gone == f"worker process {first} is gone"
        second = again.split()[2]
        (moved,) = (record for record in kept.records if record.levelno == logging.INFO)
        assert moved.getMessage() == f"stream `{stream.name}` goes on in worker process {second}"
        assert moved.stream == stream.name
