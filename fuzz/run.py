"""Builds the fuzz targets and runs each for a bounded time: `python fuzz/run.py --help`.

The layout is cargo-fuzz's, and `cargo fuzz run TARGET` works if cargo-fuzz and a nightly toolchain
are installed. This script needs neither: all flags are stable except the one for the
sanitizer, and the sanitizer's runtime comes with the stable toolchain.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGETS = ("codec", "control", "link", "pool", "protocol", "ring")

# The flags of cargo-fuzz.
COVERAGE = (
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "--cfg=fuzzing",
)

# The longest input: longer ones reach no new code, and short ones run more often.
MAX_LEN = {
    "codec": 1024,
    "control": 256,
    "link": 1024,
    "pool": 2048,
    "protocol": 1024,
    "ring": 2048,
}


def main() -> int:
    """Build, run and report; the exit code is 1 after a finding."""
    args = parse()
    binaries = build(args.sanitizer)
    if args.seeds:
        run_seeds(binaries)
        return 0
    print(
        f"{len(args.targets)} targets, {args.seconds} s each, sanitizer: {args.sanitizer}",
        flush=True,
    )
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = pool.map(lambda target: fuzz(binaries, target, args), args.targets)
        found = [target for target, clean in zip(args.targets, runs, strict=True) if not clean]
    if found:
        print(f"found something: {', '.join(found)}", file=sys.stderr)
    return 1 if found else 0


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Fuzz the readers of other processes' bytes.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=int, default=20, help="for each target (default: 20)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="targets at a time")
    parser.add_argument(
        "--sanitizer", choices=("address", "none"), default="address", help="default: address"
    )
    parser.add_argument("--corpus", type=Path, help="folder that keeps new inputs (default: none)")
    parser.add_argument("--seeds", action="store_true", help="only rewrite the corpora")
    args = parser.parse_args()
    if unknown := set(args.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    args.targets = args.targets or list(TARGETS)
    return args


def follow_dependencies() -> None:
    """Give the library in `fuzz/velo-py` the dependencies that the extension module has."""
    whole = tomllib.loads((HERE.parent / "Cargo.toml").read_text())["workspace"]["dependencies"]
    module = tomllib.loads((HERE.parent / "velo-py" / "Cargo.toml").read_text())
    lines = []
    linux = module["target"]['cfg(target_os = "linux")']["dependencies"]
    for name, wanted in (module["dependencies"] | linux).items():
        wanted = {"version": wanted} if isinstance(wanted, str) else dict(wanted)
        wanted.pop("optional", None)
        if wanted.pop("workspace", False):
            common = whole[name]
            wanted = ({"version": common} if isinstance(common, str) else dict(common)) | wanted
        if "path" in wanted:
            wanted["path"] = f"../../{wanted['path']}"
        fields = ", ".join(f"{key} = {json.dumps(value)}" for key, value in wanted.items())
        lines.append(f"{name} = {{ {fields} }}\n")
    manifest = HERE / "velo-py" / "Cargo.toml"
    text = manifest.read_text()
    head, _, rest = text.partition("[dependencies]\n")
    following = rest[rest.index("\n[") :]
    if (new := f"{head}[dependencies]\n{''.join(lines)}{following}") != text:
        manifest.write_text(new)


def build(sanitizer: str) -> Path:
    """Build all targets; returns their folder."""
    follow_dependencies()
    version = subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=True).stdout
    host = re.search(r"^host: (.+)$", version, re.MULTILINE)
    assert host is not None, version
    flags = list(COVERAGE)
    if sanitizer != "none":
        flags.append(f"-Zsanitizer={sanitizer}")
    env = {
        **os.environ,
        "RUSTFLAGS": " ".join(flags),
        "RUSTC_BOOTSTRAP": "1",  # for `-Zsanitizer`, on a stable toolchain
        "PYO3_PYTHON": sys.executable,
    }
    folder = HERE / "target" / sanitizer
    # With an explicit target, cargo builds build scripts without these flags.
    command = ["cargo", "build", "--quiet", "--release", "--bins"]
    command += ["--manifest-path", str(HERE / "Cargo.toml")]
    command += ["--target", host[1], "--target-dir", str(folder)]
    subprocess.run(command, env=env, check=True)
    return folder / host[1] / "release"


def environment() -> dict[str, str]:
    """Return the environment of a target, with the paths of Python's library and packages."""
    paths = sysconfig.get_paths()
    return {
        **os.environ,
        "LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR") or "",
        "PYTHONHOME": sys.base_prefix,
        "PYTHONPATH": os.pathsep.join(
            [str(HERE.parent / "python"), paths["purelib"], paths["platlib"]]
        ),
        # Python's own allocator would hide allocations from the sanitizer.
        "PYTHONMALLOC": "malloc",
        "OPENBLAS_NUM_THREADS": "1",
        # An interpreter frees little of its memory at its end.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1",
    }


def run_seeds(binaries: Path) -> None:
    """Write the corpora of the repository."""
    subprocess.run([binaries / "seeds"], env=environment(), check=True)


def fuzz(binaries: Path, target: str, args: argparse.Namespace) -> bool:
    """Run one target for its time; True if nothing was found."""
    artifacts = HERE / "artifacts" / target
    artifacts.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="velo-fuzz-") as scratch:
        new = (args.corpus / target) if args.corpus else Path(scratch) / "corpus"
        new.mkdir(parents=True, exist_ok=True)
        command = [
            binaries / target,
            f"-max_total_time={args.seconds}",
            f"-max_len={MAX_LEN[target]}",
            "-timeout=20",
            "-rss_limit_mb=4096",
            "-print_final_stats=1",
            f"-artifact_prefix={artifacts}/",
            new,
            *([seeds] if (seeds := HERE / "corpus" / target).is_dir() else []),
        ]
        began = time.monotonic()
        log = Path(scratch) / "log"
        with log.open("w") as output:
            ran = subprocess.run(command, env=environment(), stdout=output, stderr=output)
        text = log.read_text(errors="replace")
        if ran.returncode != 0:
            kept = artifacts / "log"
            shutil.copy(log, kept)
            print(f"{target}: FOUND SOMETHING (exit code {ran.returncode}), see {kept}")
            print(text[-4000:], flush=True)
            return False
    executed = re.search(r"stat::number_of_executed_units:\s*(\d+)", text)
    covered = re.findall(r"cov: (\d+)", text)
    inputs = int(executed[1]) if executed else 0
    edges = covered[-1] if covered else "?"
    seconds = time.monotonic() - began
    print(
        f"{target:9} {inputs:>12,} inputs in {seconds:.0f} s, {edges} edges, nothing found",
        flush=True,
    )
    return True


if __name__ == "__main__":
    sys.exit(main())
