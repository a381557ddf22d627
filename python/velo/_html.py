"""What notebooks show of an object: a small table, and a drawing of latencies.

Colours are those of the notebook's text, so that they fit its light or dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["counters", "histogram", "table"]

_CELL = "padding:2px 14px 2px 0;text-align:left;background:none;border:0"
_FAINT = "opacity:.65"
_WIDTH, _HEIGHT = 240, 36


def table(title: str, rows: Iterable[tuple[str, object]], *, below: str = "") -> str:
    """Return a title and rows of a name and a value; rows with None are left out.

    Args:
        title: The text above.
        rows: The names and values, as text.
        below: HTML that stands below.

    """
    lines = [
        f'<tr style="background:none"><td style="{_CELL};{_FAINT}">{escape(name)}</td>'
        f'<td style="{_CELL};white-space:pre-wrap">{escape(str(value))}</td></tr>'
        for name, value in rows
        if value is not None
    ]
    return (
        f'<div style="line-height:1.5"><b>{escape(title)}</b>'
        f'<table style="margin:2px 0;border:0">{"".join(lines)}</table>{below}</div>'
    )


def counters(title: str, known: Mapping[str, Any], *, drawing: str | None = None) -> str:
    """Return a table of counters; those of latencies get a drawing.

    Args:
        title: The text above.
        known: The counters by name. Those that are zero or None are left out, except the first two.
        drawing: What is drawn in place of the percentiles.

    """
    first = list(known)[:2]
    shown = {name: value for name, value in known.items() if value or name in first}
    quantiles = {
        name.removeprefix("latency_"): value
        for name, value in shown.items()
        if name.startswith("latency_")
    }
    rows = [(name, _figure(name, value)) for name, value in shown.items() if "latency" not in name]
    if quantiles:
        text = ", ".join(f"{name} {_latency(value)}" for name, value in quantiles.items())
        rows.append(("latency", text))
    return table(title, rows, below=_percentiles(quantiles) if drawing is None else drawing)


def _figure(name: str, value: Any) -> str:
    if name == "duration":
        return f"{value:,.1f} s"
    return f"{value:,} bytes" if name.startswith("bytes") else f"{value:,}"


def _latency(microseconds: float) -> str:
    for most, unit in ((1e3, "µs"), (1e6, "ms")):
        if microseconds < 0.9995 * most:
            return f"{microseconds / most * 1e3:.3g} {unit}"
    return f"{microseconds / 1e6:.3g} s"


def _percentiles(there: Mapping[str, float]) -> str:
    """Return a drawing of percentiles, in microseconds, on a logarithmic line."""
    if not there:
        return ""
    low = 10 ** math.floor(math.log10(min(there.values())))
    high = max(low * 10, 10 ** math.ceil(math.log10(max(there.values()))))

    def x(value: float) -> float:
        return 4 + (_WIDTH - 8) * math.log10(value / low) / math.log10(high / low)

    marks = "".join(
        f'<circle cx="{x(value):.1f}" cy="10" r="{4 - at}"><title>{escape(name)} '
        f"{_latency(value)}</title></circle>"
        for at, (name, value) in enumerate(there.items())
    )
    ends = (
        f'<text x="4" y="32" opacity=".65">{_latency(low)}</text>'
        f'<text x="{_WIDTH - 4}" y="32" opacity=".65" text-anchor="end">{_latency(high)}</text>'
    )
    line = f'<line x1="4" x2="{_WIDTH - 4}" y1="10" y2="10" stroke="currentColor" opacity=".3"/>'
    label = ", ".join(f"{name} {_latency(value)}" for name, value in there.items())
    return _drawing(f"latency: {label}", line + marks + ends)


def histogram(bounds: Sequence[float], counts: Sequence[int]) -> str:
    """Return a drawing of how many latencies there are up to each bound, and above the last.

    Args:
        bounds: Upper bounds in seconds, in ascending order.
        counts: How many are between each bound and the one before, and above the last one.

    """
    used = [at for at, count in enumerate(counts) if count]
    if not used:
        return ""
    first, last = max(0, used[0] - 1), min(len(counts) - 1, used[-1] + 1)
    shown, most = range(first, last + 1), max(counts)
    width = (_WIDTH - 8) / len(shown)
    bars = []
    for place, at in enumerate(shown):
        # A few slow ones among a million are what one looks for: they are not less than a line.
        height = 20 * math.log1p(counts[at]) / math.log1p(most) if counts[at] else 0
        upper = f"up to {_latency(bounds[at] * 1e6)}" if at < len(bounds) else "above that"
        bars.append(
            f'<rect x="{4 + place * width:.1f}" y="{22 - height:.1f}" width="{width - 1:.1f}" '
            f'height="{height:.1f}"><title>{upper}: {counts[at]:,}</title></rect>'
        )
    low = _latency(bounds[max(0, first - 1)] * 1e6)
    high = _latency(bounds[min(last, len(bounds) - 1)] * 1e6)
    ends = (
        f'<text x="4" y="34" opacity=".65">{low}</text>'
        f'<text x="{_WIDTH - 4}" y="34" opacity=".65" text-anchor="end">{high}</text>'
    )
    line = (
        f'<line x1="4" x2="{_WIDTH - 4}" y1="22.5" y2="22.5" stroke="currentColor" opacity=".3"/>'
    )
    return _drawing(f"latencies from {low} to {high}", "".join(bars) + line + ends)


def _drawing(label: str, inner: str) -> str:
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(label)}" fill="currentColor" font-size="11" '
        f'style="overflow:visible">{inner}</svg>'
    )
