"""`velo.metrics`: the streams of this process, as Prometheus and OpenTelemetry see them."""

import asyncio
import gc
import subprocess
import sys

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import velo.metrics
from functions import echo
from helpers import environment
from velo import stream_fn


def scraped(registry, function, mode):
    """The samples of one function, as Prometheus' own parser reads them, by name and `le`."""
    families = text_string_to_metric_families(generate_latest(registry).decode())
    found = {}
    for family in families:
        for sample in family.samples:
            if (sample.labels.get("function"), sample.labels.get("mode")) == (function, mode):
                assert set(sample.labels) <= {"function", "mode", "le"}
                found[sample.name, sample.labels["mode"], sample.labels.get("le")] = sample.value
    return found


@pytest.fixture
def registry():
    registry = CollectorRegistry()
    velo.metrics.register(registry)
    return registry


async def test_a_scrape_has_the_figures_of_a_function(registry, mode):
    @stream_fn(mode=mode)
    async def scraped_function(events):
        async for event in events:
            yield event

    name = f"{__name__}:{scraped_function.__qualname__}"
    assert scraped(registry, name, mode) == {}
    async with scraped_function.open() as stream:
        assert [r async for r in stream.feed(range(50))] == list(range(50))
        found = scraped(registry, name, mode)
        assert found["velo_streams", mode, None] == 1
    assert await scraped_function.run([1, 2]) == [1, 2]
    found = scraped(registry, name, mode)
    metrics = scraped_function.metrics
    assert found["velo_streams_opened_total", mode, None] == 2
    assert found["velo_streams", mode, None] == 0
    assert found["velo_events_total", mode, None] == 52
    assert found["velo_results_total", mode, None] == 52
    assert found["velo_events_dropped_total", mode, None] == 0
    assert found["velo_events_queued", mode, None] == 0
    assert found["velo_event_bytes_total", mode, None] == metrics.bytes_in
    assert found["velo_result_bytes_total", mode, None] == metrics.bytes_out
    count = found["velo_event_latency_seconds_count", mode, None]
    assert count > 0
    buckets = {
        float(le): value
        for (sample, _, le), value in found.items()
        if sample == "velo_event_latency_seconds_bucket"
    }
    assert list(buckets.values()) == sorted(buckets.values())
    assert buckets[float("inf")] == count
    half = min(bound for bound, below in buckets.items() if below >= count / 2)
    assert metrics.latency_p50 / 1e6 <= half * 1.1
    mean = found["velo_event_latency_seconds_sum", mode, None] / count
    assert 0 < mean < 60


async def test_workers_are_counted_without_a_label(registry):
    async with echo.options(mode="process").open() as stream:
        await stream.send(1)
        assert await stream.recv() == 1
        assert registry.get_sample_value("velo_workers") >= 1


async def test_counters_outlive_functions(registry, mode):
    """They never go down, though functions are gone; those of one name are summed up."""

    async def vanishing(events):
        async for event in events:
            yield event

    name = f"{__name__}:{vanishing.__qualname__}"
    for count in range(1, 4):
        assert await stream_fn(vanishing, mode=mode).run([count]) == [count]
        gc.collect()
        found = scraped(registry, name, mode)
        assert found["velo_events_total", mode, None] == count
        assert found["velo_streams_opened_total", mode, None] == count
        assert found["velo_streams", mode, None] == 0
    # A stream goes on without its function.
    stream = await stream_fn(vanishing, mode=mode).open()
    gc.collect()
    await stream.send(1)
    assert await stream.recv() == 1
    found = scraped(registry, name, mode)
    assert found["velo_events_total", mode, None] == 4
    assert found["velo_streams", mode, None] == 1
    await stream.aclose()
    del stream
    gc.collect()
    for _ in range(2):
        found = scraped(registry, name, mode)
        assert found["velo_events_total", mode, None] == 4
        assert found["velo_streams", mode, None] == 0


def test_twice_in_a_registry_is_refused(registry):
    with pytest.raises(ValueError, match="[Dd]uplicated"):
        velo.metrics.register(registry)


def test_the_default_registry_is_prometheus_own():
    from prometheus_client import REGISTRY

    collector = velo.metrics.register()
    try:
        assert REGISTRY.get_sample_value("velo_workers") is not None
    finally:
        REGISTRY.unregister(collector)


async def test_opentelemetry_observes_the_same(mode):
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    velo.metrics.instrument(provider)

    @stream_fn(mode=mode)
    async def observed(events):
        async for event in events:
            yield event

    async with observed.open() as stream:
        assert [r async for r in stream.feed(range(10))] == list(range(10))
        (resource,) = reader.get_metrics_data().resource_metrics
        (scope,) = resource.scope_metrics
        assert (scope.scope.name, scope.scope.version) == ("velo", velo.__version__)
        name = f"{__name__}:{observed.__qualname__}"
        found, units = {}, {}
        for metric in scope.metrics:
            units[metric.name] = metric.unit
            for point in metric.data.data_points:
                if dict(point.attributes) == {"velo.function": name, "velo.mode": mode}:
                    found[metric.name] = point.value
        assert found["velo.streams.opened"] == found["velo.streams"] == 1
        assert found["velo.events"] == found["velo.results"] == 10
        assert found["velo.events.dropped"] == found["velo.events.queued"] == 0
        assert found["velo.events.io"] == stream.metrics.bytes_in
        assert found["velo.results.io"] == stream.metrics.bytes_out
        assert found["velo.event.latency.p50"] == pytest.approx(stream.metrics.latency_p50 / 1e6)
        assert 0 < found["velo.event.latency.p50"] <= found["velo.event.latency.p99"]
        assert units["velo.event.latency.p50"] == "s"
        assert units["velo.events.io"] == "By"
        kinds = {metric.name: metric.data for metric in scope.metrics}
        assert kinds["velo.events"].is_monotonic
        assert not kinds["velo.streams"].is_monotonic
    await asyncio.to_thread(provider.shutdown)


@pytest.mark.parametrize(
    ("module", "call", "extra"),
    [
        ("prometheus_client", "register", "metrics"),
        ("opentelemetry", "instrument", "opentelemetry"),
    ],
)
def test_importing_it_needs_neither_library(module, call, extra):
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "import velo.metrics\n"
        f"try: velo.metrics.{call}()\n"
        "except ImportError as error: print(error.name, error)"
    )
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
    assert ran.stdout.split()[0] == module
    assert (
        f"`velo.metrics.{call}()` needs `{module}`: run `pip install 'velo-stream[{extra}]'`"
        in (ran.stdout)
    )
