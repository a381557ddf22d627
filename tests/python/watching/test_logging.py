"""`logging` and `print` inside functions."""

import asyncio
import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import zlib

import pytest

from functions import mark, marks, running_sum
from helpers import NO_SLOW_STEPS, environment, run_script, until, until_sync
from standalone import Daemon
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


HANDLERS = """
import logging
from velo import stream_fn

log = logging.getLogger("shop.orders")
log.setLevel(logging.INFO)
log.propagate = PROPAGATE
handler = logging.FileHandler(FILE)
LOGGER.addHandler(handler)

@stream_fn
async def work(events):
    async for event in events:
        log.info("order %s", event)
        yield event
"""


@pytest.mark.every_backend
@pytest.mark.parametrize(
    "logger", ["log", "log.parent", "logging.getLogger('shop')", "logging.root"]
)
def test_a_record_appears_once_where_a_module_attaches_handlers(tmp_path, mode, logger):
    """Its handlers are there in the worker and in the program, whichever logger has them."""
    file = tmp_path / "app.log"
    text = HANDLERS.replace("FILE", repr(str(file))).replace("LOGGER", logger)
    module = f"shop_app_{zlib.crc32(str(tmp_path).encode())}"  # a worker may have those before
    (tmp_path / f"{module}.py").write_text(text.replace("PROPAGATE", repr(logger != "log")))
    script = f"from {module} import work; print(work.options(mode={mode!r}).run_sync([1, 2]))"
    code, output, errors = run_script(tmp_path, script, flags=["-W", NO_SLOW_STEPS])
    assert (code, output, errors) == (0, "[1, 2]\n", "")
    until_sync(lambda: file.read_text() == "order 1\norder 2\n", describe=file.read_text)


def test_a_handler_that_the_function_attaches_itself_has_what_it_logs(tmp_path, mode):
    file = tmp_path / "own.log"
    script = f"""
        import logging
        from velo import stream_fn

        @stream_fn(mode={mode!r})
        async def work(events):
            log = logging.getLogger("own")
            log.addHandler(logging.FileHandler({str(file)!r}))
            async for event in events:
                log.warning("order %s", event)
                yield event

        work.run_sync([1, 2])
    """
    code, _, errors = run_script(tmp_path, script)
    assert code == 0, errors
    assert file.read_text() == "order 1\norder 2\n"


def test_a_program_with_two_event_loops_gets_a_record_once(tmp_path):
    """Also of a thread that no stream has started."""
    script = """
        import asyncio, logging, threading
        from velo import stream_fn

        seen = []
        class Keep(logging.Handler):
            def emit(self, record):
                seen.append(record.getMessage())
        logging.root.addHandler(Keep())

        @stream_fn(mode="process", workers=1)
        async def logs(events):
            import _thread
            async for event in events:
                _thread.start_new_thread(logging.getLogger("x").warning, (event,))
                yield event

        async def once(text):
            async with logs.open() as stream:
                await stream.send(text)
                await stream.recv()
                while text not in seen:
                    await asyncio.sleep(0.005)
                await asyncio.sleep(0.05)  # a second one would come now

        thread = threading.Thread(target=asyncio.run, args=(once("a"),))
        loop = asyncio.new_event_loop()
        loop.run_until_complete(once("b"))
        thread.start()
        while thread.is_alive():
            loop.run_until_complete(asyncio.sleep(0.01))
        print(sorted(seen))
    """
    code, output, errors = run_script(tmp_path, script)
    assert (code, output) == (0, "['a', 'b']\n"), errors


ACROSS = """
import asyncio, logging, subprocess, sys, threading
from velo import stream_fn

@stream_fn(mode="process", workers=1)
async def work(events):
    log = logging.getLogger("across")
    loop = asyncio.get_running_loop()
    async for event in events:
        log.warning("plain %s", event)
        await loop.run_in_executor(None, log.warning, "executor %s", event)
        await asyncio.to_thread(log.warning, "to_thread %s", event)
        thread = threading.Thread(target=log.warning, args=("thread %s", event))
        thread.start()
        thread.join()
        log.debug("debug %s", event)
        yield event, log.isEnabledFor(logging.ERROR)

seen = []
class Keep(logging.Handler):
    def emit(self, record):
        seen.append(record.getMessage())
logging.root.addHandler(Keep())

async def beside():
    async with work.open() as stream:
        await stream.send("b1")
        await stream.recv()
        other = await asyncio.create_subprocess_exec(sys.executable, __file__, "A")
        assert await other.wait() == 0
        await stream.send("b2")
        await stream.recv()
        while "thread b2" not in seen:
            await asyncio.sleep(0.005)
    return seen

if sys.argv[1:]:
    # What this one does to its own logging is nothing to the other one.
    logging.getLogger("across").setLevel(logging.DEBUG)
    assert work.run_sync(["a"]) == [("a", True)]
    logging.getLogger("across").setLevel(logging.CRITICAL)
    logging.disable(logging.CRITICAL)
    work.run_sync(["quiet"])
    assert "debug a" in seen and "executor a" in seen and "plain quiet" not in seen, seen
else:
    kinds = ("plain", "executor", "to_thread", "thread")
    expected = [f"{kind} {event}" for event in ("b1", "b2") for kind in kinds]
    found = asyncio.run(beside())
    print("fine" if found == expected else found)
"""


def test_programs_that_share_a_worker_have_logs_of_their_own(tmp_path):
    """Records, levels and `logging.disable` of one are nothing to the other."""
    daemon = Daemon(tmp_path / "s.sock", "--workers", 1)
    try:
        variables = environment(VELO_SUPERVISOR=str(daemon.path))
        script = tmp_path / "across.py"
        script.write_text(ACROSS)
        done = subprocess.run(
            [sys.executable, script], env=variables, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
    finally:
        daemon.close()
