"""`preload`: modules that workers have imported before they are given a stream."""

import pytest

from helpers import run_script
from velo import StreamConfig, stream_fn

pytestmark = [pytest.mark.embedded, pytest.mark.slow]

# A module that says who imports it; modules that start a thread, that fail; a program's beginning.
SEEN = "import os\nopen({path!r}, 'a').write(f'{{os.getpid()}} ')\nIMPORTED_BY = os.getpid()\n"
THREADED = (
    "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
)
START = """
    import asyncio, os, warnings
    from velo import stream_fn, _core

    def zygote():
        return _core.status().zygote
"""


@pytest.fixture
def modules(tmp_path):
    """A folder with modules, and what the one called `seen` writes."""
    path = tmp_path / "imports"
    (tmp_path / "seen.py").write_text(SEEN.format(path=str(path)))
    (tmp_path / "threaded.py").write_text(THREADED)
    (tmp_path / "fails.py").write_text("raise ValueError('not today')\n")
    return path


def run(tmp_path, script):
    code, output, errors = run_script(tmp_path, START + script)
    assert code == 0, errors
    return output, errors


def test_a_new_worker_has_it(tmp_path, modules):
    output, errors = run(
        tmp_path,
        """
    @stream_fn(mode="process", workers=2, preload=["seen"])
    async def where(events):
        import sys
        async for event in events:
            yield "seen" in sys.modules and sys.modules["seen"].IMPORTED_BY != os.getpid()

    async def main():
        async with where.open() as one, where.open() as other:
            await one.send(1)
            await other.send(1)
            print(await one.recv(), await other.recv(), zygote())

    asyncio.run(main())
        """,
    )
    first, second, zygote = output.split()
    assert (first, second, errors) == ("True", "True", "")
    assert modules.read_text().split() == [zygote]


def test_one_that_is_named_later_is_in_later_workers(tmp_path, modules):
    output, errors = run(
        tmp_path,
        """
    @stream_fn(mode="process", workers=1)
    async def first(events):
        async for event in events:
            yield os.getpid()

    @stream_fn(mode="process", workers=2, preload=["seen"])
    async def second(events):
        import sys
        async for event in events:
            yield "seen" in sys.modules

    async def main():
        async with first.open() as stream:
            await stream.send(1)
            await stream.recv()
            async with second.open() as other:
                await other.send(1)
                print(await other.recv())

    asyncio.run(main())
        """,
    )
    assert (output, errors) == ("True\n", "")


@pytest.mark.parametrize(
    ("module", "why"),
    [("missing", "No module named"), ("fails", "not today"), ("threaded", "starts threads")],
)
def test_what_cannot_be_preloaded_is_warned_of_and_done_without(tmp_path, modules, module, why):
    output, errors = run(
        tmp_path,
        f"""
    @stream_fn(mode="process", workers=1, preload=[{module!r}, "seen"])
    async def works(events):
        import sys
        async for event in events:
            yield "seen" in sys.modules, {module!r} in sys.modules

    async def main():
        print(await works.run([1]), await works.run([2]))

    asyncio.run(main())
        """,
    )
    assert output == "[(True, False)] [(True, False)]\n"
    assert errors.count("RuntimeWarning") == 1
    assert f"`{module}`" in errors
    assert why in errors


def test_workers_outlive_the_zygote_that_a_module_has_spoilt(tmp_path, modules):
    """A stream that is open goes on while the zygote is replaced."""
    output, errors = run(
        tmp_path,
        """
    warnings.simplefilter("ignore")

    @stream_fn(mode="process", workers=1)
    async def counts(events):
        count = 0
        async for event in events:
            count += 1
            yield count, os.getpid()

    other = counts.options(workers=2, preload=["threaded"])

    async def main():
        async with counts.open() as stream:
            await stream.send(1)
            _, pid = await stream.recv()
            before = zygote()
            async with other.open() as second:
                await second.send(1)
                count, there = await second.recv()
                assert zygote() != before and there != pid
            await stream.send(1)
            print(await stream.recv() == (2, pid))

    asyncio.run(main())
        """,
    )
    assert (output, errors) == ("True\n", "")


@pytest.mark.parametrize("wrong", ["numpy", [1], ["a b"], 3])
def test_wrong_names(wrong):
    with pytest.raises((TypeError, ValueError), match="`preload` must"):
        StreamConfig(preload=wrong)


def test_a_list_will_do_and_chains_preload_both():
    @stream_fn(preload=["json"])
    async def one(events):
        async for event in events:
            yield event

    assert one.config.preload == ("json",)
    assert (one | one.options(preload=("csv", "json"))).config.preload == ("json", "csv")
