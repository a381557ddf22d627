"""The ratios of one run compared with those of an earlier one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from velo.bench.measure import Row
from velo.bench.report import Results

__all__ = ["BadBaseline", "Baseline", "Change", "changes", "missing", "read"]

Name = tuple[str, str, str]
"""Scenario, measurement, and the name of the other subject."""


class BadBaseline(Exception):
    """The file is not one that `velo bench --output` has written; the message says why."""


class Known(NamedTuple):
    """A ratio of the earlier run, and its noise."""

    ratio: float
    noise: float | None


Baseline = Mapping[Name, Known]


class Change(NamedTuple):
    """One ratio in both runs.

    Attributes:
        name: Its scenario, its measurement, and the name of the other subject.
        before: The ratio of the earlier run.
        now: The ratio of this run.
        noise: The larger noise of the two; None where neither run has several rounds.
        more_is_better: Whether a higher ratio is the better one.

    """

    name: Name
    before: float
    now: float
    noise: float | None
    more_is_better: bool

    @property
    def fell(self) -> bool:
        """Whether the ratio is worse than before by more than its noise."""
        worse = self.before - self.now if self.more_is_better else self.now - self.before
        return self.noise is not None and worse > self.noise


def read(path: Path) -> Baseline:
    """Read the ratios of an earlier `--output`.

    Raises:
        BadBaseline: It has none, or is something else.
        OSError: It cannot be read.

    """
    try:
        scenarios = json.loads(path.read_bytes())["scenarios"]
        known = {
            (scenario, row["measurement"], row["compared_with"]): Known(
                float(row["ratio"]), None if row["noise"] is None else float(row["noise"])
            )
            for scenario, rows in scenarios.items()
            for row in rows
            if row["ratio"] is not None
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadBaseline(f"it is no output of `velo bench`: {error!r}") from None
    if not known:
        raise BadBaseline("it has no ratio")
    return known


def changes(baseline: Baseline, results: Results) -> Iterator[Change]:
    """Compare each ratio that both runs have."""
    for name, row in _ratios(results).items():
        if name in baseline and row.ratio is not None:
            before = baseline[name]
            noises = [noise for noise in (before.noise, row.noise) if noise is not None]
            noise = max(noises, default=None)
            yield Change(name, before.ratio, row.ratio, noise, row.more_is_better)


def missing(baseline: Baseline, results: Results) -> list[Name]:
    """Return the ratios that the measured scenarios had in the earlier run alone."""
    found = _ratios(results)
    return [name for name in baseline if name[0] in results and name not in found]


def _ratios(results: Results) -> dict[Name, Row]:
    return {
        (scenario, row.measurement, row.compared_with or ""): row
        for scenario, rows in results.items()
        for row in rows
        if row.ratio is not None
    }
