"""Reports of the supervisor: one that cannot be acted on keeps none of the others back."""

import asyncio

import pytest

from velo import _core
from velo._process.connection import Connection
from velo.errors import PoolError


class Supervisor:
    """Has reported what a test has written down."""

    def __init__(self, *reports):
        self._reports = list(reports)

    def preload(self, modules, paths):
        pass

    def poll(self):
        reports, self._reports = self._reports, []
        return reports


class Listener:
    """Notes the links that reports name; fails at link 1, and finds link 2 of no use."""

    def __init__(self):
        self.links, self.heard, self.lost = [], 0, []

    def on_report(self, report):
        if report.link == 1:
            raise ZeroDivisionError
        if report.link == 2:
            raise PoolError("of no use")
        self.links.append(report.link)

    def on_heard(self):
        self.heard += 1

    def on_lost(self, why):
        self.lost.append(why)


class Reading:
    """A connection to a supervisor that has reported, and the errors that its loop was given."""

    def __init__(self, *reports):
        loop, self.errors, self.listener = asyncio.get_running_loop(), [], Listener()
        loop.set_exception_handler(lambda loop, context: self.errors.append(context["exception"]))
        self.connection = Connection(loop, "s.sock", self.listener)
        self.connection.preload(("missing",))
        self.connection.supervisor = Supervisor(*reports)
        # It is in no event loop, from which it would have to be taken.
        self.connection.disconnect = lambda: None

    def poll(self):
        self.connection.poll()
        return [type(error) for error in self.errors]


def retired(*links):
    return [_core.Report.Retired(link=link) for link in links]


async def test_one_that_fails_keeps_none_back():
    reading = Reading(*retired(3, 1, 4))
    assert reading.poll() == [ZeroDivisionError]
    assert (reading.listener.links, reading.listener.heard) == ([3, 4], 1)


@pytest.mark.filterwarnings("error::RuntimeWarning")
async def test_nor_does_a_warning_that_is_an_error():
    reading = Reading(_core.Report.NotPreloaded(module="missing", why="it is"), *retired(3))
    assert reading.poll() == [RuntimeWarning]
    assert (reading.listener.links, reading.listener.heard) == ([3], 1)


async def test_a_supervisor_of_no_use_is_left():
    reading = Reading(*retired(3, 2, 4))
    assert reading.poll() == []
    assert (reading.listener.links, reading.listener.lost) == (
        [3],
        ["the supervisor at `s.sock` has hung up"],
    )
