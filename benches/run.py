#!/usr/bin/env python
"""The benchmarks that need a checkout, and the commands behind figures of `docs/performance.md`.

    benches/run.py cores                 throughput on every core: velo, its floors and its peers
    benches/run.py against PYTHON        this build and the one of another interpreter, in turn
    benches/run.py shards                moving a shard, and its ticks, in an object store
    benches/run.py rust [NAME] [FILTER]  the criterion benchmarks of ring, doorbell and codec
    benches/run.py codec                 velo's codec and the codecs of others

What each figure means, and which versions it was made with, is in `benches/README.md`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path

from velo.bench import machine
from velo.bench.measure import LIMIT, Figures, Plan, Subject
from velo.bench.scenarios import SCENARIOS

ROOT = Path(__file__).resolve().parents[1]
# The scenarios that keep several cores busy.
CORES = ("throughput", "keyed", "frames", "scaling")
RUST = ("ring", "doorbell", "codec")
# Keys of a shard that moves, and of ticks; ticks; and the bytes of each state.
MOVED, TOUCHED, TICKS, STATE = 100_000, (100, 1_000, 10_000), 50, 100
SHARDS = "`benches/run.py shards`, with the store in a folder"
# The subjects of velo itself. Floors and peers do not change with a build of velo.
VELO = (
    "velo.bench.ours:",
    "velo.bench.ours_keyed:",
    "velo.bench.spinning:",
    "velo.bench.watching:",
)


def main(arguments: list[str] | None = None) -> int:
    """Run the part that the command line names; returns an exit code."""
    options = _parser().parse_args(arguments)
    code: int = options.run(options)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(required=True, metavar="PART")

    part = parts.add_parser("cores", help="throughput on every core, beside floors and peers")
    part.add_argument("--quick", action="store_true", help="one short round: does it work")
    part.add_argument("--format", choices=["table", "markdown", "json"], default="table")
    part.set_defaults(run=_cores)

    part = parts.add_parser("against", help="this build and another one, in turn")
    part.add_argument(
        "python", type=_interpreter, help="an interpreter that has the other build of velo"
    )
    part.add_argument("--scenario", action="append", choices=[*SCENARIOS], help="default: all")
    part.add_argument("--quick", action="store_true", help="one short round: does it work")
    part.set_defaults(run=_against)

    part = parts.add_parser("shards", help="moving a shard, and its ticks, in an object store")
    part.add_argument("--quick", action="store_true", help="one short round: does it work")
    part.set_defaults(run=_shards)

    part = parts.add_parser("rust", help="the criterion benchmarks")
    part.add_argument("name", nargs="?", choices=RUST, help="default: all")
    part.add_argument("filter", nargs="?", help="a regular expression over benchmark names")
    part.set_defaults(run=_rust)

    part = parts.add_parser("codec", help="velo's codec and the codecs of others")
    part.add_argument("--quick", action="store_true", help="one short round: does it work")
    part.add_argument("--format", choices=["table", "markdown", "json"], default="table")
    part.set_defaults(run=_codec)
    return parser


def _interpreter(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise argparse.ArgumentTypeError(f"there is no program `{name}`")
    # Not resolved: the link in a virtual environment is what makes it that environment.
    return os.path.abspath(found)


def _cores(options: argparse.Namespace) -> int:
    return max(_bench(scenario, options) for scenario in CORES)


def _shards(options: argparse.Namespace) -> int:
    """Print rows of the table of `docs/guide/scale-out.md`."""
    plan = Plan(options.quick, frozenset(), _say, _warn)
    keys, touched = plan.scaled(MOVED), [plan.scaled(count) for count in TOUCHED]
    moving = Subject("velo.bench.ours_checkpoint:moving", (keys, STATE, True))
    ticks = {
        f"{count:,}": Subject("velo.bench.ours_checkpoint:uploads", (count, STATE, TICKS, True))
        for count in touched
    }
    figures = plan.in_turn({"moving": moving, **ticks})
    if figures.keys() != {"moving", *ticks}:
        return 1

    def of(subject: str, figure: str) -> str:
        median = statistics.median(each[figure] for each in figures[subject])
        return f"{float(f'{median:.3g}'):,g}"

    def all_of(figure: str) -> str:
        return ", ".join(of(count, figure) for count in ticks)

    print(", ".join(f"{name} {value}" for name, value in machine.describe().items()))
    changed, states = ", ".join(ticks), f"of {STATE} bytes"
    size = of("moving", "KiB")
    print(
        f"| a shard of {keys:,} keys {states} that moves to another machine | "
        f"{of('moving', 's')} s, {of('moving', 'core s')} s of a core, {size} KiB | {SHARDS} |\n"
        f"| upload of a tick in which {changed} keys {states} have changed | {all_of('KiB')} KiB "
        f"| {SHARDS} |\n"
        f"| time of a core for such a tick | {all_of('core ms')} ms | {SHARDS} |"
    )
    return 0


def _codec(options: argparse.Namespace) -> int:
    return _bench("codec", options)


def _bench(scenario: str, options: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "velo", "bench", "--scenario", scenario]
    command += ["--format", options.format, *(["--quick"] if options.quick else [])]
    return subprocess.run(command, check=False).returncode


def _rust(options: argparse.Namespace) -> int:
    for name in RUST if options.name is None else (options.name,):
        chosen = [options.filter] if options.filter else []
        if name == "codec":
            code = _rust_codec(chosen)
        else:
            command = ["cargo", "bench", "-p", "velo-shm", "--bench", name, "--", *chosen]
            code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if code != 0:
            return code
    return 0


def _rust_codec(chosen: list[str]) -> int:
    """Build the benchmark that links the codec, and run it with this interpreter's library."""
    target = ROOT / "target" / "codec-bench"
    command = ["cargo", "build", "--release", "--target-dir", str(target)]
    command += ["--manifest-path", str(ROOT / "benches" / "codec" / "Cargo.toml")]
    # `fuzzing` makes the codec public, and changes nothing else of it.
    flags = {"RUSTFLAGS": "--cfg fuzzing", "PYO3_PYTHON": sys.executable}
    built = subprocess.run(command, env={**os.environ, **flags}, check=False)
    if built.returncode != 0:
        return built.returncode
    paths = sysconfig.get_paths()
    surroundings = {
        **os.environ,
        "LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR") or "",
        "PYTHONHOME": sys.base_prefix,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "python"), paths["purelib"], paths["platlib"]]),
    }
    command = [str(target / "release" / "codec"), "--bench", *chosen]
    return subprocess.run(command, env=surroundings, check=False).returncode


