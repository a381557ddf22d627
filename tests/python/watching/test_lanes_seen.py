"""Keys and their lanes, as `velo top`, `velo status`, `velo inspect` and metrics see them."""

import asyncio
import contextlib

import pytest

from helpers import HANG, until
from standalone import Daemon, velo_until
from terminal import Terminal
from velo import stream_fn
from velo.cli.supervisor.admin_connection import AdminConnection
from velo.cli.supervisor.figures import Watcher


@stream_fn(workers=1)
async def spent(payments):
    total = 0
    async for payment in payments:
        total += payment["amount"]
        if payment["amount"] == 99:
            await asyncio.sleep(3600)
        if payment["amount"] == 0:
            return
        yield total


def payment(key, amount):
    return {"key": key, "amount": amount}


@contextlib.asynccontextmanager
async def keyed(fn, payments, expected):
    """Iterates over payments until so many results have come; the source stays open."""
    done = asyncio.Event()

    async def source():
        for one in payments:
            yield one
        await done.wait()

    results = []

    async def iterate():
        async with contextlib.aclosing(fn.keyed(source(), key="key")) as keys:
            async for result in keys:
                results.append(result)

    task = asyncio.create_task(iterate())
    try:
        await until(lambda: len(results) == expected or task.done())
        if task.done():
            task.result()
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    path = tmp_path / "s.sock"
    monkeypatch.setenv("VELO_SUPERVISOR", str(path))
    running = Daemon(path, "--workers", 1)
    yield running
    running.close()
    assert not running.seen_alive()


async def lane_of(daemon, wanted):
    """The only lane, once what is seen of it satisfies."""
    watcher = Watcher(AdminConnection(str(daemon.path)))
    async with asyncio.timeout(HANG):
        while True:
            state = await asyncio.to_thread(watcher.look)
            lanes = [stream for stream in state["streams"] if stream["keys"]]
            if len(lanes) == 1 and wanted(lanes[0]):
                return lanes[0]


def only_slow_is_at_work(lane):
    """The key that awaits something; a slow step of another one may be told as well."""
    return [one["key"] for one in lane["keys"]["slowest"] if one["awaits"]] == ["'slow'"]


PAYMENTS = [
    payment("ann", 1),
    payment("bob", 2),
    payment("ann", 3),
    payment("bob", 0),
    payment(("c", 3), 5),
    payment("slow", 99),
    payment("slow", 1),
]


async def test_status_shows_a_lane_with_its_keys(daemon):
    fn = spent.options(mode="process")
    async with keyed(fn, PAYMENTS, 4):
        lane = await lane_of(
            daemon, lambda lane: only_slow_is_at_work(lane) and lane["keys"]["pending"] == 2
        )
        keys = lane["keys"]
        assert lane["function"] == f"{__name__}:spent"
        counts = {name: keys[name] for name in ("live", "opened", "ended", "evicted", "pending")}
        assert counts == {"live": 3, "opened": 4, "ended": 1, "evicted": 0, "pending": 2}
        assert lane["queued"] == 2
        assert (lane["events"], lane["results"]) == (7, 7) or lane["events"] == 7
        (slow,) = (one for one in keys["slowest"] if one["awaits"])
        later = await lane_of(
            daemon, lambda lane: lane["keys"]["slowest"][0]["seconds"] > slow["seconds"] + 0.1
        )
        assert later["keys"]["slowest"][0]["key"] == "'slow'"
        told = await velo_until(daemon, "status", fits=lambda told: "slowest key" in told.out)
        assert "'slow': " in told.out


async def test_evicted_keys_are_counted(daemon):
    fn = spent.options(mode="process", max_concurrent=2)
    payments = [payment(f"key {number}", 1) for number in range(10)]
    async with keyed(fn, payments, 10):
        lane = await lane_of(daemon, lambda lane: lane["keys"]["evicted"] == 8)
        assert lane["keys"]["opened"] == 10
        assert fn.metrics.keys_evicted == 8


async def test_latencies_of_a_lane_are_shown(daemon):
    fn = spent.options(mode="process")
    async with keyed(fn, [payment(number % 7, 1) for number in range(500)], 500):
        lane = await lane_of(daemon, lambda lane: lane["latency_p50"] is not None)
        assert 0 < lane["latency_p50"] <= lane["latency_p99"]


async def inspected(daemon, *words):
    def answered(told):
        assert told.code == 0, told.err
        return told.json["streams"]

    return (await velo_until(daemon, "inspect", *words, "--json", fits=answered)).json["streams"]


async def test_inspect_shows_one_key(daemon):
    fn = spent.options(mode="process")
    async with keyed(fn, PAYMENTS, 4):
        await lane_of(daemon, only_slow_is_at_work)
        (ann,) = await inspected(daemon, "spent", "--key", "ann")
        assert (ann["name"], ann["key"], ann["function"]) == (
            "spent['ann']",
            "'ann'",
            f"{__name__}:spent",
        )
        assert (ann["state"], ann["locals"]["total"]) == ("waiting for an event", "4")
        assert (ann["events"], ann["queued"]) == (2, 0)
        (slow,) = await inspected(daemon, f"{__name__}:spent", "--key", "slow")
        assert (slow["state"], slow["events"], slow["queued"]) == ("waiting", 2, 2)
        assert slow["waits_for"][0].startswith("sleep at ")
        (tuple_key,) = await inspected(daemon, ann["lane"], "--key", "('c', 3)")
        assert tuple_key["locals"]["total"] == "5"
        assert [one["name"] for one in await inspected(daemon, "ann")] == ["spent['ann']"]
        (lane,) = await inspected(daemon, ann["lane"])
        assert (lane["state"], lane["keys"]["live"]) == ("a lane of keys", 3)
        for words, text in (
            ([ann["lane"]], "3 live, 4 opened, 1 ended, 0 evicted"),
            (["spent", "--key", "ann"], "total    = 4"),
        ):
            await velo_until(
                daemon, "inspect", *words, fits=lambda told, text=text: text in told.out
            )
        for which in (["spent", "--key", "bob"], ["other", "--key", "ann"]):
            told = await velo_until(daemon, "inspect", *which, fits=lambda told: told.code == 1)
            assert f"no key `{which[2]}` of `{which[0]}` is open" in told.err


