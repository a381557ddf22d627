"""Builds wheels for each Python of this machine, checks them, and tries them as a user would.

    python tools/wheels.py [--out dist] [--pythons python3.11 python3.12]

There is one wheel for each version of Python: velo calls parts of CPython that the stable ABI
leaves out. The linker is zig, which links against the symbols of an old glibc, so that a wheel runs
on older systems than the one that builds it. auditwheel reads off the wheel what it needs. Each
wheel is installed into a bare environment, in which `tools/quickstart.py` runs in both modes.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from pythons import pythons

ROOT = Path(__file__).resolve().parent.parent
# The oldest glibc that wheels run with.
GLIBC = "2_17"


def build(interpreters: list[str], out: Path) -> list[Path]:
    """Build a wheel for each interpreter."""
    command = [sys.executable, "-m", "maturin", "build", "--release", "--zig", "--quiet"]
    command += ["--compatibility", f"manylinux_{GLIBC}", "--out", str(out), "--interpreter"]
    # maturin looks for zig in the first `python3` of the path.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = os.environ | {"PATH": path}
    subprocess.run([*command, *interpreters], cwd=ROOT, env=environment, check=True)
    return sorted(out.glob("*.whl"))


def audit(wheel: Path) -> None:
    """Have auditwheel find the oldest system that the wheel runs on; it must be as old as ours."""
    command = [sys.executable, "-m", "auditwheel", "show", str(wheel)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    tag = re.search(r'consistent with\s+the following platform tag:\s+"([^"]+)"', said)
    assert tag is not None, said
    print(f"{wheel.name}: {wheel.stat().st_size >> 10} KiB, {tag[1]}")
    glibc = re.match(r"manylinux_(\d+)_(\d+)_", tag[1])
    assert glibc is not None, said
    assert [int(n) for n in glibc.groups()] <= [int(n) for n in GLIBC.split("_")], said


def attempt(version: str, interpreter: str, wheels: list[Path]) -> None:
    """Install the wheel of this version into a bare environment, and use it there."""
    tag = f"cp{version.replace('.', '')}"
    wheel = next(path for path in wheels if f"-{tag}-" in path.name)
    with tempfile.TemporaryDirectory(prefix="velo-wheel-") as folder:
        if interpreter == sys.executable:
            venv.create(folder, with_pip=True)
        else:
            subprocess.run([interpreter, "-m", "venv", folder], check=True)
        python = Path(folder) / "bin" / "python"
        quiet = ["--quiet", "--disable-pip-version-check"]
        subprocess.run([python, "-m", "pip", "install", *quiet, str(wheel)], check=True)
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        quickstart = ROOT / "tools" / "quickstart.py"
        for command in ([python, quickstart], [python.with_name("velo"), "--version"]):
            subprocess.run(command, check=True, env=clean, cwd=folder)


def main() -> None:
    """Build, check and try."""
    parser = argparse.ArgumentParser(description="Build wheels, check them, and try them.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="default: dist")
    parser.add_argument("--pythons", nargs="*", help="interpreters (default: all that are found)")
    args = parser.parse_args()
    found = pythons()
    if args.pythons:
        asked = {str(Path(shutil.which(name) or name).resolve()) for name in args.pythons}
        found = {key: path for key, path in found.items() if str(Path(path).resolve()) in asked}
    if not found:
        raise SystemExit("wheels: there is no CPython of a supported version")
    print(f"wheels for {', '.join(found)}", flush=True)
    shutil.rmtree(args.out, ignore_errors=True)
    wheels = build(list(found.values()), args.out)
    for wheel in wheels:
        audit(wheel)
    for version, interpreter in found.items():
        attempt(version, interpreter, wheels)


if __name__ == "__main__":
    main()
