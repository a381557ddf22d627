"""`velo supervisor start --metrics`, read by Prometheus' own parser, and the dashboard for it."""

import asyncio
import json
import os
import re
import time
import urllib.request

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import velo.metrics
from functions import mark, running_sum
from helpers import HANG, ROOT, alive
from velo import stream_fn

DASHBOARD = ROOT / "docs" / "grafana.json"


@stream_fn(mode="process", workers=1)
async def held(events):
    """Holds its worker until there is a file of the name of the event."""
    async for event in events:
        while not os.path.exists(event):
            time.sleep(0.01)
        yield event


async def listening(daemon):
    """Where it says that it serves figures."""
    while not (found := re.findall(r"velo: metrics at (http://\S+)", daemon.said())):
        await asyncio.sleep(0.01)
    return found[0]


async def scrape(url):
    """All samples, by name and what they are labelled with."""

    def get():
        with urllib.request.urlopen(url, timeout=HANG) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain")
            return answer.read().decode()

    families = text_string_to_metric_families(await asyncio.to_thread(get))
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


async def test_a_scrape_of_a_supervisor(daemon_at):
    daemon = daemon_at("--workers", "0:2", "--metrics", "127.0.0.1:0")
    url = await listening(daemon)
    found = await scrape(url)
    while ("velo_supervisor_workers",) not in found:  # it answers scrapes before it is ready
        found = await scrape(url)
    assert found["velo_supervisor_workers",] == 0
    assert found["velo_supervisor_workers_limit",] == 2
    assert found["velo_supervisor_clients",] == 0
    assert found["process_resident_memory_bytes",] > 1e6
    name = f"{running_sum.__module__}:running_sum"
    function = running_sum.options(mode="process", workers=1)
    async with function.open() as one, function.open() as other:
        for stream in (one, other):
            assert [r async for r in stream.feed([1, 2, 3])] == [1, 3, 6]
        found = await scrape(url)
        while ("velo_function_streams", name) not in found:  # a worker that just began is busy
            found = await scrape(url)
        assert found["velo_supervisor_workers",] == 1
        assert found["velo_supervisor_clients",] == 1
        (worker,) = {labels[0] for sample, *labels in found if sample == "velo_worker_streams"}
        assert found["velo_worker_streams", worker] == 2
        assert found["velo_worker_events_total", worker] == 6
        assert found["velo_worker_results_total", worker] == 6
        assert found["velo_worker_events_queued", worker] == 0
        assert found["velo_worker_resident_memory_bytes", worker] > 1e6
        assert found["velo_worker_cpu_seconds_total", worker] >= 0
        assert found["velo_worker_retiring", worker] == 0
        assert found["velo_function_streams", name] == 2
        assert found["velo_function_events_queued", name] == 0
        # The client knows how long an event took once it sees that it was handled.
        events = 6
        while not found["velo_function_slowest_p99_seconds", name]:
            assert [r async for r in one.feed([0])] == [6]
            events += 1
            found = await scrape(url)
        labels = {label for sample, *labels in found for label in labels if "velo" in sample}
        assert labels == {name, worker}
    found = await scrape(url)
    assert found["velo_worker_events_total", worker] == events
    assert ("velo_function_streams", name) not in found


async def test_a_worker_that_is_held_is_shown_as_busy(daemon_at, tmp_path):
    url = await listening(daemon_at("--workers", 1, "--metrics", "127.0.0.1:0"))
    gate, there = str(tmp_path / "gate"), str(tmp_path)
    async with held.open() as stream, asyncio.timeout(HANG):
        await stream.send(there)
        assert await stream.recv() == there
        await stream.send(gate)
        found = {}
        while found.get(("velo_worker_busy", "1")) != 1:
            found = await scrape(url)
            assert found["velo_worker_streams", "1"] == 1
        mark(gate)
        assert await stream.recv() == gate


async def test_it_ends_as_it_does_without(daemon_at):
    daemon = daemon_at("--workers", 1, "--metrics", "127.0.0.1:0")
    url = await listening(daemon)
    for _ in range(3):
        await scrape(url)
    assert await asyncio.to_thread(daemon.stop) == 0
    assert not alive(daemon.pid)


async def test_where_it_cannot_listen(daemon_at):
    daemon = daemon_at("--metrics", "192.0.2.1:9464", wait=False)
    assert await asyncio.to_thread(daemon.process.wait, 20) == 2
    assert "cannot serve metrics at 192.0.2.1:9464" in daemon.said()


async def test_the_dashboard_asks_for_metrics_that_exist(daemon_at):
    daemon = daemon_at("--workers", 1, "--metrics", "127.0.0.1:0")
    url = await listening(daemon)
    registry = CollectorRegistry()
    velo.metrics.register(registry)
    function = running_sum.options(mode="process", workers=1)
    async with function.open() as stream, function.keys() as keys:
        assert [r async for r in stream.feed([1])] == [1]
        assert [await keys.request(key, 1) for key in ("a", "b")] == [[1], [1]]
        families = list(text_string_to_metric_families(generate_latest(registry).decode()))
        there = {sample.name for family in families for sample in family.samples}
        found = {}
        while not any(name == "velo_function_keys" for name, *_ in found):
            found = await scrape(url)
        name = f"{running_sum.__module__}:running_sum"
        assert found["velo_function_keys", name] == 2
        assert found["velo_function_lanes", name] == 1
        assert found["velo_function_slowest_key_seconds", name] >= 0
        there |= {name for name, *_ in found}
    board = json.loads(DASHBOARD.read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    asked += [
        variable["query"] for variable in board["templating"]["list"] if variable["type"] == "query"
    ]
    names = {
        name for expression in asked for name in re.findall(r"\b(?:velo|process)_\w+", expression)
    }
    assert len(names) > 10
    assert names <= there, names - there
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["title"] and panel["gridPos"] for panel in panels)
    # What is told is shown, too.
    told = {name for name in there if name.startswith("velo_")}
    told -= {name for name in told if name.endswith(("_sum", "_count", "_created"))}
    assert told <= names, told - names