async def test_the_key_of_another_is_not_told_under_its_number(daemon):
    """A key gets the number of one that has ended, and its text with it."""
    fn = spent.options(mode="process")
    payments = [payment("first", 1), payment("first", 0), payment("second", 7)]
    async with keyed(fn, payments, 2):
        await lane_of(daemon, lambda lane: lane["keys"]["opened"] == 2)
        (second,) = await inspected(daemon, "spent", "--key", "second")
        assert second["locals"]["total"] == "7"
        words = ("inspect", "spent", "--key", "first")
        await velo_until(daemon, *words, fits=lambda told: told.code == 1)


class Odd:
    """A key whose `repr` raises."""

    def __repr__(self):
        raise RuntimeError("no")


async def test_keys_of_any_text(daemon):
    """A text that cannot be made, is long, or would change the terminal, costs its key nothing."""
    fn = spent.options(mode="process")
    long = "é" * 500
    names = [Odd(), long, "\x1b[2J", "\ud800"]
    async with keyed(fn, [payment(name, 1) for name in range(4)], 4):
        pass

    def key_of(event):
        return names[event["key"]]

    results = []
    async for key, _ in fn.keyed(
        [payment(number, 99 if number == 2 else 1) for number in range(4)], key_of
    ):
        results.append(key)
        if len(results) == 3:
            break
    assert set(map(id, results)) == {id(names[0]), id(names[1]), id(names[3])}


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (200, 50)])
async def test_top_shows_lanes(daemon, columns, rows):
    fn = spent.options(mode="process")
    async with keyed(fn, PAYMENTS, 4) as task:
        lane = await lane_of(daemon, only_slow_is_at_work)
        words = ["top", "--interval", "0.1", "--socket", daemon.path]
        terminal = Terminal(words, columns, rows)
        try:
            shown = f"3 keys, {lane['name']}" if columns == 80 else lane["name"]
            await terminal.shows(shown)
            terminal.press("\x1b[B")
            await terminal.shows(f"{lane['name']}: 3 live, 4 opened, 1 ended, 0 evicted; slowest")
            terminal.press("x")
            await terminal.shows(f"end {lane['name']}? y / n")
            terminal.press("y")
            with pytest.raises(Exception, match="ended by hand"):
                await asyncio.wait_for(task, HANG)
        finally:
            terminal.close()


@pytest.mark.parametrize("mode", ["inline", "process"])
async def test_metrics_of_a_function_count_keys(mode):
    fn = spent.options(mode=mode, max_concurrent=3)
    payments = [payment(number, 1) for number in range(5)]
    async with keyed(fn, payments, 5):
        await until(lambda: fn.metrics.keys_ended == 2)
        now = fn.metrics
        assert (now.keys, now.keys_opened, now.keys_ended, now.keys_evicted) == (3, 5, 2, 2)
        assert (now.open, now.opened) == (3, 5)
    now = fn.metrics
    assert (now.keys, now.keys_opened, now.keys_ended, now.keys_evicted) == (0, 5, 5, 2)


@pytest.mark.parametrize("mode", ["inline", "process"])
async def test_prometheus_and_opentelemetry_count_keys(mode):
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from prometheus_client import CollectorRegistry

    from velo.metrics import instrument, register

    registry, reader = CollectorRegistry(), InMemoryMetricReader()
    register(registry)
    instrument(MeterProvider([reader]))
    fn = spent.options(mode=mode)
    labels = {"function": f"{__name__}:spent", "mode": mode}

    def value(name):
        return registry.get_sample_value(name, labels) or 0.0

    before = {name: value(f"velo_keys_{name}_total") for name in ("opened", "ended", "evicted")}
    async with keyed(fn, [payment(number, 1) for number in range(5)], 5):
        assert value("velo_keys") == 5
        assert value("velo_keys_opened_total") - before["opened"] == 5
        assert value("velo_keys_ended_total") - before["ended"] == 0
        resources = reader.get_metrics_data().resource_metrics
        metrics = {m.name: m for r in resources for s in r.scope_metrics for m in s.metrics}
        points = [
            point
            for point in metrics["velo.keys"].data.data_points
            if point.attributes["velo.mode"] == mode
            and point.attributes["velo.function"] == f"{__name__}:spent"
        ]
        assert [point.value for point in points] == [5]
    assert value("velo_keys") == 0
    assert value("velo_keys_ended_total") - before["ended"] == 5


async def test_keys_of_the_live_form_are_seen(daemon):
    fn = spent.options(mode="process")
    async with fn.keys() as keys:
        assert await keys.request("ann", payment("ann", 4)) == [4]
        await keys.send("slow", payment("slow", 99))
        lane = await lane_of(daemon, only_slow_is_at_work)
        assert (lane["keys"]["live"], lane["keys"]["pending"]) == (2, 1)
        (ann,) = await inspected(daemon, "spent", "--key", "ann")
        assert ann["locals"]["total"] == "4"
        assert (fn.metrics.keys, keys.metrics.open) == (2, 2)
