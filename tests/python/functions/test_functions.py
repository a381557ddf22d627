"""Wherever a function is defined, it runs in both modes."""

import asyncio
import contextvars
import functools
import subprocess
import sys
import textwrap

import pytest

import functions
from helpers import HANG, environment, run_script
from velo import _core, stream_fn
from velo._function import reference


async def test_module_function(mode):
    assert await functions.echo.options(mode=mode).run([1]) == [1]


async def test_closure(mode):
    def scaled(factor):
        @stream_fn(mode=mode)
        async def scale(events):
            async for event in events:
                yield event * factor

        return scale

    one, other = scaled(2), scaled(3)
    assert await one.run([1, 2]) == [2, 4]
    assert await other.run([1, 2]) == [3, 6]


async def test_closure_over_what_changes_is_taken_at_the_first_open(mode):
    held = {"factor": 2}

    @stream_fn(mode=mode)
    async def scale(events):
        async for event in events:
            yield event * held["factor"]

    assert await scale.run([1]) == [2]


async def test_partial(mode):
    partial = stream_fn(mode=mode)(functools.partial(functions.with_factor, 5))
    assert await partial.run([1, 2]) == [5, 10]
    again = stream_fn(mode=mode)(functools.partial(functools.partial(functions.with_factor), 7))
    assert await again.run([1]) == [7]


async def test_made_by_a_lambda(mode):
    make = lambda number: lambda events: functions.with_factor(number, events)  # noqa: E731
    function = make(3)
    function.__annotations__["return"] = "AsyncIterator[int]"
    assert await stream_fn(mode=mode)(function).run([2]) == [6]


async def test_methods(mode):
    scaler = functions.Scaler(4)
    decorate = stream_fn(mode=mode)
    assert await decorate(scaler.scale).run([1]) == [4]
    assert await decorate(functions.Scaler.negate).run([1]) == [-1]
    assert await decorate(functions.Scaler.named).run([1]) == [("Scaler", 1)]


async def test_bound_methods_of_two_objects(mode):
    decorate = stream_fn(mode=mode)
    one, two = decorate(functions.Scaler(2).scale), decorate(functions.Scaler(3).scale)
    assert (await one.run([1]), await two.run([1])) == ([2], [3])


async def test_callable_object(mode):
    assert await stream_fn(mode=mode)(functions.Scaler(10)).run([1]) == [11]


async def test_local_class_method(mode):
    class Local:
        def __init__(self, word):
            self.word = word

        async def tag(self, events):
            async for event in events:
                yield (self.word, event)

    assert await stream_fn(mode=mode)(Local("w").tag).run([1]) == [("w", 1)]


async def test_decorated(mode):
    assert await functions.decorated.options(mode=mode).run([1]) == [("decorated", 1)]


async def test_function_that_returns_another_ones_generator(mode):
    from collections.abc import AsyncIterator

    @stream_fn(mode=mode)
    def outer(events) -> AsyncIterator[int]:
        return functions.with_factor(2, events)

    assert await outer.run([1, 2]) == [2, 4]


async def test_async_iterator_that_is_no_generator(mode):
    class Doubles:
        def __init__(self, events):
            self.events = events

        def __aiter__(self):
            return self

        async def __anext__(self):
            return 2 * await anext(self.events)

    def doubles(events) -> Doubles:
        return Doubles(events)

    assert await stream_fn(mode=mode)(doubles).run([1, 2]) == [2, 4]


