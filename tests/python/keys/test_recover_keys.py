"""Keys of a function with `recover="replay"` outlive their workers, each of them exactly."""

import asyncio
import contextlib
import os
import random
import signal
import threading

import pytest

import key_sums
from helpers import HANG, until, until_sync
from key_sums import collect, expected
from recovering import fresh_pool, gate, kill_workers, links  # noqa: F401
from velo import stream_fn
from velo._api.lanes import Host
from velo.errors import JournalFull, PoisonEvent, ReplayDiverged, WorkerDied

# What functions look at reaches the workers of the process's own supervisor.
pytestmark = pytest.mark.embedded
REPLAY = {"mode": "process", "recover": "replay", "workers": 1}

sums = key_sums.sums.options(**REPLAY | {"workers": 2})
saved = key_sums.saved.options(**REPLAY | {"workers": 2})


async def kill_one():
    if there := links():
        with contextlib.suppress(ProcessLookupError):
            os.kill(random.choice(there).pid, signal.SIGKILL)


@pytest.mark.parametrize("fn", [sums, saved], ids=["replayed", "with a state"])
@pytest.mark.parametrize("buffer", [256, 2])
async def test_no_result_is_lost_and_none_comes_twice(fn, buffer):
    source = [(n % 50, n) for n in range(5_000)]
    got = await collect(
        fn.options(buffer=buffer).keyed(source, key=0), at=range(300, 5_000, 900), what=kill_one
    )
    assert got == expected(source)


@pytest.mark.parametrize("fn", [sums, saved], ids=["replayed", "with a state"])
async def test_while_events_come_slowly(fn):
    """Each death finds the worker at rest, or at something else."""

    async def source():
        for number in range(60):
            yield number % 5, number
            if number % 10 == 9:
                await kill_workers()

    got = await collect(fn.keyed(source(), key=0))
    assert got == expected([(n % 5, n) for n in range(60)])


async def test_during_the_replay():
    """The next worker dies while it repeats what the first one did, and the one after it."""
    source = [(n % 20, n) for n in range(4_000)]

    async def killer():
        for _ in range(5):
            await until(links)
            await kill_one()
            await asyncio.sleep(random.random() * 0.02)

    async def slowly():
        for number, event in enumerate(source):
            yield event
            if number == 2_000:
                await asyncio.create_task(killer())

    got = await collect(sums.keyed(slowly(), key=0))
    assert got == expected(source)


async def test_keys_whose_input_has_ended():
    """They are forced out, and their next events begin anew."""
    fn = sums.options(max_concurrent=4)
    source = [(n % 8, 1) for n in range(400)]
    got = await collect(fn.keyed(source, key=0), at=(50, 120, 300), what=kill_one)
    for results in got.values():
        sizes = [result[1] for result in results if isinstance(result, tuple)]
        assert sum(sizes) == 50
        numbers = [result for result in results if isinstance(result, int)]
        assert numbers == [number for size in sizes for number in range(1, size + 1)]
    assert len(got) == 8
    assert fn._spec.limiter.idle


async def test_keys_whose_function_has_returned():
    """They stay finished, wherever they have run."""

    @stream_fn(mode="process", recover="replay", workers=2)
    async def three(events):
        left = 3
        async for _, number in events:
            yield number
            left -= 1
            if not left:
                yield "returned"
                return

    source = [(n % 10, n) for n in range(1_000)]
    got = await collect(three.keyed(source, key=0), at=(5, 15, 25), what=kill_one)
    assert got == {key: [key, key + 10, key + 20, "returned"] for key in range(10)}


async def test_keys_that_begin_anew():
    """With `finished_keys="restart"`; the events of a run that has returned are kept no longer."""

    @stream_fn(mode="process", recover="replay", workers=2, journal_limit=4096)
    async def three(events):
        left = 3
        async for _, number in events:
            yield number
            left -= 1
            if not left:
                yield "returned"
                return

    source = [(n % 3, n) for n in range(6_000)]
    got = await collect(
        three.keyed(source, key=0, finished_keys="restart"), at=(700, 3_000, 5_000), what=kill_one
    )
    for key in range(3):
        results = []
        for count, number in enumerate(range(key, 6_000, 3), 1):
            results.append(number)
            if count % 3 == 0:
                results.append("returned")
        assert got[key] == results


