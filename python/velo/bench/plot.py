"""A chart per scenario, and of the rows that make lines a chart of those."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from velo.bench.measure import Row
from velo.bench.report import Results

__all__ = ["draw"]


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw the ratios of all rows that have one, and lines; returns the pictures.

    Raises:
        ImportError: Without matplotlib.

    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for scenario, rows in results.items():
        if any(row.series is not None for row in rows):
            pictures += [_lines(scenario, rows, folder, dark) for dark in (False, True)]
        for unit in dict.fromkeys(row.unit for row in rows if row.ratio is not None):
            shown = [row for row in rows if row.ratio is not None and row.unit == unit]
            figure, axes = pyplot.subplots(figsize=(11, 1.2 + 0.36 * len(shown)))
            ratios = [row.ratio or 0.0 for row in shown]
            colours = ["tab:red" if row.met is False else "tab:blue" for row in shown]
            bars = axes.barh(range(len(shown)), ratios, color=colours)
            axes.bar_label(bars, labels=[f"{ratio:.2f}" for ratio in ratios], padding=3)
            axes.set_yticks(
                range(len(shown)), [f"{row.measurement}\n/ {row.compared_with}" for row in shown]
            )
            axes.tick_params(axis="y", labelsize=7)
            axes.axvline(1.0, color="black", linewidth=0.8)
            axes.set_xscale("log")
            axes.margins(x=0.12)
            axes.invert_yaxis()
            better = "more" if unit.endswith("/s") else "less"
            axes.set_xlabel(f"velo's {unit} by the other's: {better} is better")
            axes.set_title(scenario)
            figure.tight_layout()
            pictures.append(folder / f"{scenario}-{unit.split('/')[0].replace('µ', 'u')}.png")
            figure.savefig(pictures[-1], dpi=120)
            pyplot.close(figure)
    return pictures


def _lines(scenario: str, rows: Sequence[Row], folder: Path, dark: bool) -> Path:
    """Draw the figures of velo, its floors and its peers over the quantity that they depend on."""
    from matplotlib import pyplot

    lines: dict[str, dict[float, float]] = {}
    for row in rows:
        if row.series is not None and row.at is not None:
            lines.setdefault(row.series, {})[row.at] = row.value
            if row.compared_with is not None and row.other is not None:
                lines.setdefault(row.compared_with, {})[row.at] = row.other
    ink, faint = ("#e6edf3", "#6e7681") if dark else ("#1f2328", "#8c959f")
    style = {
        "svg.hashsalt": scenario,  # no random ids: the same figures give the same file
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": faint,
        "xtick.color": ink,
        "ytick.color": ink,
    }
    with pyplot.rc_context(style):
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
        axes.grid(visible=True, which="major", color=faint, alpha=0.35, linewidth=0.6)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        path = folder / f"{scenario}-{'dark' if dark else 'light'}.svg"
        figure.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None})
        pyplot.close(figure)
    return path
