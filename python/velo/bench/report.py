"""Figures as a table, as Markdown and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

from velo.bench.measure import Row

__all__ = ["HEAD", "Cores", "Results", "as_json", "as_markdown", "cells", "given", "line"]

HEAD = ("measurement", "velo", "compared with", "its figure", "ratio", "target", "met")

Results = Mapping[str, Sequence[Row]]
"""The rows of every scenario, by its name."""

Cores = Mapping[str, Sequence[float]]
"""The cores that the machine gave before and after every scenario, by its name."""


def cells(row: Row) -> tuple[str, ...]:
    """Return the cells of a row."""
    return (
        row.measurement,
        f"{_number(row.value)} {row.unit}",
        row.compared_with or "",
        "" if row.other is None else f"{_number(row.other)} {row.unit}",
        "" if row.ratio is None else _ratio(row.ratio),
        _target(row),
        "" if row.met is None else "yes" if row.met else "NO",
    )


def line(row: Row) -> str:
    """Return a row as one line of text."""
    measurement, ours, other, theirs, ratio, target, met = cells(row)
    compared = f", {ratio} of {other} ({theirs})" if other else ""
    aim = f"; target {target}: {met}" if target else ""
    return f"{measurement}: {ours}{compared}{aim}"


def _target(row: Row) -> str:
    if row.target is None:
        return ""
    sign = "≥" if row.more_is_better else "≤"
    return f"{sign} {row.target:g}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _ratio(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def given(cores: Sequence[float]) -> str:
    """Return a line with the cores that the machine gave before and after a scenario."""
    before, after = cores
    return f"cores that the machine gave: {before:.2f} before, {after:.2f} after"


def as_markdown(results: Results, cores: Cores, machine: Mapping[str, str]) -> str:
    """Return a table per scenario."""
    lines = [", ".join(f"{name} {value}" for name, value in machine.items())]
    for scenario, rows in results.items():
        lines += ["", f"### {scenario.capitalize()}", "", f"{given(cores[scenario]).capitalize()}."]
        lines += ["", f"| {' | '.join(HEAD)} |"]
        lines.append("| --- | ---: | --- | ---: | ---: | ---: | --- |")
        lines += [f"| {' | '.join(cells(row))} |" for row in rows]
    return "\n".join(lines)


def as_json(results: Results, cores: Cores, machine: Mapping[str, str]) -> str:
    """Return all figures, for programs."""
    scenarios = {
        scenario: [{**dataclasses.asdict(row), "met": row.met} for row in rows]
        for scenario, rows in results.items()
    }
    everything = {"machine": dict(machine), "cores": dict(cores), "scenarios": scenarios}
    return json.dumps(everything, indent=1)