async def test_package_with_relative_imports(mode, tmp_path, monkeypatch):
    package = tmp_path / f"relative_{mode}"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("FACTOR = 6\n")
    (package / "inner" / "__init__.py").write_text("")
    (package / "inner" / "work.py").write_text(
        "from velo import stream_fn\n"
        "from ..helper import FACTOR\n"
        "@stream_fn\n"
        "async def scale(events):\n"
        "    async for event in events:\n"
        "        yield event * FACTOR\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import importlib

    module = importlib.import_module(f"relative_{mode}.inner.work")
    assert await module.scale.options(mode=mode).run([1]) == [6]


async def test_redefined_function_is_the_new_one(mode):
    """As an edited notebook cell: the same name, other code."""
    namespace = {"stream_fn": stream_fn, "mode": mode, "__name__": "__main__"}
    for factor in (2, 3):
        exec(
            textwrap.dedent(f"""
                @stream_fn(mode=mode)
                async def cell(events):
                    async for event in events:
                        yield event * {factor}
            """),
            namespace,
        )
        assert await namespace["cell"].run([1]) == [factor]


CACHED = """
    import functools
    from velo import stream_fn

    @functools.cache
    def model():
        return object()

    @functools.lru_cache(maxsize=2, typed=True)
    def power(number):
        return 1 if number == 0 else 2 * power(number - 1)

    @stream_fn(mode="MODE", workers=1)
    async def work(events):
        async for event in events:
            yield id(model()), power(event), power.cache_parameters()["maxsize"]

    results = [result for _, result in work.keyed_sync([3, 4, 3], key=str)]
    assert len({model for model, _, _ in results}) == 1, "all keys share one"
    assert sorted(rest for _, *rest in results) == [[8, 2], [8, 2], [16, 2]], results
    print("fine")
"""


def test_cached_functions_of_a_script(mode, tmp_path):
    """Each worker has a cache of its own: a way to share a client or a model."""
    code, output, errors = run_script(tmp_path, CACHED.replace("MODE", mode))
    assert (code, output) == (0, "fine\n"), errors


async def test_redefined_module_function_is_the_new_one(mode, monkeypatch):
    """A function that was replaced in its module is not found there, and goes by value."""

    async def echo(events):
        async for event in events:
            yield ("new", event)

    echo.__module__, echo.__qualname__ = "functions", "echo"
    assert await stream_fn(mode=mode)(echo).run([1]) == [("new", 1)]


async def test_global_state_belongs_to_the_worker(mode):
    @stream_fn(mode=mode, workers=1)
    async def counts(events):
        async for _ in events:
            functions.seen = getattr(functions, "seen", 0) + 1
            yield functions.seen

    try:
        first = await counts.run([0])
        assert await counts.run([0]) == [first[0] + 1]
        assert hasattr(functions, "seen") is (mode == "inline")
    finally:
        vars(functions).pop("seen", None)


SCRIPT = """
    import asyncio, dataclasses, enum, functools
    from velo import stream_fn

    FACTOR = 3

    @dataclasses.dataclass
    class Event:
        value: int

    class Color(enum.Enum):
        RED = 1

    class OwnError(Exception):
        pass

    def helper(event):
        return event.value * FACTOR

    @stream_fn(mode="MODE")
    async def work(events):
        async for event in events:
            if event.value < 0:
                raise OwnError(event)
            yield Event(helper(event))
            yield Color.RED

    results = work.run_sync([Event(1), Event(2)])
    assert results == [Event(3), Color.RED, Event(6), Color.RED], results
    assert type(results[0]) is Event and results[1] is Color.RED
    try:
        work.run_sync([Event(-1)])
    except OwnError as error:
        assert error.args == (Event(-1),)
    else:
        raise AssertionError

    async def main():
        async with work.open() as stream:
            return [result async for result in stream.feed([Event(5)])]

    assert asyncio.run(main()) == [Event(15), Color.RED]
    print("fine", __name__)
"""


def test_script_without_a_guard(mode, tmp_path):
    """The script runs once: nobody imports it again."""
    code, output, errors = run_script(tmp_path, SCRIPT.replace("MODE", mode))
    assert (code, output) == (0, "fine __main__\n"), errors


@pytest.mark.parametrize("how", ["-c", "stdin", "-m"])
def test_script_from_elsewhere(mode, tmp_path, how):
    text = textwrap.dedent(SCRIPT.replace("MODE", mode))
    (tmp_path / "as_module.py").write_text(text)
    command = {"-c": ["-c", text], "stdin": ["-"], "-m": ["-m", "as_module"]}[how]
    done = subprocess.run(
        [sys.executable, *command],
        input=text if how == "stdin" else "",
        capture_output=True,
        text=True,
        timeout=HANG,
        env=environment(),
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (0, "fine __main__\n"), done.stderr


def test_working_directory_and_path_of_the_script(tmp_path, mode):
    """Modules beside the script, and those on paths that it adds itself, are found."""
    (tmp_path / "beside.py").write_text(
        "async def work(events):\n    async for event in events:\n        yield ('beside', event)\n"
    )
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "added.py").write_text(
        "async def work(events):\n    async for event in events:\n        yield ('added', event)\n"
    )
    script = f"""
        import os, sys
        sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "more"))
        import added, beside
        from velo import stream_fn
        for module in (beside, added):
            print(stream_fn(mode={mode!r})(module.work).run_sync([1]))
    """
    code, output, errors = run_script(tmp_path, script)
    assert (code, output) == (0, "[('beside', 1)]\n[('added', 1)]\n"), errors


@pytest.mark.embedded
def test_environment_and_output_of_a_worker(tmp_path, mode):
    script = f"""
        import os
        from velo import stream_fn
        os.environ["SET_BY_SCRIPT"] = "yes"

        @stream_fn(mode={mode!r})
        async def work(events):
            async for event in events:
                print("printed", event)
                yield os.environ.get("SET_BY_SCRIPT")

        results = work.run_sync([1])
        print(results)
    """
    code, output, errors = run_script(tmp_path, script)
    assert code == 0, errors
    assert output == "printed 1\n['yes']\n"


async def test_threads_and_blocking_calls_inside(mode):
    @stream_fn(mode=mode)
    async def threads(events):
        async for event in events:
            yield await asyncio.to_thread(sum, event)

    assert await threads.run([[1, 2], [3]]) == [3, 3]


async def test_subprocess_inside(mode):
    @stream_fn(mode=mode)
    async def runs(events):
        async for event in events:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", f"print({event})", stdout=asyncio.subprocess.PIPE
            )
            output, _ = await process.communicate()
            yield int(output)

    assert await asyncio.wait_for(runs.run([5]), HANG) == [5]