async def test_a_function_that_has_returned_is_not_run_once_more(tmp_path):
    """Its worker dies before it can say that the key has ended, and no event of the key comes."""
    blocked, died = tmp_path / "blocked", tmp_path / "died"

    @stream_fn(**REPLAY)
    async def first(events):
        async for key, number in events:
            yield number
            while not blocked.exists():
                await asyncio.sleep(0.001)
            if key == "a":
                return
            if not died.exists():
                await asyncio.sleep(0.05)  # the other key has returned by then
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        yield "end"

    async def source():
        yield "a", 0
        yield "b", 0
        await until(died.exists)

    got = []
    async with asyncio.timeout(HANG):
        async for item in first.keyed(source(), key=0, finished_keys="restart"):
            got.append(item)
            if len(got) == 2:
                blocked.touch()
                # The worker is dead before this program has read that the first key has returned.
                until_sync(died.exists)
    assert sorted(got, key=str) == [("a", 0), ("b", "end"), ("b", 0)]


async def test_an_exception_comes_once():
    @stream_fn(**REPLAY)
    async def fails(events):
        async for key, number in events:
            if number == 3:
                raise KeyError(key)
            yield number

    failed = []
    source = [(key, n) for n in range(5) for key in range(10)]
    results = fails.keyed(source, key=0, on_error=lambda key, error: failed.append((key, error)))
    got = await collect(results, at=(15, 25), what=kill_one)
    assert sorted(key for key, _ in failed) == list(range(10))
    assert all(type(error) is KeyError for _, error in failed)
    # The event after the failure was dropped with its key, or has begun anew.
    assert {tuple(results) for results in got.values()} <= {(0, 1, 2), (0, 1, 2, 4)}
    assert len(got) == 10


async def test_a_state_takes_the_place_of_the_events_before_it():
    """The journal is far smaller than the events, and the function does not see them again."""
    fn = saved.options(journal_limit=4096, workers=1)
    source = [(n % 3, n) for n in range(6_000)]
    got = await collect(fn.keyed(source, key=0), at=(2_000, 4_000), what=kill_one)
    assert got == expected(source)


async def test_a_journal_that_is_full_names_its_key():
    fn = sums.options(journal_limit=4096)
    source = [("a", 1), ("b", 2)] + [("a", n) for n in range(2_000)]
    with pytest.raises(JournalFull, match="sums\\['a'\\]") as info:
        await collect(fn.keyed(source, key=0))
    assert "in the stream of key 'a'" in info.value.__notes__


async def test_a_key_with_a_full_journal_costs_no_other():
    fn = sums.options(journal_limit=4096)
    failed = []
    source = [(key, n) for n in range(300) for key in "ab"] + [("a", n) for n in range(600)]
    got = await collect(
        fn.keyed(source, key=0, on_error=lambda key, error: failed.append((key, type(error))))
    )
    assert set(failed) == {("a", JournalFull)}
    assert got["b"] == expected(source)["b"]


async def test_a_state_that_cannot_travel_is_an_error_of_its_key():
    @stream_fn(**REPLAY, journal_limit=4096)
    async def cannot(events, state):
        async for key, number in events:
            state["it"] = threading.Lock() if key == "a" else number
            yield number

    failed = []
    source = [(key, n) for n in range(1_000) for key in "ab"]
    got = await collect(
        cannot.keyed(source, key=0, on_error=lambda key, error: failed.append((key, error)))
    )
    assert failed
    for key, error in failed:
        assert key == "a"
        assert isinstance(error, TypeError)
        assert "`state` cannot be kept" in str(error)
    assert got["b"] == list(range(1_000))


async def test_divergence_is_found_and_costs_one_key():
    @stream_fn(**REPLAY)
    async def random_results(events):
        async for key, number in events:
            yield os.urandom(8) if key == "a" else number

    async def source():
        for key in "ab":
            yield key, 1
        await until(lambda: len(got) == 2)
        await kill_workers()
        yield "b", 2

    got, failed = {}, []
    async with asyncio.timeout(HANG):
        async for key, result in random_results.keyed(
            source(), key=0, on_error=lambda key, error: failed.append((key, error))
        ):
            got.setdefault(key, []).append(result)
    ((key, error),) = failed
    assert isinstance(error, ReplayDiverged)
    assert (key, error.result) == ("a", 1)
    assert error.stream.endswith("random_results['a']")
    assert got["b"] == [1, 2]


