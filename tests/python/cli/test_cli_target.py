"""Finding the function: what is wrong is said in words that help."""

import click
import pytest

from velo.cli.command import velo as root

THERE_ARE = "there are: `echo`, `sums`, `inverse`, `first`, `odd`"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nope.py:f", "no such file: `nope.py`"),
        ("./nope.py:f", "no such file: `./nope.py`"),
        ("nope:f", "no module `nope` here or among what is installed"),
        ("fns.nope:f", "no module `fns.nope`"),
        ("fns.py:nope", f"no function `nope` in `fns.py`; {THERE_ARE}"),
        ("fns:nope", f"no function `nope` in `fns`; {THERE_ARE}"),
        ("fns.py", f"name a function, as `fns.py:FUNCTION`; {THERE_ARE}"),
        ("fns.py:", f"name a function, as `fns.py:FUNCTION`; {THERE_ARE}"),
        ("fns:undecorated", "is not a stream function; decorate it with `@stream_fn`"),
        ("fns:number", f"`number` in `fns` is not a stream function; {THERE_ARE}"),
        ("empty.py:f", "no function `f` in `empty.py`; there is no stream function in it"),
        ("json.py:f", "`json.py` has the name of another module, `json`; rename the file"),
        ("odd-name.py:f", "`odd-name.py` cannot be imported"),
    ],
)
def test_wrong_targets(velo, target, message):
    for name in ("empty.py", "odd-name.py", "in.ndjson"):
        velo.file(name, "")
    if target.startswith("json"):
        # Only here: in the working directory it would take the place of the real one.
        (velo.folder / "sub").mkdir()
        velo.file("sub/json.py", "")
        target, message = f"sub/{target}", message.replace("json.py", "sub/json.py")
    done = velo("run", target, "-i", "in.ndjson", "-o", "out.ndjson")
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "Traceback" not in done.err
    assert not (velo.folder / "out.ndjson").exists()


def test_a_module_that_fails(velo):
    velo.file("broken.py", "import fns\n\n1 / 0\n")
    done = velo("run", "broken.py:f", "-i", "-")
    assert done.code == 1
    assert "importing `broken.py` failed" in done.err
    assert 'broken.py", line 3' in done.err
    assert "importlib" not in done.err


@pytest.mark.parametrize(
    ("start", "what"),
    [
        ("asyncio.run(main())", "an event loop"),
        ("asyncio.new_event_loop().run_until_complete(main())", "an event loop"),
        ("print(kept.run_sync([1]))", "a stream"),
    ],
)
def test_a_program_that_runs_as_workers_import_it(velo, start, what):
    velo.file(
        "program.py",
        "import asyncio\n"
        "from velo import stream_fn\n"
        '@stream_fn(mode="process")\n'
        "async def kept(events):\n"
        "    async for event in events:\n"
        "        yield event\n"
        "async def main():\n"
        "    print(await kept.run([1]))\n"
        f"{start}\n",
    )
    done = velo("run", "program.py:kept", "-i", "-", stdin=b"1\n")
    assert done.code == 1
    assert f"importing `program.py` failed: module `program` runs {what} as it is" in done.err
    assert 'below `if __name__ == "__main__":`' in done.err
    assert "Traceback" not in done.err
    assert "never awaited" not in done.err


def test_a_file_in_a_package(velo, mode):
    package = velo.folder / "shop" / "funnel"
    package.mkdir(parents=True)
    for name in ("shop/__init__.py", "shop/funnel/__init__.py"):
        velo.file(name, "")
    velo.file("shop/prices.py", "FACTOR = 3\n")
    velo.file(
        "shop/funnel/steps.py",
        "from velo import stream_fn\n"
        "from ..prices import FACTOR\n"
        "@stream_fn\n"
        "async def times(events):\n"
        "    async for event in events:\n"
        "        yield event * FACTOR\n",
    )
    for target in ("shop/funnel/steps.py:times", "shop.funnel.steps:times"):
        done = velo("run", target, "-i", "-", "--mode", mode, stdin=b"1\n2\n")
        assert (done.code, done.results) == (0, [3, 6])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "missing option '-i' / '--input'"),
        (("-i", "-", "--workers", "0"), "invalid value for '--workers'"),
        (("-i", "-", "--workers", "2"), "`--workers` is for process mode: add `--mode process`"),
        (("-i", "-", "--mode", "threads"), "invalid value for '--mode'"),
        (("-i", "-", "--timeout", "0"), "invalid value for '--timeout'"),
        (("-i", "-", "--nope"), "no such option"),
        (("-i", "-", "-o", "no/such/folder"), "cannot write `no/such/folder`: no such file"),
    ],
)
def test_wrong_options(velo, options, message):
    done = velo("run", "fns:echo", *options)
    assert done.code == 2
    assert f"velo: {message}" in done.err
    assert "try `velo run --help`" in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("rnu",), "no such command 'rnu'. Did you mean 'run'?\ntry `velo --help`"),
        (("zzz",), "no such command 'zzz'.\n"),
        (("--", "--zzz"), "no such option"),
    ],
)
def test_a_command_that_there_is_not(velo, words, message):
    done = velo(*words)
    assert (done.code, done.out) == (2, "")
    assert f"velo: {message}" in done.err


def test_version_and_help(velo):
    from velo import __version__

    assert velo("--version").out == f"velo {__version__}\n"
    assert "run" in velo("--help").out
    for command in ("run", "record"):
        said = velo(command, "--help").out
        assert f"\n    velo {command} flights.py:turnarounds -i flights.csv" in said
        assert "\\b" not in said
    assert "--max-concurrent" in velo("run", "--help").out
    done = velo()
    assert (done.code, "Usage: velo" in done.out) == (2, True)


def helps(one, context):
    """Give the name and the help of a command and of all below it, for 80 columns."""
    yield context.command_path, one.get_help(context)
    if isinstance(one, click.Group):
        for name in one.list_commands(context):
            below = one.get_command(context, name)
            yield from helps(below, click.Context(below, context, name, terminal_width=80))


def test_help_fits_a_terminal_of_80_columns():
    said = dict(helps(root, click.Context(root, info_name="velo", terminal_width=80)))
    assert {"velo run", "velo checkpoint get"} <= set(said)
    lines = [(name, line) for name, text in said.items() for line in text.splitlines()]
    assert [(name, line) for name, line in lines if len(line) > 80] == []


def test_nothing_else_imports_click_or_rich(velo):
    velo.file(
        "fns2.py",
        "import sys\nimport velo\nassert not {'click', 'rich', 'orjson'} & set(sys.modules)\n"
        "f = velo.stream_fn\n",
    )
    import subprocess
    import sys

    from helpers import environment

    subprocess.run([sys.executable, velo.folder / "fns2.py"], check=True, env=environment())
