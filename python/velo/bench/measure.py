"""Measuring several things in turn, and what comes of it."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from velo import _core

__all__ = ["Figures", "Plan", "Row", "Subject", "bounded", "compare", "paired", "percentiles"]

# No subject needs as long; one that does hangs.
LIMIT = 120.0

Figures = Mapping[str, list[dict[str, float]]]
"""What every subject measured in every round, by its name."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """One thing to measure.

    Attributes:
        where: Its function, as `module:function`; gives figures by name.
        arguments: Its arguments, as far as JSON carries them.
        environment: Variables that its process has beyond this one's.
        python: The interpreter to run it with, which needs only the module's file; None: this one.

    """

    where: str
    arguments: tuple[Any, ...] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    python: str | None = None

    def measure(self) -> dict[str, float]:
        """Run it.

        Raises:
            RuntimeError: If it fails, or does not end in time.

        """
        # `-P`: a script's own folder is not where `velo` is looked for.
        if self.python is None:
            command = [sys.executable, "-m", "velo.bench.subject", self.where]
        else:
            command = [self.python, "-P", self.where]
        command.append(json.dumps(self.arguments))
        try:
            run = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=LIMIT,
                check=False,
                env={**os.environ, **self.environment},
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"not done after {LIMIT:g} s") from None
        if run.returncode != 0:
            lines = run.stderr.strip().splitlines() or [f"exit code {run.returncode}"]
            raise RuntimeError(lines[-1])
        figures: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
        return figures


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
        quick: Fewer events and one round: whether it works, rather than how fast it is.
        peers: The names of the peers to measure; None: all that are installed.
        say: Called with what is being measured.
        warn: Called with what could not be measured, and why.

    """

    quick: bool
    peers: frozenset[str] | None
    say: Callable[[str], None]
    warn: Callable[[str], None]

    @property
    def rounds(self) -> int:
        """How many times everything is measured."""
        return 1 if self.quick else 5

    @property
    def seconds(self) -> float:
        """How long a measurement lasts that goes by time."""
        return 0.05 if self.quick else 0.5

    def scaled(self, count: int) -> int:
        """Return fewer of something in a quick run."""
        return max(count // 20, 20) if self.quick else count

    def cores(self) -> float:
        """Return how many cores the machine gives to processes that only compute, right now."""
        self.say("the machine's cores")
        subject = Subject("velo.bench.floors:cores_given", (_core.usable_cores(), self.seconds / 5))
        return subject.measure()["cores"]

    def in_turn(self, subjects: Mapping[str, Subject], *, often: int = 1) -> Figures:
        """Measure every subject once per round, one after the other, every other round backwards.

        A subject that fails is named and left out from then on. `often` makes so many times as many
        rounds, for subjects that are measured in so many times shorter ones.
        """
        figures: dict[str, list[dict[str, float]]] = {name: [] for name in subjects}
        rounds = 1 if self.quick else self.rounds * often
        order = list(subjects.items())
        for number in range(rounds):
            # A machine that slows down meanwhile must not favour who comes first.
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
    """One figure of velo, beside one of something else or for itself.

    Attributes:
        what: What was measured.
        value: velo's figure, the median of all rounds.
        unit: Its unit; in `.../s`, more is better, otherwise less is.
        beside: What it stands beside; None where there is nothing but a bound.
        other: The other's figure.
        ratio: The median over the rounds of velo's figure by the other's.
        must: The ratio, or the figure where there is no other, that it must reach.

    """

    what: str
    value: float
    unit: str
    beside: str | None = None
    other: float | None = None
    ratio: float | None = None
    must: float | None = None

    @property
    def holds(self) -> bool | None:
        """Whether it reaches what it must; None where nothing is asked."""
        if self.must is None:
            return None
        reached = self.value if self.ratio is None else self.ratio
        return reached >= self.must if self.unit.endswith("/s") else reached <= self.must

    def named(self, beside: str) -> Row:
        """Return the row with another name for what it stands beside."""
        return dataclasses.replace(self, beside=beside)


def compare(
    figures: Figures,
    one: str,
    other: str,
    *,
    what: str,
    unit: str,
    must: float | None = None,
    figure: str = "rate",
) -> list[Row]:
    """Compare two subjects that were measured in turn; nothing if one of them failed."""
    if one not in figures or other not in figures:
        return []
    ours, theirs = ([round[figure] for round in figures[name]] for name in (one, other))
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return [Row(what, statistics.median(ours), unit, other, statistics.median(theirs), ratio, must)]


def paired(
    figures: Figures,
    one: str,
    other: str,
    *,
    what: str,
    unit: str,
    figure: str = "rate",
    of: str = "floor",
    must: float | None = None,
) -> list[Row]:
    """Compare two figures of one subject, which measured both in turn; `of` is the other's."""
    if one not in figures:
        return []
    both = {
        one: [{figure: round[figure]} for round in figures[one]],
        other: [{figure: round[of]} for round in figures[one]],
    }
    return compare(both, one, other, what=what, unit=unit, must=must, figure=figure)


def bounded(
    figures: Figures, one: str, *, what: str, unit: str, figure: str, must: float | None = None
) -> list[Row]:
    """Take one subject's figure for itself; nothing if it failed."""
    if one not in figures:
        return []
    return [Row(what, statistics.median(round[figure] for round in figures[one]), unit, must=must)]


def percentiles(seconds: Iterable[float]) -> dict[str, float]:
    """Return p50 and p99 in microseconds."""
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50": cuts[49] * 1e6, "p99": cuts[98] * 1e6}
