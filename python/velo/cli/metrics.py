"""`--metrics HOST:PORT`: serves the figures of a run to Prometheus, and answers probes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import click

import velo.metrics
from velo.cli.probes import Probes
from velo.cli.progress import Tally

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from prometheus_client.registry import CollectorRegistry

__all__ = ["add_run", "serving"]


@contextlib.contextmanager
def serving(
    where: str | None, add: Callable[[CollectorRegistry], object], probes: Probes | None = None
) -> Iterator[None]:
    """Serve figures at `HOST:PORT` while the block runs, with the figures of this process.

    Port 0 takes any free port. A message on stderr gives the address.

    Args:
        where: `HOST:PORT`; None: nothing is served.
        add: Registers further metrics.
        probes: Answers probes at the same address.

    Raises:
        click.UsageError: When `where` is no `HOST:PORT`, the address cannot be listened on, or
            `prometheus_client` is not installed.

    """
    if where is None:
        yield
        return
    try:
        from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
    except ImportError:
        raise click.UsageError(
            "`--metrics` needs prometheus_client: pip install 'velo-stream[metrics]'"
        ) from None
    host, _, port = where.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise click.UsageError(f"`--metrics {where}` must be HOST:PORT, as 127.0.0.1:9464")
    registry = CollectorRegistry()
    add(registry)
    ProcessCollector(registry=registry)
    try:
        server, thread = start_http_server(int(port), host, registry)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise click.UsageError(f"cannot serve metrics at {where}: {why}") from None
    if probes is not None and (app := server.get_app()) is not None:
        server.set_app(probes.beside(app))
    try:
        shown = f"[{host}]" if ":" in host else host
        click.echo(f"velo: metrics at http://{shown}:{server.server_port}/metrics", err=True)
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def add_run(registry: CollectorRegistry, tally: Callable[[], Tally]) -> None:
    """Register the figures of a run and of its functions."""
    registry.register(_Figures(tally))
    velo.metrics.register(registry)


class _Figures:
    """Makes metrics of the current counts at each scrape."""

    def __init__(self, tally: Callable[[], Tally]) -> None:
        self._tally = tally

    def collect(self) -> Iterable[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        now = self._tally()
        for name, what, value in (
            ("events", "Events that were taken from the input.", now.events),
            ("results", "Results, with those that an earlier run has written.", now.results),
            ("bad_lines", "Lines that held no event.", now.bad),
            ("streams_opened", "Streams that were opened.", now.opened),
        ):
            yield CounterMetricFamily(f"velo_run_{name}", what, value)
        gauges: list[tuple[str, str, float]] = [
            ("streams", "Streams that are open.", now.streams),
            ("workers", "Worker processes that streams have run in.", now.workers),
            ("input_bytes", "Bytes of the input that were read.", now.position),
        ]
        if now.epoch is not None:
            gauges += [
                ("epoch", "The number of the last tick of the checkpoint.", now.epoch),
                ("epoch_age_seconds", "The time since the last tick.", now.age),
            ]
        for name, what, gauge in gauges:
            yield GaugeMetricFamily(f"velo_run_{name}", what, gauge)
