"""Finds the CPythons of this machine that velo supports, and runs its tests with the others.

    python tools/pythons.py                    one line each: version, interpreter
    python tools/pythons.py test -- --fast     pytest with each one but the one that runs this
    python tools/pythons.py test --only 3.13   with that one alone

velo has one build for each version of Python, because it calls parts of CPython that the stable
ABI leaves out. Each gets a virtual environment with a build of its own, in `target/pythons`, which
the next run uses again. The builds are not optimized much: they are quick to make, and tests wait
more than they compute.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["NEWEST", "OLDEST", "pythons"]

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST = (3, 11), (3, 15)


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


def environment(version: str, interpreter: str) -> Path:
    """Build velo and what its tests need for this interpreter; returns the one that has both."""
    folder = ROOT / "target" / "pythons" / version
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([interpreter, "-m", "venv", "--clear", str(folder)], check=True)
    settings = {
        # One folder for all: most of what velo is made of is the same for each Python.
        "CARGO_TARGET_DIR": str(ROOT / "target" / "pythons" / "build"),
        "CARGO_PROFILE_DEV_OPT_LEVEL": "1",
        "CARGO_PROFILE_DEV_DEBUG": "line-tables-only",
    }
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*install, "--no-compile", "--config-settings=build-args=--profile=dev", ".[test]"],
        check=True,
        cwd=ROOT,
        env=os.environ | settings,
    )
    return python


def run_tests(arguments: list[str], only: list[str] | None = None) -> int:
    """Run pytest with every interpreter but this one; returns the first exit code that is not 0."""
    others = pythons()
    del others["{}.{}".format(*sys.version_info)]
    if missing := set(only or ()) - set(others):
        raise SystemExit(f"pythons: no other CPython {', '.join(sorted(missing))}")
    if only:
        others = {version: others[version] for version in only}
    if not others:
        print("pythons: this machine has no other CPython that velo supports: nothing is tested")
    for version, interpreter in others.items():
        print(f"pythons: {version}, {interpreter}", flush=True)
        python = environment(version, interpreter)
        code = subprocess.run([str(python), "-m", "pytest", "--quiet", *arguments], cwd=ROOT)
        if code.returncode != 0:
            return code.returncode
    return 0


def main() -> int:
    """List them, or test."""
    parser = argparse.ArgumentParser(description="The CPythons of this machine.")
    parser.add_argument("what", nargs="?", choices=["list", "test"], default="list")
    parser.add_argument("--only", metavar="VERSION", action="append", help="as in 3.13")
    parser.add_argument("arguments", nargs="*", help="of pytest, behind --")
    options = parser.parse_intermixed_args()
    if options.what == "test":
        return run_tests(options.arguments, options.only)
    for version, interpreter in pythons().items():
        print(version, interpreter)
    return 0


if __name__ == "__main__":
    sys.exit(main())
