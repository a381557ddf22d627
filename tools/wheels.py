"""Builds wheels for each Python of this machine, checks them, and tries them as a user would.

    python tools/wheels.py [--out dist] [--pythons 3.11 3.12]
    python tools/wheels.py --targets x86_64-unknown-linux-musl aarch64-unknown-linux-gnu

There is one wheel for each version of Python: velo calls parts of CPython that the stable ABI
leaves out. The linker is zig, which links against the symbols of an old glibc, so that a wheel runs
on older systems than the one that builds it. auditwheel reads off the wheel what it needs. Each
wheel of this machine's own target is installed into a bare environment, in which
`tools/quickstart.py` runs in both modes. Those of other targets (`rustup target add`) are built and
checked. `--sdist` builds the source distribution too, and tries that in the same way.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

from pythons import pythons

ROOT = Path(__file__).resolve().parent.parent
MATURIN = [sys.executable, "-m", "maturin"]
# The oldest C libraries that wheels run with.
GLIBC, MUSL = "manylinux_2_17", "musllinux_1_2"


def build(interpreters: list[str], target: str, out: Path) -> list[Path]:
    """Build a wheel for each interpreter; returns them."""
    command = [*MATURIN, "build", "--release", "--zig", "--quiet", "--target", target]
    command += ["--compatibility", oldest(target), "--out", str(out), "--interpreter"]
    # maturin looks for zig in the first `python3` of the path.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = os.environ | {"PATH": path}
    before = set(out.glob("*.whl"))
    subprocess.run([*command, *interpreters], cwd=ROOT, env=environment, check=True)
    return sorted(set(out.glob("*.whl")) - before)


def oldest(target: str) -> str:
    """Return the oldest system that wheels of a target run on, as in the names of wheels."""
    return MUSL if target.endswith("-musl") else GLIBC


def audit(wheel: Path, target: str) -> None:
    """Have auditwheel find the oldest system that the wheel runs on; it must be as old as ours."""
    command = [sys.executable, "-m", "auditwheel", "show", "--json", str(wheel)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = json.loads(said)
    tag = found["overall_tag"]
    if target.endswith("-musl"):
        # zig links musl by the name that musl has for itself; auditwheel knows the one that Alpine
        # gives it. The loader of musl takes itself for every `libc.*`.
        ours = f"{MUSL}_{target.partition('-')[0]}"
        if found["policy_upgrades"].get(ours) == {"libs_to_eliminate": ["libc.so"]}:
            tag = ours
    print(f"{wheel.name}: {wheel.stat().st_size >> 10} KiB, {tag}", flush=True)
    wanted, oldest_of = (
        re.match(r"(\w+?linux)_(\d+)_(\d+)", name) for name in (oldest(target), tag)
    )
    assert wanted is not None
    assert oldest_of is not None, said
    assert oldest_of[1] == wanted[1], said
    assert [int(n) for n in oldest_of.groups()[1:]] <= [int(n) for n in wanted.groups()[1:]], said


def attempt(interpreter: str, package: Path) -> None:
    """Install a wheel or a source distribution into a bare environment, and use it there."""
    with tempfile.TemporaryDirectory(prefix="velo-wheel-") as folder:
        if interpreter == sys.executable:
            venv.create(folder, with_pip=True)
        else:
            subprocess.run([interpreter, "-m", "venv", folder], check=True)
        python = Path(folder) / "bin" / "python"
        quiet = ["--quiet", "--disable-pip-version-check"]
        subprocess.run([python, "-m", "pip", "install", *quiet, str(package)], check=True)
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        quickstart = ROOT / "tools" / "quickstart.py"
        for command in ([python, quickstart], [python.with_name("velo"), "--version"]):
            subprocess.run(command, check=True, env=clean, cwd=folder)


def sdist(out: Path) -> Path:
    """Build the source distribution."""
    subprocess.run([*MATURIN, "sdist", "--out", str(out)], cwd=ROOT, check=True)
    (made,) = out.glob("*.tar.gz")
    return made


def needs() -> list[str]:
    """Return what this file needs, as pip takes it: the extra `wheels`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: list[str] = project["optional-dependencies"]["wheels"]
    return found


def own_target() -> str:
    """Return the target of this machine."""
    said = subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=True).stdout
    return next(line.split()[1] for line in said.splitlines() if line.startswith("host:"))


def main() -> None:
    """Build, check and try."""
    parser = argparse.ArgumentParser(description="Build wheels, check them, and try them.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="default: dist")
    parser.add_argument("--pythons", nargs="*", help="versions, as 3.12 (default: all found)")
    parser.add_argument("--targets", nargs="*", help="of Rust (default: this machine's own)")
    parser.add_argument("--sdist", action="store_true", help="the source distribution, too")
    parser.add_argument("--needs", action="store_true", help="say what has to be installed for it")
    args = parser.parse_args()
    if args.needs:
        print(*needs())
        return
    found = pythons()
    if args.pythons:
        # A name on the path may be a script of pyenv's, so that versions are compared.
        asked = [name.removeprefix("python") for name in args.pythons]
        if missing := [version for version in asked if version not in found]:
            raise SystemExit(f"wheels: there is no CPython {', '.join(missing)}")
        found = {version: found[version] for version in asked}
    if not found:
        raise SystemExit("wheels: there is no CPython of a supported version")
    print(f"wheels for {', '.join(found)}", flush=True)
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    own = own_target()
    for target in args.targets or [own]:
        # This machine has no Python of another target: maturin knows those by their versions.
        names = found.values() if target == own else [f"python{version}" for version in found]
        wheels = build(list(names), target, args.out)
        for wheel in wheels:
            audit(wheel, target)
        for version, interpreter in found.items() if target == own else ():
            tag = f"-cp{version.replace('.', '')}-"
            attempt(interpreter, next(wheel for wheel in wheels if tag in wheel.name))
    if args.sdist:
        made = sdist(args.out)
        print(made.name, flush=True)
        attempt(next(iter(found.values())), made)


if __name__ == "__main__":
    main()
