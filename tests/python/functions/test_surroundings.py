"""Modules, folder and environment in a worker are those of the program."""

import os
import subprocess
import sys

import pytest

from helpers import NO_SLOW_STEPS, environment, run_script, write_script
from standalone import Daemon


@pytest.mark.every_backend
def test_modules_are_found_in_the_programs_order(tmp_path, mode):
    """Its folder, and what it puts first, come before the standard library and packages."""
    (tmp_path / "calendar.py").write_text("WHO = 'mine'\n")
    vendored = tmp_path / "vendor" / "psutil"
    vendored.mkdir(parents=True)
    (vendored / "__init__.py").write_text("WHO = 'vendored'\n")
    (tmp_path / "orders.py").write_text(
        """
import calendar, psutil
from velo import stream_fn

@stream_fn
async def who(events):
    async for _ in events:
        import xdrlib
        yield calendar.WHO, psutil.WHO, xdrlib.WHO
"""
    )
    (tmp_path / "xdrlib.py").write_text("WHO = 'late'\n")
    code, output, errors = run_script(
        tmp_path,
        f"""
        import os, sys
        sys.path.insert(0, os.path.join(os.path.dirname(__file__), "vendor"))
        from orders import who
        print(who.options(mode={mode!r}).run_sync([1]))
        """,
    )
    assert (code, output) == (0, "[('mine', 'vendored', 'late')]\n"), errors


@pytest.mark.every_backend
@pytest.mark.parametrize("entry", ["path", "bytes", "relative", "missing", "twice", "none"])
def test_odd_entries_of_sys_path(tmp_path, mode, entry):
    """What Python ignores does no harm, and what it takes is taken."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / f"odd_{entry}.py").write_text("X = 1\n")
    code, output, errors = run_script(
        tmp_path,
        f"""
        import os, pathlib, sys
        os.chdir({str(tmp_path)!r})
        entries = dict(
            path=pathlib.Path("lib"), bytes=b"lib", relative="lib", missing="/no/where",
            twice=sys.path[0], none=None,
        )
        sys.path.append(entries[{entry!r}])
        from velo import stream_fn

        @stream_fn(mode={mode!r})
        async def tries(events):
            async for _ in events:
                try:
                    import odd_{entry}
                    yield odd_{entry}.X
                except ImportError:
                    yield None

        print(tries.run_sync([1]))
        """,
    )
    assert (code, output) == (0, f"[{1 if entry == 'relative' else None}]\n"), errors


@pytest.mark.every_backend
def test_a_folder_whose_name_is_no_text(tmp_path, mode):
    folder = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    os.mkdir(folder)
    with open(os.path.join(folder, b"latin.py"), "w") as file:
        file.write("X = 5\n")
    text = f"""
        import os, sys
        from velo import stream_fn

        @stream_fn(mode={mode!r}, preload=["latin"])
        async def reads(events):
            import latin
            async for _ in events:
                yield latin.X

        import latin
        print(reads.run_sync([1]))
    """
    script = write_script(tmp_path, text)
    target = os.path.join(folder, b"script.py")
    os.rename(script, target)
    command = [sys.executable, "-W", NO_SLOW_STEPS, target]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[5]\n", "")


@pytest.mark.embedded
def test_folder_environment_and_arguments_are_those_of_now(tmp_path, mode):
    """Not those of when the worker started. What is taken away is gone."""
    code, output, errors = run_script(
        tmp_path,
        f"""
        import os, sys
        os.environ["BEFORE"] = "b"
        from velo import stream_fn

        @stream_fn
        async def see(events):
            async for _ in events:
                names = ("TOKEN", "BEFORE", "GONE")
                yield os.getcwd(), [os.environ.get(name) for name in names], sys.argv[1:]

        here = see.options(mode={mode!r})
        os.environ["GONE"] = "g"
        here.run_sync([1])
        os.mkdir("sub"); os.chdir("sub")
        os.environ["TOKEN"] = "set later"
        os.environ["BEFORE"] = "c"
        del os.environ["GONE"]
        sys.argv.append("more")
        (now,) = here.run_sync([1])
        assert now == (os.getcwd(), ["set later", "c", None], ["more"]), now
        print("fine")
        """,
        cwd=tmp_path,
    )
    assert (code, output) == (0, "fine\n"), errors


@pytest.mark.embedded
def test_what_a_function_has_set_stays(tmp_path):
    """Only what the program changes is changed."""
    code, output, errors = run_script(
        tmp_path,
        """
        import os
        from velo import stream_fn

        @stream_fn(mode="process", workers=1)
        async def sets(events):
            async for event in events:
                if event:
                    os.environ["MINE"] = event
                yield os.environ.get("MINE"), os.environ.get("THEIRS")

        sets.run_sync(["m"])
        os.environ["THEIRS"] = "t"
        print(sets.run_sync([None]))
        """,
    )
    assert (code, output) == (0, "[('m', 't')]\n"), errors


@pytest.mark.embedded
def test_a_folder_that_the_worker_cannot_enter_is_told(tmp_path):
    code, output, errors = run_script(
        tmp_path,
        """
        import logging, os, shutil, tempfile
        logging.basicConfig(format="%(message)s")
        from velo import stream_fn

        @stream_fn(mode="process", workers=1)
        async def plus(events):
            async for event in events:
                yield event + 1

        plus.run_sync([1])
        gone = tempfile.mkdtemp()
        os.chdir(gone)
        shutil.rmtree(gone)
        print(plus.run_sync([1]))
        """,
    )
    assert (code, output) == (0, "[2]\n"), errors


RELOADS = """
import importlib, os, pathlib, sys
sys.dont_write_bytecode = True
file = pathlib.Path("prices.py")
TEXT = '''
from velo import stream_fn
import rates

@stream_fn
async def priced(events):
    async for event in events:
        yield event * rates.RATE + {}
'''
rates = pathlib.Path("rates.py")
rates.write_text("RATE = 2")
file.write_text(TEXT.format(0))
sys.path.insert(0, os.getcwd())
import prices