async def test_large_closure(mode):
    """A function may carry more than a control message's usual size."""
    table = list(range(300_000))

    @stream_fn(mode=mode)
    async def looks_up(events):
        async for event in events:
            yield table[event]

    assert await looks_up.run([0, 299_999]) == [0, 299_999]


def test_a_module_that_runs_streams_as_it_is_imported(tmp_path):
    """Its workers would import it and run streams, whose workers would import it."""
    (tmp_path / "eager.py").write_text(
        "from velo import stream_fn\n"
        "@stream_fn(mode='process')\n"
        "async def echo(events):\n"
        "    async for event in events:\n"
        "        yield event\n"
        "print(echo.run_sync([1]))\n"
    )
    code, output, errors = run_script(tmp_path, "import eager", cwd=tmp_path)
    assert (code, output) == (1, "")
    assert "module `eager` runs a stream as it is imported" in errors


def test_a_definition_without_pickle_names_a_function():
    """What a client without Python sends."""

    def load(*definition):
        return reference.load(_core.dumps(list(definition)))

    assert load("functions", "echo", []) is reference._plain(functions.echo)
    with pytest.raises(ImportError, match="no `nobody` in module `functions`"):
        load("functions", "nobody", [])
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        load("no_such_module", "echo", [])


def test_a_definition_without_pickle_says_where_to_look(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "of_its_own.py").write_text("async def f(events):\n    yield 1\n")
    function = reference.load(_core.dumps(["of_its_own", "f", [str(tmp_path)]]))
    assert function.__module__ == "of_its_own"


def test_context_variables_of_code_without_a_loop():
    """Each call has the values that its caller has at the time."""

    @stream_fn
    async def reads(events):
        async for _ in events:
            yield functions.tenant.get()

    def calls():
        for name in ("first", "second"):
            functions.tenant.set(name)
            yield reads.run_sync([1])
            yield reads.keyed_sync([1], key=lambda event: event)

    found = contextvars.copy_context().run(lambda: list(calls()))
    assert found == [["first"], [(1, "first")], ["second"], [(1, "second")]]
