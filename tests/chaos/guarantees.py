"""What a checkpoint promises for each pair of source and sink, and what kills have shown of it.

    python tests/chaos/guarantees.py --kills 60

kills the program of each pair so often, keeps the figures in `docs/reliability/checkpoints.json`,
and makes the tables of `docs/reliability/checkpoints.md` from them. `--pair kafka-kafka` does
that for one pair and keeps the figures of the others; `--kills 0` only makes the tables.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "python" / "support"))

from ends import SINKS, SOURCES, Servers  # noqa: E402
from survival import PAIRS, survive  # noqa: E402

__all__ = ["JSON", "PAGE", "cells", "tables"]

JSON = ROOT / "docs" / "reliability" / "checkpoints.json"
PAGE = JSON.with_suffix(".md")
BEGIN, END = "<!-- tables of guarantees.py -->\n\n", "\n<!-- end of the tables -->"

# In which mode the program is hit how, and which share of the hits that is.
_SHARES = {
    ("inline", "step"): 0.3,
    ("inline", "instant"): 0.2,
    ("inline", "stop"): 0.05,
    ("process", "step"): 0.2,
    ("process", "instant"): 0.1,
    ("process", "stop"): 0.05,
    ("process", "worker"): 0.1,
}
# A server takes longer to start again than all the others: one kill in so many hits it.
_PER_SERVER_KILL = 30
_SERVERS = {"kafka", "postgres"}
_WHAT = {
    "step": "the program, at steps of a tick",
    "instant": "the program, at any time",
    "stop": "the program, by SIGTERM",
    "worker": "a worker",
    "server": "the server",
}
_JOURNAL = " and of the journal"
_TEST = "tests/chaos/test_survival.py"


def cells(pair, kills):
    """How often a pair is hit: `{(mode, how): kills}`."""
    found = {cell: max(round(kills * share), 1) for cell, share in _SHARES.items()}
    if _SERVERS & {pair.source, pair.sink}:
        found["inline", "server"] = max(kills // _PER_SERVER_KILL, 1)
    return found


def measure(pair, kills, servers, seed):
    """Hit a pair; its figures by cell."""
    found = {}
    for (mode, how), count in cells(pair, kills).items():
        began = time.monotonic()
        outcome = survive(pair, mode, how, count, servers, seed)
        took = time.monotonic() - began
        print(f"{pair.name}, {mode}, {how}: {took:.0f} s", *outcome.failed, file=sys.stderr)
        figures = dataclasses.asdict(outcome)
        del figures["pauses"], figures["hits"]
        figures["failed"] = len(outcome.failed)
        found[f"{mode}, {how}"] = figures
    return found


def tables(figures):
    """The tables of the page, as Markdown."""
    lines = [
        "| source | sink | state | results | kills | lost | doubled | wrong | left | test |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, found in figures.items():
        pair = PAIRS[name]
        total = {key: sum(cell.get(key, 0) for cell in found.values()) for key in _KEYS}
        counts = (*_lost_and_doubled(pair, total), total["wrong"] + total["failed"], total["left"])
        lines.append(
            f"| {_titles(pair, ' | ')} | exactly once | {pair.results} "
            f"| {total['runs']} | {' | '.join(map(str, counts))} | `[{name}]` |"
        )
    lines += ["", "| source and sink | mode | hit | kills | lost | doubled | wrong | left |"]
    lines.append("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for name, found in figures.items():
        pair = PAIRS[name]
        for cell, figure in found.items():
            mode, _, how = cell.partition(", ")
            counts = (figure["runs"], *_lost_and_doubled(pair, figure))
            wrong = figure["wrong"] + figure["failed"]
            what = _WHAT[how] + (_JOURNAL if how == "step" and pair.journal else "")
            lines.append(
                f"| {_titles(pair, ' → ')} | {mode} | {what} "
                f"| {' | '.join(map(str, counts))} | {wrong} | {figure['left']} |"
            )
    return "\n".join(lines) + "\n"


def _lost_and_doubled(pair, figure):
    """What was lost and doubled, and what nobody has promised to keep."""
    lost, doubled = figure["lost"], figure["doubled"]
    if pair.forgets:
        lost = f"{lost}; {figure['gone']:,} on their way"
    if pair.again:
        doubled = f"{doubled}; {figure['again']:,} delivered again"
    elif not pair.exact:
        doubled = f"{figure['again']:,} again"
    return lost, doubled


def _titles(pair, between):
    where = ", the checkpoint in an object store" if pair.remote else ""
    return f"{SOURCES[pair.source].title}{between}{SINKS[pair.sink].title}{where}"


_KEYS = ("runs", "lost", "doubled", "wrong", "left", "failed", "again", "gone")


def paged(text, figures):
    """The page with the tables of these figures."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{tables(figures)}{END}{after}"


def main():
    """Hit pairs, and make the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--pair", action="append", choices=PAIRS)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    figures = json.loads(JSON.read_text()) if JSON.exists() else {}
    with tempfile.TemporaryDirectory(prefix="velo-servers-") as folder:
        servers = Servers(Path(folder))
        try:
            for name in options.pair or PAIRS if options.kills else ():
                figures[name] = measure(PAIRS[name], options.kills, servers, options.seed)
                JSON.write_text(json.dumps(figures, indent=2) + "\n")
        finally:
            servers.stop()
    figures = {name: figures[name] for name in PAIRS if name in figures}
    JSON.write_text(json.dumps(figures, indent=2) + "\n")
    PAGE.write_text(paged(PAGE.read_text(), figures))
    print(tables(figures))


if __name__ == "__main__":
    main()