def now():
    return prices.priced.options(**OPTIONS).run_sync([10])

before = now()
file.write_text(TEXT.format(5))
importlib.reload(prices)
after = now()
rates.write_text("RATE = 3")
importlib.reload(prices.rates)  # which the function's own module is not
print(before, after, now())
"""


@pytest.mark.embedded
def test_a_reloaded_module_is_reloaded_in_workers(tmp_path, mode):
    options = {"mode": mode, **({"workers": 1} if mode == "process" else {})}
    script = RELOADS.replace("OPTIONS", repr(options))
    code, output, errors = run_script(tmp_path, script, cwd=tmp_path)
    assert (code, output) == (0, "[20] [25] [35]\n"), errors


def test_workers_that_are_shared_are_warned_of(tmp_path):
    """They stay what their supervisor is, and the program learns in what it differs."""
    daemon = Daemon(tmp_path / "s.sock", "--workers", 1)
    try:
        script = (
            f"import os\nos.environ['VELO_SUPERVISOR'] = {str(daemon.path)!r}\n"
            + RELOADS.replace("OPTIONS", 'dict(mode="process", workers=1)').replace(
                "before = now()",
                'os.environ |= {"TOKEN": "t", "PYTEST_CURRENT_TEST": "a test"}; before = now()',
            )
        )
        code, _, errors = run_script(tmp_path, script, cwd=tmp_path)
        assert code == 0, errors
        assert "has changed the environment (`TOKEN`) since it started" in errors
        assert "module `prices`, which was reloaded" in errors
    finally:
        daemon.close()


def test_two_programs_with_modules_of_one_name(tmp_path):
    """The second one is told, and does not run the first one's code."""
    daemon = Daemon(tmp_path / "s.sock", "--workers", 1)
    try:
        found = []
        for who in ("one", "two"):
            folder = tmp_path / who
            folder.mkdir()
            (folder / "shop.py").write_text(
                f"""
from velo import stream_fn

@stream_fn(mode="process", workers=1, supervisor={str(daemon.path)!r})
async def name(events):
    async for _ in events:
        yield {who!r}
"""
            )
            script = """
                from shop import name
                try:
                    print(name.run_sync([1]))
                except Exception as error:
                    print(type(error).__name__, error)
            """
            found.append(run_script(folder, script)[1])
        assert found[0] == "['one']\n"
        assert found[1].startswith("ImportError module `shop` is `")
        assert str(tmp_path / "two" / "shop.py") in found[1]
    finally:
        daemon.close()


