"""Metrics of the streams of this process, for Prometheus and for OpenTelemetry.

Both get the same metrics under their own names: streams opened and open, events sent, dropped and
queued, results received, latencies, and keys opened, live, ended and evicted. Labels are the
function (`module:name`) and the mode, never a stream or a key. Sums are computed when they are
read, so that registering costs streams nothing. Metrics of a standalone supervisor and its workers
come from `velo supervisor start --metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from velo import _core
from velo._diagnostics import function_stats, source_figures
from velo._diagnostics.metrics import FunctionMetrics

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
    from prometheus_client.core import Metric
    from prometheus_client.registry import Collector, CollectorRegistry

__all__ = ["instrument", "register"]

# Upper bounds in seconds: from microseconds, for a round trip through warm rings, to functions that
# compute for long.
_BOUNDS = (
    1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3,
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip


class _Figure(NamedTuple):
    """One field of `FunctionMetrics`, under both of its names."""

    field: str
    prometheus: str
    opentelemetry: str
    unit: str
    """In the notation of OpenTelemetry."""
    description: str
    total: bool = True
    """Whether it only goes up."""


_FIGURES = (
    _Figure(
        "opened",
        "velo_streams_opened",
        "velo.streams.opened",
        "{stream}",
        "Streams that were opened.",
    ),
    _Figure("open", "velo_streams", "velo.streams", "{stream}", "Streams that are open.", False),
    _Figure("events", "velo_events", "velo.events", "{event}", "Events that were accepted."),
    _Figure("results", "velo_results", "velo.results", "{result}", "Results that were received."),
    _Figure(
        "dropped",
        "velo_events_dropped",
        "velo.events.dropped",
        "{event}",
        "Events that were dropped for newer ones.",
    ),
    _Figure(
        "queued",
        "velo_events_queued",
        "velo.events.queued",
        "{event}",
        "Events that wait, or are being handled.",
        False,
    ),
    _Figure(
        "bytes_in",
        "velo_event_bytes",
        "velo.events.io",
        "By",
        "Bytes of events that went to another process.",
    ),
    _Figure(
        "bytes_out",
        "velo_result_bytes",
        "velo.results.io",
        "By",
        "Bytes of results that came from another process.",
    ),
    _Figure("keys", "velo_keys", "velo.keys", "{key}", "Keys that have not ended.", False),
    _Figure(
        "keys_opened", "velo_keys_opened", "velo.keys.opened", "{key}", "Keys that were opened."
    ),
    _Figure("keys_ended", "velo_keys_ended", "velo.keys.ended", "{key}", "Keys that have ended."),
    _Figure(
        "keys_evicted",
        "velo_keys_evicted",
        "velo.keys.evicted",
        "{key}",
        "Keys whose input was ended because another key needed their place.",
    ),
)
_SOURCE_FIGURES = (
    _Figure("records", "velo_source_records", "velo.source.records", "{record}", "Records read."),
    _Figure(
        "bad",
        "velo_source_bad_records",
        "velo.source.bad_records",
        "{record}",
        "Records that could not be decoded, or had no key.",
    ),
    _Figure(
        "dead_letters",
        "velo_source_dead_letters",
        "velo.source.dead_letters",
        "{record}",
        "Records that went to the dead letters.",
    ),
    _Figure(
        "dropped",
        "velo_source_dropped_records",
        "velo.source.dropped_records",
        "{record}",
        "Records that failed and were dropped.",
    ),
    _Figure(
        "retried",
        "velo_source_retries",
        "velo.source.retries",
        "{retry}",
        "How often a record that failed was tried again.",
    ),
    _Figure(
        "commits",
        "velo_source_commits",
        "velo.source.commits",
        "{commit}",
        "How often positions were committed.",
    ),
    _Figure(
        "redelivered",
        "velo_source_redelivered_records",
        "velo.source.redelivered_records",
        "{record}",
        "Records that the server had delivered before.",
    ),
    _Figure(
        "reconnects",
        "velo_source_reconnects",
        "velo.source.reconnects",
        "{connection}",
        "How often the connection was made again.",
    ),
)
_SOURCE_LAG = "Records beyond the last one that was read."
_COMMITTED = "The last committed position, where it is a number."
_LATENCY = "How long events took, of those that were timed: one at a time in each stream."


def _missing(error: ModuleNotFoundError, call: str, extra: str) -> ModuleNotFoundError:
    """Return the error of a call whose package is not installed."""
    text = f"`{call}` needs `{error.name}`: run `pip install 'velo-stream[{extra}]'`"
    return ModuleNotFoundError(text, name=error.name)


def register(registry: CollectorRegistry | None = None) -> Collector:
    """Add the metrics of this process to a Prometheus registry.

    Counters are `velo_streams_opened_total`, `velo_events_total`, `velo_results_total`,
    `velo_events_dropped_total`, `velo_event_bytes_total`, `velo_result_bytes_total`,
    `velo_keys_opened_total`, `velo_keys_ended_total` and `velo_keys_evicted_total`; gauges
    are `velo_streams`, `velo_keys`, `velo_events_queued` and, without a label, `velo_workers`, the
    worker processes of the program's own supervisor; `velo_event_latency_seconds` is a histogram.

    Of each source of `velo.connect` that is read, with the labels `function` and `source`, counters
    are `velo_source_records_total`, `velo_source_bad_records_total`,
    `velo_source_dead_letters_total`, `velo_source_dropped_records_total`,
    `velo_source_retries_total`, `velo_source_commits_total`,
    `velo_source_redelivered_records_total` and `velo_source_reconnects_total`; gauges are, with
    the label `partition` as well, `velo_source_lag_records` and `velo_source_committed_position`.

    Args:
        registry: The registry. None: the default registry of `prometheus_client`.

    Returns:
        The collector, for `registry.unregister`.

    Raises:
        ImportError: `prometheus_client` is not installed; `pip install 'velo-stream[metrics]'`
            brings it.
        ValueError: When velo is registered there already.

    """
    try:
        from prometheus_client import REGISTRY
    except ModuleNotFoundError as error:
        raise _missing(error, "velo.metrics.register()", "metrics") from None

    collector = _collector()
    (REGISTRY if registry is None else registry).register(collector)
    return collector


def instrument(meter_provider: MeterProvider | None = None) -> None:
    """Add the metrics of this process to OpenTelemetry.

    The instruments are observable, of a meter named `velo`: counters `velo.streams.opened`,
    `velo.events`, `velo.results`, `velo.events.dropped`, `velo.keys.opened`, `velo.keys.ended`,
    `velo.keys.evicted`, and in bytes `velo.events.io` and
    `velo.results.io`; up-down counters `velo.streams`, `velo.keys` and `velo.events.queued`; and
    gauges `velo.event.latency.p50`, `.p95` and `.p99`, in seconds. Attributes are `velo.function`
    and `velo.mode`. Of each source of `velo.connect` that is read there are counters
    `velo.source.records`, `.bad_records`, `.dead_letters`, `.dropped_records`, `.retries`,
    `.commits`, `.redelivered_records` and `.reconnects`, and a gauge `velo.source.lag`, with
    attributes `velo.function`, `velo.source` and, for the lag, `velo.partition`.

    Args:
        meter_provider: The provider. None: the one that is set for the process, now or later.

    Raises:
        ImportError: `opentelemetry-api` is not installed; `pip install
            'velo-stream[opentelemetry]'` brings it.

    """
    try:
        from opentelemetry import metrics
    except ModuleNotFoundError as error:
        raise _missing(error, "velo.metrics.instrument()", "opentelemetry") from None

    provider = metrics.get_meter_provider() if meter_provider is None else meter_provider
    meter = provider.get_meter("velo", _core.__version__)
    for figure in _FIGURES:
        create = (
            meter.create_observable_counter
            if figure.total
            else meter.create_observable_up_down_counter
        )
        create(figure.opentelemetry, [_observer(figure.field)], figure.unit, figure.description)
    for figure in _SOURCE_FIGURES:
        meter.create_observable_counter(
            figure.opentelemetry,
            [_source_observer(figure.field)],
            figure.unit,
            figure.description,
        )
    meter.create_observable_gauge("velo.source.lag", [_lag_observer], "{record}", _SOURCE_LAG)
    for percentile in ("p50", "p95", "p99"):
        meter.create_observable_gauge(
            f"velo.event.latency.{percentile}",
            [_observer(f"latency_{percentile}", 1e-6)],
            "s",
            _LATENCY,
        )


def _source_observer(field: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
    from opentelemetry.metrics import Observation

    def observe(options: CallbackOptions) -> Iterable[Observation]:
        for function, source, figures in source_figures.sources():
            labels = {"velo.function": function, "velo.source": source}
            yield Observation(getattr(figures, field), labels)

    return observe


def _lag_observer(options: CallbackOptions) -> Iterable[Observation]:
    from opentelemetry.metrics import Observation

    for function, source, figures in source_figures.sources():
        for partition, lag in figures.lag.items():
            labels = {"velo.function": function, "velo.source": source}
            yield Observation(lag, {**labels, "velo.partition": source_figures.label_of(partition)})


def _observer(field: str, scale: float = 1) -> Callable[[CallbackOptions], Iterable[Observation]]:
    from opentelemetry.metrics import Observation

    def observe(options: CallbackOptions) -> Iterable[Observation]:
        for function, mode, stats in function_stats.totals():
            value = getattr(FunctionMetrics(**stats.figures()), field)
            if value is not None:
                yield Observation(value * scale, {"velo.function": function, "velo.mode": mode})

    return observe


def _source_families() -> Iterable[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    known = list(source_figures.sources())
    labels = ["function", "source"]
    for figure in _SOURCE_FIGURES:
        family = CounterMetricFamily(figure.prometheus, figure.description, labels=labels)
        for function, source, figures in known:
            family.add_metric([function, source], getattr(figures, figure.field))
        yield family
    lag = GaugeMetricFamily("velo_source_lag_records", _SOURCE_LAG, labels=[*labels, "partition"])
    committed = GaugeMetricFamily(
        "velo_source_committed_position", _COMMITTED, labels=[*labels, "partition"]
    )
    for function, source, figures in known:
        for partition, count in figures.lag.items():
            lag.add_metric([function, source, source_figures.label_of(partition)], count)
        for partition, position in figures.committed.items():
            committed.add_metric([function, source, source_figures.label_of(partition)], position)
    yield lag
    yield committed


def _collector() -> Collector:
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )
    from prometheus_client.registry import Collector

    class StreamsCollector(Collector):
        """Computes the metrics whenever they are read."""

        def describe(self) -> Iterable[Metric]:
            return self._families(())

        def collect(self) -> Iterable[Metric]:
            yield from self._families(tuple(function_stats.totals()))
            status = _core.status() if _core.PROCESS_MODE else None
            workers = 0 if status is None else len(status.workers)
            yield GaugeMetricFamily(
                "velo_workers", "Worker processes of this program's own supervisor.", workers
            )

        def _families(
            self, functions: tuple[function_stats.FunctionTotals, ...]
        ) -> Iterable[Metric]:
            labels = ["function", "mode"]
            known = [(names, FunctionMetrics(**stats.figures())) for *names, stats in functions]
            for figure in _FIGURES:
                kind = CounterMetricFamily if figure.total else GaugeMetricFamily
                family = kind(figure.prometheus, figure.description, labels=labels)
                for names, metrics in known:
                    family.add_metric(names, getattr(metrics, figure.field))
                yield family
            histogram = HistogramMetricFamily("velo_event_latency_seconds", _LATENCY, labels=labels)
            for function, mode, stats in functions:
                seen = stats.latencies(list(_BOUNDS))
                buckets = [(f"{bound:g}", n) for bound, n in zip(_BOUNDS, seen.below, strict=True)]
                buckets.append(("+Inf", seen.count))
                histogram.add_metric([function, mode], buckets, seen.sum)
            yield histogram
            yield from _source_families()

    return StreamsCollector()