@pytest.mark.parametrize("how", ["returns", "raises"])
async def test_fewer_results_than_before_diverge(how):
    @stream_fn(**REPLAY)
    async def gives_less(events):
        flag = os.environ["VELO_TEST_GATE"]
        if os.path.exists(flag):
            if how == "raises":
                raise ValueError("another one")
            return
        async for _, number in events:
            yield number

    async def source():
        yield "a", 1
        await until(lambda: got)
        open(os.environ["VELO_TEST_GATE"], "w").close()
        await kill_workers()
        yield "a", 2

    got = []
    with pytest.raises(ReplayDiverged, match="result 1 did not come") as info:
        async with asyncio.timeout(HANG):
            async for item in gives_less.keyed(source(), key=0):
                got.append(item)
    assert isinstance(info.value.__cause__, ValueError) == (how == "raises")


def deaths():
    try:
        return os.path.getsize(os.environ["VELO_TEST_GATE"])
    except FileNotFoundError:
        return 0


@stream_fn(**REPLAY)
async def falls(events):
    """Ends its worker at ("...", "die")."""
    async for key, what in events:
        if what == "die":
            with open(os.environ["VELO_TEST_GATE"], "a") as file:
                file.write("x")
            os._exit(3)
        yield what


POISONED = [("a", 1), ("b", 1), ("a", 2), ("b", "die"), ("a", 3), ("b", 3), ("c", 1)]
OTHERS = {"a": [1, 2, 3], "c": [1]}


@pytest.mark.parametrize("restarts", [0, 2])
async def test_the_event_that_ends_workers_is_found(restarts):
    fn = falls.options(max_restarts=restarts)
    with pytest.raises(PoisonEvent, match="event 2") as info:
        await collect(fn.keyed(POISONED, key=0))
    error = info.value
    assert (error.number, error.poison, error.restarts) == (2, ("b", "die"), restarts)
    assert "in the stream of key 'b'" in error.__notes__
    assert error.stream.endswith("['b']")
    assert type(error.__cause__) is WorkerDied
    assert deaths() == restarts + 1


async def test_its_key_alone_ends_and_begins_anew():
    failed = []
    fn = falls.options(max_restarts=1)
    got = await collect(
        fn.keyed(
            POISONED, key=0, on_error=lambda key, error: failed.append((key, error)), max_pending=1
        )
    )
    ((key, error),) = failed
    assert (key, type(error)) == ("b", PoisonEvent)
    assert got == OTHERS | {"b": [1, 3]}
    assert deaths() == 2


async def test_skip():
    fn = falls.options(on_poison="skip", max_restarts=1)
    results = fn.keyed([*POISONED, ("a", "die"), ("a", 4), ("b", 4)], key=0)
    assert await collect(results) == {"a": [1, 2, 3, 4], "b": [1, 3, 4], "c": [1]}
    assert deaths() == 4
    assert fn.metrics.dropped == 2
    assert fn.metrics.queued == 0


async def test_a_callable_gets_it():
    letters = []
    fn = falls.options(on_poison=lambda *letter: letters.append(letter), max_restarts=0)
    assert await collect(fn.keyed(POISONED, key=0)) == OTHERS | {"b": [1, 3]}
    ((stream, event),) = letters
    assert stream.endswith("falls['b']")
    assert event == ("b", "die")


async def test_an_event_that_ends_its_worker_as_it_is_read():
    fn = falls.options(on_poison="skip", max_restarts=1)
    source = [("a", 1), ("b", 1), ("b", Bomb()), ("a", 2), ("b", 2)]
    got = await collect(fn.keyed(source, key=0))
    assert got == {"a": [1, 2], "b": [1, 2]}
    assert fn.metrics.dropped == 1


class Bomb:
    """Travels as a call that ends the process which reads it."""

    def __reduce__(self):
        return os._exit, (9,)


async def test_a_function_that_falls_before_its_first_event():
    @stream_fn(**REPLAY, max_restarts=2)
    async def never_begins(events):
        with open(os.environ["VELO_TEST_GATE"], "a") as file:
            file.write("x")
        os._exit(5)
        yield

    with pytest.raises(WorkerDied, match="code 5") as info:
        await collect(never_begins.keyed([("a", 1)], key=0))
    assert not isinstance(info.value, PoisonEvent)
    assert any("given up after 2 restarts" in note for note in info.value.__notes__)
    assert deaths() == 3


