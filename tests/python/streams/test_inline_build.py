"""Without process mode, as builds for macOS and Windows are.

`make test-inline` runs the tests of both modes against such a build. Here, the Python files meet a
system that lacks what only Linux has.
"""

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import velo
from helpers import HANG, NO_SLOW_STEPS, environment, run_script, write_script

# What neither macOS nor Windows has, and what Windows lacks besides.
LINUX = """
    import os, signal, sys
    for name in ("eventfd", "eventfd_read", "eventfd_write", "memfd_create", "pidfd_open", "pipe2",
                 "sched_getaffinity", "posix_fallocate"):
        delattr(os, name)
"""
POSIX = """
    for name in ("fork", "register_at_fork", "geteuid", "O_NOFOLLOW", "O_CLOEXEC"):
        delattr(os, name)
    del signal.SIGKILL, signal.SIGPIPE
    sys.modules |= dict.fromkeys(("fcntl", "resource", "termios", "tty", "pwd", "grp"))
"""
WITHOUT = """
    import velo
    velo._core.PROCESS_MODE = False
"""
EVERY_KIND = """
    import asyncio
    import glob
    from velo import connect, stream_fn

    @stream_fn(record="recordings")
    async def total(numbers):
        sum = 0
        async for number in numbers:
            sum += number
            yield sum

    async def main(folder):
        print(await total.run([1, 2]), total.run_sync.__name__)
        async with total.open() as stream:
            await stream.send(3)
            print(await stream.recv())
            print([sum async for sum in stream.feed([4, 5])])
        async with total.open(key="a") as stream:
            await stream.send(6)
            print(await stream.recv())
        print(sorted([pair async for pair in total.keyed([1, 2, 3], key=lambda n: n % 2)]))
        async with total.keys() as keys:
            print(await keys.request("b", 7))
        with open("numbers.ndjson", "w") as file:
            file.write("1\\n2\\n")
        print([sum async for sum in total.over(connect.file("numbers.ndjson"))])
        try:
            await total.options(mode="process").run([1])
        except velo.errors.PoolError as error:
            print(error)

    import velo.errors
    asyncio.run(main("."))
    print(total.run_sync([8]), len(glob.glob("recordings/*")) > 0)
"""
SAID = """\
[1, 3] run_sync
3
[7, 12]
6
[(0, 2), (1, 1), (1, 4)]
[7]
[1, 3]
"""


@pytest.mark.parametrize("system", [LINUX, LINUX + POSIX], ids=["macOS", "Windows"])
def test_every_kind_of_inline_stream_runs_and_process_mode_says_what_it_needs(
    tmp_path, monkeypatch, system
):
    monkeypatch.chdir(tmp_path)
    text, flags = system + WITHOUT + EVERY_KIND, ["-W", NO_SLOW_STEPS]
    code, said, errors = run_script(tmp_path, text, flags=flags)
    assert (code, errors) == (0, "")
    assert said.startswith(SAID)
    told, last = said.removeprefix(SAID).splitlines()
    assert "no process mode: it needs Linux" in told
    assert 'mode="inline"' in told
    assert last == "[8] True"


RUN = """
    import sys
    from velo.cli import main
    sys.argv[0] = "velo"
    main()
"""


def command(folder, *args):
    """`velo` without process mode and without what only Linux has."""
    path = write_script(folder, LINUX + WITHOUT + RUN)
    return subprocess.run(
        [sys.executable, path, *map(str, args)],
        capture_output=True,
        text=True,
        env=environment(PYTHONHASHSEED="0"),
        timeout=HANG,
        cwd=folder,
    )


def test_the_command_runs_functions_inline(tmp_path):
    (tmp_path / "program.py").write_text(
        "import velo\n\n\n@velo.stream_fn\nasync def double(ns):\n    async for n in ns:\n"
        "        yield 2 * n\n"
    )
    (tmp_path / "in.ndjson").write_text("1\n2\n")
    run = command(tmp_path, "run", "program.py:double", "--input", "in.ndjson", "--mode", "inline")
    assert (run.returncode, run.stdout) == (0, "2\n4\n")
    run = command(tmp_path, "run", "program.py:double", "--input", "in.ndjson", "--mode", "process")
    assert run.returncode == 1
    assert "no process mode" in run.stderr
    assert "Traceback" not in run.stderr


