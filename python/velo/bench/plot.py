"""Charts of the figures of each scenario, for light and for dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from velo.bench.measure import Row
from velo.bench.report import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw"]


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw charts of each scenario, for light and for dark pages; returns the pictures.

    Lines for figures over a quantity; and bars for each unit, of the measurement that is compared
    with the most others.

    Raises:
        ImportError: Without matplotlib.

    """
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for scenario, rows in results.items():
        if any(row.series is not None for row in rows):
            pictures += [_lines(scenario, rows, folder, dark) for dark in (False, True)]
        compared = [row for row in rows if row.compared_with is not None and row.other is not None]
        for unit in dict.fromkeys(row.unit for row in compared):
            groups: dict[str, list[Row]] = {}
            for row in compared:
                if row.unit == unit:
                    groups.setdefault(row.measurement, []).append(row)
            most = max(groups.values(), key=len)
            pictures += [_bars(scenario, most, folder, dark) for dark in (False, True)]
    return pictures


def _style(scenario: str, dark: bool) -> dict[str, str]:
    """Return the colours of a chart, and what makes the same figures give the same file."""
    ink, faint = ("#e6edf3", "#6e7681") if dark else ("#1f2328", "#8c959f")
    return {
        "svg.hashsalt": scenario,  # no random ids
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": faint,
        "grid.color": faint,
        "xtick.color": ink,
        "ytick.color": ink,
    }


def _save(figure: Figure, path: Path) -> Path:
    from matplotlib import pyplot

    figure.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    # matplotlib leaves spaces at the ends of lines.
    lines = [line.rstrip() for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines) + "\n")
    return path


def _bars(scenario: str, rows: Sequence[Row], folder: Path, dark: bool) -> Path:
    """Draw one figure of velo among those that it is compared with, the best on top."""
    from matplotlib import pyplot

    unit, ours = rows[0].unit, f"velo: {rows[0].measurement.replace('`', '')}"
    figures = {ours: rows[0].value}
    figures |= {str(row.compared_with).replace("`", ""): row.other or 0.0 for row in rows}
    better = "more" if unit.endswith("/s") else "less"
    names = sorted(figures, key=figures.__getitem__, reverse=better == "more")
    own, other = ("#5b8cff", "#57606a") if dark else ("#2f5bd7", "#afb8c1")
    with pyplot.rc_context(_style(scenario, dark)):
        figure, axes = pyplot.subplots(figsize=(6, 0.5 + 0.27 * len(names)))
        colours = [own if name == ours else other for name in names]
        bars = axes.barh(range(len(names)), [figures[name] for name in names], color=colours)
        labels = [f"{figures[name]:,.{0 if figures[name] >= 100 else 2}f}" for name in names]
        axes.bar_label(bars, labels=labels, padding=4, fontsize=9)
        axes.set_yticks(range(len(names)), names, fontsize=9)
        axes.get_yticklabels()[names.index(ours)].set_fontweight("bold")
        axes.tick_params(length=0)
        axes.set_xticks([])
        axes.margins(x=0.16, y=0.02)
        axes.invert_yaxis()
        for side in ("top", "right", "bottom"):
            axes.spines[side].set_visible(False)
        axes.set_xlabel(f"{unit}: {better} is better", fontsize=9)
        name = f"{scenario}-{unit.split('/')[0].replace('µ', 'u')}"
        return _save(figure, folder / f"{name}-{'dark' if dark else 'light'}.svg")


def _lines(scenario: str, rows: Sequence[Row], folder: Path, dark: bool) -> Path:
    """Draw the figures of velo, its floors and its peers over the quantity that they depend on."""
    from matplotlib import pyplot

    lines: dict[str, dict[float, float]] = {}
    for row in rows:
        if row.series is not None and row.at is not None:
            lines.setdefault(row.series, {})[row.at] = row.value
            if row.compared_with is not None and row.other is not None:
                lines.setdefault(row.compared_with, {})[row.at] = row.other
    with pyplot.rc_context(_style(scenario, dark)):
        figure, axes = pyplot.subplots(figsize=(8, 4.2))
        for name, points in lines.items():
            ours = name.startswith("velo")
            order = sorted(points)
            axes.plot(
                order,
                [points[at] for at in order],
                marker="o",
                markersize=5 if len(order) > 1 else 7,
                linewidth=2.2 if ours else 1.4,
                linestyle="-" if ours else "--",
                label=name,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("keys")
        axes.set_ylabel("events/s")
        axes.grid(visible=True, which="major", alpha=0.35, linewidth=0.6)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return _save(figure, folder / f"{scenario}-{'dark' if dark else 'light'}.svg")
