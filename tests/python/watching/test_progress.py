"""`progress=True`: the bar of a source, in a terminal and in a notebook."""

import contextlib
import io
import sys
import types

import pytest

from functions import running_sum
from velo._api import progress


@pytest.fixture
def bars(monkeypatch):
    """The bars that were made, without a terminal."""
    made = []

    class Bar(progress._Bar):
        def begin(self):
            made.append(self)
            self.said = []

        def show(self):
            self.said.append(self.text)

        def end(self):
            self.said.append("complete" if self.complete else "left")

    monkeypatch.setattr(progress, "_InTerminal", Bar)
    return made


async def plain(count):
    for number in range(count):
        yield number


async def test_every_form_counts_its_source(bars, mode):
    function = running_sum.options(mode=mode)
    assert (await function.run([1, 2, 3], progress=True))[-1] == 6
    assert (await function.run(plain(4), progress=True))[-1] == 6
    async with function.open() as stream:
        assert [result async for result in stream.feed(iter([1, 2]), progress=True)] == [1, 3]
        name = stream.name
    keyed = function.keyed([1, 2, 3, 4], key=lambda event: event % 2, progress=True)
    assert [pair async for pair in keyed if pair[1] == 6] == [(0, 6)]
    assert [bar.total for bar in bars] == [3, None, None, 4]
    assert [bar.name for bar in bars] == ["running_sum", "running_sum", name, "running_sum"]
    assert [bar.said[-2:] for bar in bars] == [
        ["3 of 3 events", "complete"],
        ["4 events", "complete"],
        ["2 events", "complete"],
        ["4 of 4 events", "complete"],
    ]


def test_without_an_event_loop(bars, mode):
    function = running_sum.options(mode=mode)
    assert function.run_sync(range(5), progress=True)[-1] == 10
    assert function.keyed_sync([1, 2], key=lambda event: 0, progress=True)[-1] == (0, 3)
    assert [bar.count for bar in bars] == [5, 2]


async def test_an_error_of_the_source_leaves_the_bar_where_it_is(bars, mode):
    def source():
        yield 1
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await running_sum.options(mode=mode).run(source(), progress=True)
    (bar,) = bars
    assert bar.said[-2:] == ["1 events", "left"]


async def test_a_source_of_velo_connect_does_not_take_it():
    class Source:
        name = "none"

        async def commit(self, positions):
            pass

        async def __aiter__(self):
            yield []

    with pytest.raises(ValueError, match="counts the events of an iterable"):
        running_sum.keyed(Source(), key=str, progress=True)


async def test_in_a_terminal_it_is_on_stderr():
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        await running_sum.run([1, 2], progress=True)
    assert "running_sum" in said.getvalue()
    assert "2 of 2 events" in said.getvalue()


async def test_in_a_notebook_it_is_a_bar_that_changes(monkeypatch):
    shown = []

    class Handle:
        def update(self, value):
            shown.append(value)

    display = types.ModuleType("IPython.display")
    display.HTML = str
    display.display = lambda value, display_id: Handle()
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(progress, "_is_notebook", lambda: True)
    await running_sum.run([1, 2], progress=True)
    assert shown[-1].startswith("running_sum <progress")
    assert 'max="1" value="1"' in shown[-1]
    assert "2 of 2 events" in shown[-1]