def test_the_command_says_what_needs_process_mode(tmp_path):
    for name in ("top", "status", "inspect", "supervisor"):
        run = command(tmp_path, name, "--anything", "x")
        assert run.returncode == 1
        assert f"`velo {name}` is about process mode" in run.stderr
    run = command(tmp_path, "bench", "--scenario", "latency")
    assert run.returncode == 1
    assert "`latency` measures worker processes" in run.stderr


def test_the_doctor_looks_at_inline_mode(tmp_path):
    run = command(tmp_path, "doctor")
    assert run.returncode == 0, run.stderr
    for found in ("inline; this build has no process mode", "one event there and back"):
        assert found in " ".join(run.stdout.split())


# Importing velo beside another package of that name.


def copied(folder, without="_core.*so"):
    """A copy of the package in a folder of its own, without its compiled half."""
    return shutil.copytree(
        Path(velo.__file__).parent, folder / "velo", ignore=shutil.ignore_patterns(without)
    )


def import_from(folder):
    """What `import velo` says there."""
    run = subprocess.run(
        [sys.executable, "-c", "import velo"],
        capture_output=True,
        text=True,
        env=environment(PYTHONPATH=str(folder)),
        timeout=HANG,
    )
    assert run.returncode == 1
    return run.stderr.splitlines()[-1]


def installed(folder, name):
    """The trace that pip leaves of a distribution with a package `velo`."""
    info = folder / f"{name}-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.0\n")
    (info / "top_level.txt").write_text("velo\n")
    (info / "RECORD").write_text("velo/__init__.py,,\n")


def test_without_the_compiled_half_the_import_says_so(tmp_path):
    copied(tmp_path)
    said = import_from(tmp_path)
    assert said.startswith("ImportError: velo cannot load its compiled half")
    assert "there is no `_core` in" in said
    assert "pip install --force-reinstall velo-stream" in said


def test_a_compiled_half_for_another_python_is_named(tmp_path):
    (copied(tmp_path) / "_core.cpython-38-x86_64-linux-gnu.so").touch()
    said = import_from(tmp_path)
    assert "`_core.cpython-38-x86_64-linux-gnu.so`" in said
    assert "is for another Python than this one" in said


def test_a_compiled_half_of_something_else_is_named(tmp_path):
    (copied(tmp_path) / "_core.py").write_text("")
    assert "`_core.py` in" in (said := import_from(tmp_path))
    assert "for another Python" in said


def test_another_package_that_owns_the_name_is_named(tmp_path):
    copied(tmp_path)
    installed(tmp_path, "velo")
    assert "the package `velo` is installed as `velo`, too" in import_from(tmp_path)


def test_the_command_names_the_package_that_is_imported_in_place_of_velo(tmp_path):
    (copied(tmp_path, without="py.typed") / "__init__.py").write_text("")
    installed(tmp_path, "velo")
    run = subprocess.run(
        [sys.executable, "-c", "from velo.cli import main; main()"],
        capture_output=True,
        text=True,
        env=environment(PYTHONPATH=str(tmp_path)),
        timeout=HANG,
    )
    assert run.returncode == 1
    assert "`import velo` finds another package: the package `velo`" in run.stderr


def test_the_doctor_names_the_package_that_has_the_name_too(tmp_path, monkeypatch):
    from velo.cli.doctor import owners
    from velo.cli.doctor.check import FAIL, OK

    assert owners.package().verdict == OK
    installed(tmp_path, "velo")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = owners.package()
    assert found.verdict == FAIL
    assert "`velo` has files" in found.found
    assert "pip uninstall velo" in found.advice


def test_there_is_one_version():
    assert velo.__version__ == importlib.metadata.version("velo-stream")


def test_no_later_python_is_refused():
    wanted = importlib.metadata.metadata("velo-stream")["Requires-Python"]
    assert wanted == ">=3.11"
