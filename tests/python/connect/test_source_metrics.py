"""Figures of sources in Prometheus and OpenTelemetry, while they are read."""

import asyncio

from prometheus_client import CollectorRegistry

import velo.metrics
from velo import stream_fn
from velo.connect.memory import MemorySink, MemorySource


@stream_fn
async def picky(events):
    async for event in events:
        if event == "bad":
            raise ValueError("no")
        yield event


class Measured(MemorySource):
    name = "measured"
    reconnects, redelivered = 2, 3

    def __init__(self, *args):
        super().__init__(*args)
        self.read_on = asyncio.Event()

    def lag(self):
        return {("topic", 1): 7}

    async def __aiter__(self):
        async for batch in super().__aiter__():
            yield batch
        await self.read_on.wait()


async def test_prometheus():
    registry = CollectorRegistry()
    velo.metrics.register(registry)
    source = Measured({"p": ["a", "bad", "b"]})
    sink, dead = MemorySink(), MemorySink()
    run = picky.keyed(source, key=lambda event: event)
    task = asyncio.create_task(run.into(sink, dead_letter=dead, commit_every=0.01))
    while not source.committed:
        await asyncio.sleep(0.001)
    while source.committed["p"] < 2:
        await asyncio.sleep(0.001)
    labels = {"function": picky._spec.name, "source": "measured"}

    def value(name, **more):
        return registry.get_sample_value(name, {**labels, **more})

    assert value("velo_source_records_total") == 3
    assert value("velo_source_dead_letters_total") == 1
    assert value("velo_source_redelivered_records_total") == 3
    assert value("velo_source_reconnects_total") == 2
    assert value("velo_source_commits_total") >= 1
    assert value("velo_source_lag_records", partition="topic/1") == 7
    assert value("velo_source_committed_position", partition="p") == 2
    source.read_on.set()
    await task
    assert value("velo_source_records_total") is None  # it is read no more


async def test_opentelemetry():
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    velo.metrics.instrument(MeterProvider([reader]))
    source = Measured({"p": ["a", "b"]})
    sink = MemorySink()
    task = asyncio.create_task(picky.keyed(source, key=lambda event: event).into(sink))
    while len(sink.results) < 2:
        await asyncio.sleep(0.001)
    found = {}
    for resource in reader.get_metrics_data().resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    if point.attributes.get("velo.source") == "measured":
                        found[metric.name] = point.value
    assert found["velo.source.records"] == 2
    assert found["velo.source.lag"] == 7
    source.read_on.set()
    await task


async def test_two_runs_of_one_name_are_one_series():
    registry = CollectorRegistry()
    velo.metrics.register(registry)
    sources = [Measured({"p": ["a"]}), Measured({"p": ["a", "b"]})]
    sinks = [MemorySink(), MemorySink()]
    tasks = [
        asyncio.create_task(picky.over(source).into(sink))
        for source, sink in zip(sources, sinks, strict=True)
    ]
    while sum(len(sink.results) for sink in sinks) < 3:
        await asyncio.sleep(0.001)
    series = [
        (sample.name, tuple(sample.labels.items()))
        for family in registry.collect()
        for sample in family.samples
        if family.name.startswith("velo_source")
    ]
    labels = {"function": picky._spec.name, "source": "measured"}
    assert registry.get_sample_value("velo_source_records_total", labels) == 3
    assert len(series) == len(set(series))
    for source in sources:
        source.read_on.set()
    await asyncio.gather(*tasks)


async def test_a_lag_that_fails_costs_no_other_figure(caplog):
    class Fails(Measured):
        name = None

        def lag(self):
            raise LookupError("no lag today")

    registry = CollectorRegistry()
    velo.metrics.register(registry)
    source, sink = Fails({"p": ["a"]}), MemorySink()
    task = asyncio.create_task(picky.over(source).into(sink))
    while not sink.results:
        await asyncio.sleep(0.001)
    labels = {"function": picky._spec.name, "source": "Fails"}
    for _ in range(2):
        assert registry.get_sample_value("velo_source_records_total", labels) == 1
    assert caplog.text.count("no lag today") == 1
    source.read_on.set()
    await task