def test_what_the_script_itself_has_is_named(tmp_path):
    """The script is not run in workers: a module that looks for something there learns of it."""
    (tmp_path / "asks.py").write_text(
        """
import sys
from velo import stream_fn

@stream_fn(mode="process", workers=1)
async def setting(events):
    async for _ in events:
        yield sys.modules["__main__"].SETTING
"""
    )
    code, output, errors = run_script(
        tmp_path,
        """
        SETTING = 5
        from asks import setting
        try:
            setting.run_sync([1])
        except AttributeError as error:
            print(error)
        """,
    )
    assert code == 0, errors
    assert "no attribute `SETTING` in a worker: the script is not run here" in output


def test_limits_and_time_zone_are_those_of_the_program(tmp_path, mode):
    """Also where the program changes them once its workers run."""
    code, output, errors = run_script(
        tmp_path,
        f"""
        import os, sys, time
        from velo import stream_fn

        @stream_fn(mode={mode!r}, workers=1)
        async def here(events):
            def down(n):
                return 0 if n == 0 else 1 + down(n - 1)
            async for depth in events:
                yield down(depth), len(str(10**5000)), time.strftime("%Z %H", time.localtime(0))

        sys.setrecursionlimit(5000)
        sys.set_int_max_str_digits(0)
        for zone in ("UTC", "Asia/Tokyo", "UTC"):
            os.environ["TZ"] = zone
            time.tzset()
            print(here.run_sync([3000]))
        """,
    )
    rows = [f"[(3000, 5001, '{zone}')]" for zone in ("UTC 00", "JST 09", "UTC 00")]
    assert (code, output.splitlines()) == (0, rows), errors


def test_variables_of_a_script_are_those_of_now(tmp_path, mode):
    """A script, or a notebook, binds a variable or defines a helper anew between two streams."""
    code, output, errors = run_script(
        tmp_path,
        f"""
        import asyncio
        from velo import stream_fn

        FACTOR = 2

        def helper(value):
            return value * FACTOR

        @stream_fn(mode={mode!r}, workers=1)
        async def uses(events):
            async for event in events:
                yield helper(event), [FACTOR for _ in range(1)]

        @stream_fn
        async def plus(events):
            async for event in events:
                yield event + FACTOR

        chain = (plus | plus).options(mode={mode!r}, workers=1)

        def around():
            step = 1

            @stream_fn(mode={mode!r}, workers=1)
            async def adds(events):
                async for event in events:
                    yield event + step

            print(adds.run_sync([1]))
            step = 5
            print(adds.run_sync([1]))

        async def keyed():
            return [pair async for pair in uses.keyed([1], key=lambda event: event)]

        print(uses.run_sync([1]), chain.run_sync([1]))
        FACTOR = 10
        print(uses.run_sync([1]), chain.run_sync([1]))

        def helper(value):
            return -value

        print(uses.run_sync([1]), asyncio.run(keyed()))
        around()
        """,
    )
    assert (code, output.splitlines()) == (
        0,
        [
            "[(2, [2])] [5]",
            "[(10, [10])] [21]",
            "[(-1, [10])] [(1, (-1, [10]))]",
            "[2]",
            "[6]",
        ],
    ), errors


def test_warnings_are_filtered_as_in_the_program(tmp_path, mode):
    code, output, errors = run_script(
        tmp_path,
        f"""
        import warnings
        from velo import stream_fn

        @stream_fn(mode={mode!r}, workers=1)
        async def warns(events):
            async for event in events:
                warnings.warn(f"careful {{event}}", UserWarning)
                warnings.warn(f"outdated {{event}}", DeprecationWarning)
                yield event

        print(warns.run_sync([1]))
        warnings.filterwarnings("ignore", "CAREFUL", UserWarning)
        print(warns.run_sync([2]))
        warnings.simplefilter("error", DeprecationWarning)
        try:
            warns.run_sync([3])
        except DeprecationWarning as error:
            print("raised", error)
        """,
    )
    assert (code, output.splitlines()) == (0, ["[1]", "[2]", "raised outdated 3"]), errors
    assert "careful 1" in errors
    assert "careful 2" not in errors
    assert "careful 3" not in errors