async def test_a_module_that_ends_each_worker_is_given_up(tmp_path, monkeypatch):
    (tmp_path / "ends_workers.py").write_text(
        "import os\n"
        "from velo import stream_fn\n"
        "if 'VELO_WORKER' in os.environ:\n"
        "    os._exit(6)\n"
        "@stream_fn(mode='process', recover='replay', max_restarts=1)\n"
        "async def echo(events):\n"
        "    async for event in events:\n"
        "        yield event\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from ends_workers import echo

    with pytest.raises(WorkerDied, match="code 6") as info:
        await collect(echo.keyed([("a", 1)], key=0))
    assert any("given up after 1 restarts" in note for note in info.value.__notes__)


async def test_inline_accepts_the_same_settings():
    source = [(n % 5, n) for n in range(100)]
    for fn in (sums, saved):
        got = await collect(fn.options(mode="inline").keyed(source, key=0))
        assert got == expected(source)


async def test_leaving_while_there_is_no_worker(tmp_path):
    source = [(n % 5, n) for n in range(1_000)]
    async with contextlib.aclosing(sums.keyed(source, key=0)) as results:
        async for _ in results:
            for link in links():
                os.kill(link.pid, signal.SIGKILL)
            break
    assert sums.metrics.open == 0


async def test_metrics_after_deaths_count_each_event_once():
    fn = sums.options(buffer=16)
    source = [(n % 10, n) for n in range(2_000)]
    got = await collect(fn.keyed(source, key=0), at=(500, 1_000, 1_500), what=kill_one)
    metrics = fn.metrics
    assert got == expected(source)
    assert (metrics.events, metrics.opened, metrics.queued, metrics.open) == (2_000, 10, 0, 0)
    assert metrics.results == 2_010


@stream_fn(mode="process", workers=2)
async def where(events):
    """Where each event of a key was handled, and how many there were before it."""
    count = 0
    async for _ in events:
        yield {os.getpid()}, count  # a set is not compared when it comes again
        count += 1


async def leave_worker(pid):
    """Has all streams leave a worker that lives."""
    from velo._process import clients

    client = clients.client_of(asyncio.get_running_loop())
    (number,) = (link.number for link in links() if link.pid == pid)
    client.send_away(number)


@pytest.mark.parametrize("recover", ["replay", "none"])
async def test_keys_leave_a_worker_that_lives(recover, monkeypatch):
    """With a journal they go at once; without one, when they have ended."""
    got, at = {}, {}
    rounds, moved, replace = 0, asyncio.Event(), Host._replace_lane

    async def noting(self, *args):
        await replace(self, *args)
        moved.set()

    monkeypatch.setattr(Host, "_replace_lane", noting)

    async def source():
        nonlocal rounds
        for key in range(6):
            yield key
        await until(lambda: len(got) == 6)
        at["old"] = got[0][0][0]
        await leave_worker(at["old"])
        left = 20
        while left:
            left -= moved.is_set()
            rounds += 1
            for key in range(6):
                yield key
            await asyncio.sleep(0.002)
        for key in range(6, 12):
            yield key

    async with asyncio.timeout(HANG):
        results = where.options(recover=recover).keyed(source(), key=lambda event: event)
        async for key, ((pid,), count) in results:
            got.setdefault(key, []).append((pid, count))
    for key in range(6):
        assert [count for _, count in got[key]] == list(range(rounds + 1))
    last = {key: results[-1][0] for key, results in got.items()}
    new = {last[key] for key in range(6, 12)}
    assert at["old"] not in new, "new keys go to the workers that are left"
    stayed = [key for key in range(6) if last[key] == at["old"]]
    assert bool(stayed) == (recover == "none")


async def test_keys_stay_where_there_is_no_other_worker():
    got = []

    async def source():
        yield 1
        await until(lambda: got)
        ((pid,), _) = got[0]
        await leave_worker(pid)
        yield 1

    fn = where.options(workers=1, recover="replay")
    async with asyncio.timeout(HANG):
        async for _, result in fn.keyed(source(), key=lambda event: event):
            got.append(result)
    assert [count for _, count in got] == [0, 1]


async def test_keys_of_the_live_form_leave_a_worker_that_lives():
    async with where.options(recover="replay").keys() as keys:
        first = {key: await keys.request(key, 0) for key in range(4)}
        (((old,), _),) = first[0]
        await leave_worker(old)
        last = dict.fromkeys(range(4), 0)

        async def moved():
            for key in range(4):
                (((pid,), count),) = await keys.request(key, 0)
                assert count == last[key] + 1
                last[key] = count
                at[key] = pid
            return old not in at.values()

        at = {}
        async with asyncio.timeout(HANG):
            while not await moved():
                await asyncio.sleep(0.002)