def _say(what: str) -> None:
    print(f"measuring {what}", file=sys.stderr)


def _warn(what: str) -> None:
    print(f"left out: {what}", file=sys.stderr)


def _against(options: argparse.Namespace) -> int:
    print(", ".join(f"{name} {value}" for name, value in machine.describe().items()))
    print("| scenario | subject | figure | this build | the other | ratio | of all rounds |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: |")
    for name in options.scenario or SCENARIOS:
        plan = Against(options.quick, frozenset(), _say, _warn, other=options.python, scenario=name)
        # A scenario without figures makes no rows: `in_turn` prints them as it measures.
        list(SCENARIOS[name](plan))
    return 0


@dataclasses.dataclass(frozen=True)
class Against(Plan):
    """Measures each of velo's own subjects with two interpreters, in turn.

    Attributes:
        other: The interpreter that has the other build.
        scenario: The scenario that the subjects belong to.

    """

    other: str = sys.executable
    scenario: str = ""

    def in_turn(self, subjects: Mapping[str, Subject], *, often: int = 1) -> Figures:
        """Print a row per figure of each subject; returns nothing for the scenario to compare."""
        rounds = 1 if self.quick else self.rounds * often
        for name, subject in subjects.items():
            if not is_velo(subject):
                continue
            try:
                pairs = [self._pair(subject, number) for number in range(rounds)]
            except RuntimeError as error:
                self.warn(f"{self.scenario}: {name}: {error}")
                continue
            for row in rows(pairs):
                print(f"| {self.scenario} | {name} | {' | '.join(row)} |", flush=True)
        return {}

    def _pair(self, subject: Subject, number: int) -> tuple[dict[str, float], dict[str, float]]:
        """Measure both builds once; every other round the other build comes first."""
        self.say(f"{self.scenario}: {subject.where} ({number + 1})")
        if number % 2 == 0:
            here = measure(subject, sys.executable)
            return here, measure(subject, self.other)
        there = measure(subject, self.other)
        return measure(subject, sys.executable), there


def is_velo(subject: Subject) -> bool:
    """Whether velo itself is measured, and no floor, peer or other codec."""
    codec = subject.where.startswith("velo.bench.codec:") and subject.arguments[0] == "velo"
    return codec or subject.where.startswith(VELO)


def measure(subject: Subject, python: str) -> dict[str, float]:
    """Measure a subject with the `velo` of an interpreter.

    Raises:
        RuntimeError: If it fails, or does not end in time.

    """
    command = [python, "-P", "-m", "velo.bench.subject", subject.where]
    command.append(json.dumps(subject.arguments))
    # Away from the checkout, so that each interpreter imports the velo that is installed in it.
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=LIMIT,
                check=False,
                cwd=folder,
                env={**os.environ, **subject.environment},
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"not done after {LIMIT:g} s") from None
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or [str(done.returncode)])[-1])
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def rows(pairs: list[tuple[dict[str, float], dict[str, float]]]) -> list[tuple[str, ...]]:
    """Make the cells of each figure that both builds have: medians, ratio, range of ratios."""
    names = [name for name in pairs[0][0] if all(name in each for pair in pairs for each in pair)]
    found: list[tuple[str, ...]] = []
    for name in names:
        here, there = ([pair[side][name] for pair in pairs] for side in (0, 1))
        ratios = [a / b for a, b in zip(here, there, strict=True) if b]
        if not ratios:
            continue
        found.append(
            (
                name,
                f"{statistics.median(here):,.4g}",
                f"{statistics.median(there):,.4g}",
                f"{statistics.median(ratios):.3f}",
                f"{min(ratios):.3f} to {max(ratios):.3f}",
            )
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
