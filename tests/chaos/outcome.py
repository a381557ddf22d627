"""What runs came to, and the table of it."""

import dataclasses
import statistics
from collections import Counter

__all__ = ["Outcome", "table"]


@dataclasses.dataclass
class Outcome:
    """All runs of one cell of the matrix.

    Attributes:
        runs: How many there were.
        hits: In how many of them there was a process to hit.
        lost: Results that should have come and did not.
        doubled: Results that came more often than they should have.
        wrong: Results that came and that no undisturbed run gives.
        left: Processes and files that were still there ten seconds after all had ended.
        failed: Runs that hung or raised, with why.
        pauses: Milliseconds from each fault to when every stream had gone on.

    """

    runs: int = 0
    hits: int = 0
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

    def pause(self, hit, streams):
        """Note how long it took until all streams had given a result again."""
        if hit is None:
            return
        nexts = [next((t for t in stream.times if t >= hit), None) for stream in streams]
        gaps = [when - hit for when in nexts if when is not None]
        if gaps:
            self.pauses.append(max(gaps) * 1000)

    def percentile(self, part):
        """Milliseconds; None where nothing was measured."""
        if not self.pauses:
            return None
        if len(self.pauses) < 3:
            return max(self.pauses)
        return statistics.quantiles(self.pauses, n=100, method="inclusive")[int(part) - 1]


def table(outcomes):
    """The cells as a Markdown table: `{(victim, how, phase): Outcome}`."""
    lines = [
        "| what is hit | how | while | runs | lost | doubled | wrong | left behind | failed "
        "| going on after, ms p50 | p99 |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (victim, how, phase), outcome in outcomes.items():
        middle, tail = outcome.percentile(50), outcome.percentile(99)
        figures = [
            *(
                outcome.runs,
                outcome.lost,
                outcome.doubled,
                outcome.wrong,
                outcome.left,
                len(outcome.failed),
            ),
            *("" if figure is None else f"{figure:.1f}" for figure in (middle, tail)),
        ]
        lines.append(f"| {victim} | {how} | {phase} | " + " | ".join(map(str, figures)) + " |")
    return "\n".join(lines)
