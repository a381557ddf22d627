"""A chart per scenario."""

from __future__ import annotations

from pathlib import Path

from velo.bench.report import Results

__all__ = ["draw"]


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw the ratios of all rows that have one; returns the pictures.

    Raises:
        ImportError: Without matplotlib.

    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for scenario, rows in results.items():
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
