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

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST = (3, 11), (3, 15)
# The oldest glibc that wheels run with.
GLIBC = "2_17"


def pythons() -> dict[str, str]:
    """Return an interpreter of each version that velo supports: those on the path, and pyenv's."""
    names = [f"python3.{minor}" for minor in range(OLDEST[1], NEWEST[1] + 1)]
    found = [path for name in names if (path := shutil.which(name))]
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found += [str(path) for path in sorted(root.glob("versions/3.*/bin/python"))]
    versions: dict[str, str] = {}
    for path in [sys.executable, *found]:
        shown = "import sys; print('%d.%d' % sys.version_info[:2], sys.implementation.name)"
        asked = subprocess.run([path, "-c", shown], capture_output=True, text=True)
        if asked.returncode != 0:
            continue  # pyenv leaves a file for each version, whether it is chosen or not
        version, name = asked.stdout.split()
        if name == "cpython" and OLDEST <= tuple(map(int, version.split("."))) <= NEWEST:
            versions.setdefault(version, path)
    return dict(sorted(versions.items(), key=lambda item: [int(n) for n in item[0].split(".")]))


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
