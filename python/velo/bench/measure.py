"""Measure several subjects in turn, and make rows of their figures."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from velo import _core

__all__ = [
    "Figures",
    "Plan",
    "Row",
    "Subject",
    "bounded",
    "compare",
    "noise_of",
    "paired",
    "percentiles",
]

# Seconds. No subject needs that long unless it hangs.
LIMIT = 120.0

Figures = Mapping[str, list[dict[str, float]]]
"""The figures of every subject in every round, by the name of the subject."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """One thing to measure.

    Attributes:
        where: Its function, as `module:function`, which returns figures by name.
        arguments: Its arguments, as far as JSON carries them.
        environment: Environment variables for its process, added to those of this one.
        python: The interpreter for the module's file alone; None: this one.
        limit: It hangs when it takes longer than so many seconds.

    """

    where: str
    arguments: tuple[Any, ...] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    python: str | None = None
    limit: float = LIMIT

    def measure(self) -> dict[str, float]:
        """Run it.

        Raises:
            RuntimeError: The subject fails, or does not end in time.

        """
        # `-I`: neither a script's own folder nor PYTHONPATH is where `velo` is looked for.
        if self.python is None:
            command = [sys.executable, "-m", "velo.bench.subject", self.where]
        else:
            command = [self.python, "-I", self.where]
        command.append(json.dumps(self.arguments))
        try:
            run = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=self.limit,
                check=False,
                env={**os.environ, **self.environment},
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"not done after {self.limit:g} s") from None
        if run.returncode != 0:
            lines = run.stderr.strip().splitlines() or [f"exit code {run.returncode}"]
            raise RuntimeError(lines[-1])
        figures: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
        return figures


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
        quick: Fewer events and one round, to test the benchmarks themselves.
        peers: The names of the peers to measure; None: all that are installed.
        say: Called with the name of each subject before it is measured.
        warn: Called with each subject that could not be measured, and the reason.
        most: The number of rounds, unless the run is quick.
        long: Whether to measure what takes many minutes, too.

    """

    quick: bool
    peers: frozenset[str] | None
    say: Callable[[str], None]
    warn: Callable[[str], None]
    most: int = 5
    long: bool = False

    @property
    def rounds(self) -> int:
        """The number of rounds."""
        return 1 if self.quick else self.most

    @property
    def seconds(self) -> float:
        """The duration of a measurement that is limited by time."""
        return 0.05 if self.quick else 0.5

    def scaled(self, count: int) -> int:
        """Return the count, or a smaller one in a quick run."""
        return max(count // 20, 20) if self.quick else count

    def cores(self) -> float:
        """Measure the number of cores that the machine gives to processes that only compute."""
        self.say("the machine's cores")
        subject = Subject("velo.bench.floors:cores_given", (_core.usable_cores(), self.seconds / 5))
        return subject.measure()["cores"]

    def in_turn(self, subjects: Mapping[str, Subject], *, often: int = 1) -> Figures:
        """Measure every subject once per round, one after the other, every other round backwards.

        A subject that fails is reported and left out from then on. `often` multiplies the number of
        rounds, for subjects with shorter rounds.
        """
        figures: dict[str, list[dict[str, float]]] = {name: [] for name in subjects}
        rounds = 1 if self.quick else self.rounds * often
        order = list(subjects.items())
        for number in range(rounds):
            # A machine that slows down meanwhile must not favour the first subject.
            for name, subject in order if number % 2 == 0 else order[::-1]:
                if name not in figures:
                    continue
                self.say(f"{name} ({number + 1}/{rounds})")
                try:
                    figures[name].append(subject.measure())
                except RuntimeError as error:
                    self.warn(f"{name}: {error}")
                    del figures[name]
        return figures


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure of velo, alone or compared with the figure of another subject.

    Attributes:
        measurement: The name of the measurement.
        value: velo's figure, the median of all rounds.
        unit: Its unit. In `.../s` more is better, in any other less.
        compared_with: The name of the other subject; None if there is none.
        other: The figure of the other subject.
        ratio: The median over the rounds of velo's figure divided by the other.
        target: The ratio, or without another subject the figure, that velo aims for.
        series: The line of a chart to which the figure and the compared one belong.
        at: The position on that line.
        noise: The noise of the ratio; None if it is not known.

    """

    measurement: str
    value: float
    unit: str
    compared_with: str | None = None
    other: float | None = None
    ratio: float | None = None
    target: float | None = None
    series: str | None = None
    at: float | None = None
    noise: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target."""
        if self.target is None:
            return None
        reached = self.value if self.ratio is None else self.ratio
        return reached >= self.target if self.more_is_better else reached <= self.target

    @property
    def more_is_better(self) -> bool:
        """Whether a higher figure is the better one."""
        return self.unit.endswith("/s")

    def named(self, compared_with: str) -> Row:
        """Return the row with another name for the other subject."""
        return dataclasses.replace(self, compared_with=compared_with)


def compare(
    figures: Figures,
    one: str,
    other: str,
    *,
    measurement: str,
    unit: str,
    target: float | None = None,
    figure: str = "rate",
) -> list[Row]:
    """Compare two subjects that were measured in turn; no row if one of them failed."""
    if one not in figures or other not in figures:
        return []
    ours, theirs = ([round[figure] for round in figures[name]] for name in (one, other))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return [
        Row(
            measurement,
            statistics.median(ours),
            unit,
            other,
            statistics.median(theirs),
            statistics.median(ratios),
            target,
            noise=noise_of(ratios),
        )
    ]


def noise_of(ratios: Sequence[float]) -> float | None:
    """Return the noise of a ratio: its range over the rounds; None where there is one round."""
    return max(ratios) - min(ratios) if len(ratios) > 1 else None


def paired(
    figures: Figures,
    one: str,
    other: str,
    *,
    measurement: str,
    unit: str,
    figure: str = "rate",
    of: str = "floor",
    target: float | None = None,
) -> list[Row]:
    """Compare two figures of one subject, which measured both in turn; `of` names the other."""
    if one not in figures:
        return []
    both = {
        one: [{figure: round[figure]} for round in figures[one]],
        other: [{figure: round[of]} for round in figures[one]],
    }
    return compare(
        both, one, other, measurement=measurement, unit=unit, target=target, figure=figure
    )


def bounded(
    figures: Figures,
    one: str,
    *,
    measurement: str,
    unit: str,
    figure: str,
    target: float | None = None,
) -> list[Row]:
    """Make a row of one subject's figure alone; no row if it failed."""
    if one not in figures:
        return []
    return [
        Row(
            measurement,
            statistics.median(round[figure] for round in figures[one]),
            unit,
            target=target,
        )
    ]


def percentiles(seconds: Iterable[float]) -> dict[str, float]:
    """Return p50 and p99 in microseconds."""
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50": cuts[49] * 1e6, "p99": cuts[98] * 1e6}
