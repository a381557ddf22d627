"""What runs came to, and the table of it."""

import dataclasses
import statistics
from collections import Counter

__all__ = ["Tally", "table"]


@dataclasses.dataclass
class Tally:
    """All runs of one cell of the matrix.

    Attributes:
        runs: How many there were.
        lost: Results that should have come and did not.
        doubled: Results that came more often than they should have.
        wrong: Results that came and that no undisturbed run gives.
        left: Processes and files that were still there a second after all had ended.
        failed: Runs that hung or raised, with why.
        pauses: Milliseconds from each strike to when every stream had gone on.

    """

    runs: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    left: int = 0
    failed: list = dataclasses.field(default_factory=list)
    pauses: list = dataclasses.field(default_factory=list)

    @property
    def clean(self):
        """Whether nothing was lost, doubled, wrong or left behind."""
        return not (self.lost or self.doubled or self.wrong or self.left or self.failed)

    def compare(self, came, should):
        """Hold the results of one stream against those of an undisturbed run."""
        if came == should:
            return
        ours, theirs = Counter(came), Counter(should)
        self.lost += (theirs - ours).total()
        extra = ours - theirs
        self.doubled += sum(count for result, count in extra.items() if result in theirs)
        self.wrong += sum(count for result, count in extra.items() if result not in theirs)
        if not (self.lost or self.doubled or self.wrong):
            self.wrong += 1  # out of order

    def pause(self, struck, streams):
        """Note how long it took until all streams had given a result again."""
        if struck is None:
            return
        nexts = [next((t for t in stream.times if t >= struck), None) for stream in streams]
        gaps = [when - struck for when in nexts if when is not None]
        if gaps:
            self.pauses.append(max(gaps) * 1000)

    def percentile(self, part):
        """Milliseconds; None where nothing was measured."""
        if not self.pauses:
            return None
        if len(self.pauses) < 3:
            return max(self.pauses)
        return statistics.quantiles(self.pauses, n=100, method="inclusive")[int(part) - 1]


def table(tallies):
    """The cells as a Markdown table: `{(victim, how, phase): Tally}`."""
    lines = [
        "| what is struck | how | while | runs | lost | doubled | wrong | left behind | failed "
        "| going on after, ms p50 | p99 |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (victim, how, phase), tally in tallies.items():
        middle, tail = tally.percentile(50), tally.percentile(99)
        figures = [
            *(tally.runs, tally.lost, tally.doubled, tally.wrong, tally.left, len(tally.failed)),
            *("" if figure is None else f"{figure:.1f}" for figure in (middle, tail)),
        ]
        lines.append(f"| {victim} | {how} | {phase} | " + " | ".join(map(str, figures)) + " |")
    return "\n".join(lines)
