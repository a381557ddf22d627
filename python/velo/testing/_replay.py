"""Runs a recorded function again, and finds the first difference."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import os
import pprint
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from velo import StreamFn, _core
from velo.events import TICK
from velo.testing._clock import VirtualClock
from velo.testing._recordings import Recording, Step, load_recording

__all__ = ["Difference", "Replay", "ReplayDifference", "again", "replay"]

# What the function does at each kind of step, in words.
_DID = {
    "event": "asked for its next event",
    "tick": "asked for its next event, or a tick",
    "end": "asked for its next event",
    "result": "yielded",
    "returned": "returned",
    "raised": "raised",
}
_GIVEN = ("event", "tick", "end")
# A function that does nothing for this many seconds, while nothing is scheduled, waits forever.
_STANDSTILL = 0.25


@dataclass(frozen=True)
class Difference:
    """The first difference between a function and its recording.

    Attributes:
        number: The number of its last event, from 1; 0 before the first one.
        recorded: What the function did in the recording: a few words, and a value if there is one.
        now: What it does now.
        around: The events around that one, with their numbers.
        note: A reason besides the function, a different hash seed; empty if there is none.

    """

    number: int
    recorded: tuple[str, Any]
    now: tuple[str, Any]
    around: list[tuple[int, Any]]
    note: str = ""

    def __str__(self) -> str:
        lines = [f"at event {self.number} the function does not do what was recorded", ""]
        for number, event in self.around:
            mark = ">" if number == self.number else " "
            lines += _indented(f"  {mark} {number:>5}  ", event)
        old, new = _shown(self.recorded), _shown(self.now)
        lines += ["", f"recorded: it {old[0]}", f"now:      it {new[0]}"]
        if len(old) > 1 or len(new) > 1:
            lines += ["", *(line.rstrip() for line in difflib.ndiff(old[1:], new[1:]))]
        if self.note:
            lines += ["", self.note]
        return "\n".join(lines)


@dataclass
class Replay:
    """The outcome of a replay.

    Attributes:
        events: How many events the function received.
        results: How many results it yielded.
        latest: The results since the last event.
        difference: The first difference from the recording, or None.
        end: How the replay ended: `"returned"`, `"raised"` or `"cancelled"`, as in the recording;
            `"until"`, at the event of that argument; `"open"`, where the recording breaks off.
        line: The line at which the function waits, if it does.
        variables: Its local variables there.

    """

    events: int = 0
    results: int = 0
    latest: list[Any] = field(default_factory=list)
    difference: Difference | None = None
    end: str = "open"
    line: int | None = None
    variables: dict[str, Any] = field(default_factory=dict)


class ReplayDifference(AssertionError):
    """A function does not do what was recorded.

    Attributes:
        difference: The first difference.

    """

    def __init__(self, difference: Difference) -> None:
        super().__init__(str(difference))
        self.difference = difference


def replay(
    recording: Recording | str | os.PathLike[str],
    fn: StreamFn[Any, Any] | None = None,
    *,
    until: int | None = None,
    trust: bool = False,
) -> Replay:
    """Run a recorded function again on the same events, and compare its results.

    It runs inline, in a `VirtualClock`, so that waits take no time. The function must yield, return
    and raise the same values, in the same order between the same events. Ticks arrive at the same
    places.

    Args:
        recording: The recording, or its file.
        fn: The function. None: the current version of the recorded one.
        until: Stop when the function asks for the event after this one.
        trust: Of a file: read pickled values, and run code that it names, as `load_recording` does.

    Returns:
        The outcome, with the function's local variables where it stopped.

    Raises:
        ReplayDifference: When the function does something else. It is an `AssertionError`.
        LookupError: When the function cannot be found.
        OSError: When the file cannot be read.
        ValueError: When it is no recording, or an event of it could not be recorded.

    """
    if not isinstance(recording, Recording):
        recording = load_recording(recording, trust=trust)
    outcome = again(recording, fn, until=until)
    if outcome.difference is not None:
        raise ReplayDifference(outcome.difference)
    return outcome


def again(
    recording: Recording, fn: StreamFn[Any, Any] | None = None, *, until: int | None = None
) -> Replay:
    """Do the same as `replay`, but return a difference instead of raising it."""
    function = recording.function() if fn is None else fn._function
    outcome: list[Replay | BaseException] = []

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=VirtualClock) as runner:
                outcome.append(runner.run(_Run(recording, function, until).run()))
        except BaseException as error:
            outcome.append(error)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        run()
    else:
        # An event loop runs in this thread already, so the replay needs another one.
        thread = threading.Thread(target=run, name="velo replay")
        thread.start()
        thread.join()
    (result,) = outcome
    if isinstance(result, BaseException):
        raise result
    return result


class _Stop(Exception):
    """The replay has ended."""


class _Run:
    """One replay: the recorded steps, and how far the function has come in them."""

    def __init__(
        self, recording: Recording, function: Callable[..., Any], until: int | None
    ) -> None:
        self._recording = recording
        self._function = function
        self._until = until
        self._at = 0
        self._asking = False
        self._outcome = Replay()
        self._stopped = asyncio.Event()
        self._failure: BaseException | None = None

    async def run(self) -> Replay:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualClock)
        loop._on_standstill(self._on_standstill, _STANDSTILL)
        results = self._function(_Given(self), *self._recording.head["state"])
        work = asyncio.ensure_future(self._drive(results))
        stopped = asyncio.ensure_future(self._stopped.wait())
        await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
        self._look_into(results)
        for task in (work, stopped):
            task.cancel()
        await asyncio.wait([work, stopped])
        if isinstance(results, AsyncGenerator):
            with contextlib.suppress(Exception):
                await results.aclose()
        if self._failure is not None:
            raise self._failure
        return self._outcome

    async def _drive(self, results: AsyncIterator[Any]) -> None:
        with contextlib.suppress(_Stop):
            try:
                async for result in results:
                    self._did("result", result)
            except _Stop:
                raise
            except Exception as error:
                if self._failure is None and not self._stopped.is_set():
                    self._did("raised", (type(error).__qualname__, str(error)))
                return
            self._did("returned", None)

    def _next(self) -> Step | None:
        steps = self._recording.steps
        return steps[self._at] if self._at < len(steps) else None

    def _did(self, kind: str, value: Any) -> None:
        """Compare a step of the function with the recorded one."""
        if kind == "result":
            self._outcome.results += 1
            self._outcome.latest.append(value)
        step = self._next()
        if step is None or step.kind == "cancelled":
            # In the recording, it was killed or cancelled before this step.
            raise self._stop("open" if step is None else "cancelled")
        if step.kind != kind or not _same(_value(step), value):
            raise self._differs(step, (_DID[kind], value) if kind != "returned" else (_DID[kind],))
        self._at += 1
        if kind != "result":
            raise self._stop(kind)
        following = self._next()
        if following is not None and following.kind == "cancelled":
            raise self._stop("cancelled")

    async def give(self, *, ticks: bool) -> Any:
        """Return the next event of the function, once the recording comes to it."""
        step = self._next()
        if step is None or step.kind == "cancelled":
            self._stop("open" if step is None else "cancelled")
        elif step.kind == "event":
            if self._until is not None and step.number > self._until:
                self._stop("until")
            else:
                return self._take(step)
        elif step.kind == "tick":
            if ticks:
                self._at += 1
                return TICK
            self._differs(step, ("asks for its next event, and no ticks",))
        elif step.kind == "end":
            self._at += 1
            raise StopAsyncIteration
        # In the recording, it did something before this event, perhaps after its own deadline.
        self._asking = True
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._asking = False

    def _take(self, step: Step) -> Any:
        try:
            value = step.value
        except ValueError as error:
            self._failure = error
            self._stopped.set()
            raise
        self._at += 1
        self._outcome.events += 1
        self._outcome.latest = []
        return value

    def _on_standstill(self) -> bool:
        step = self._next()
        if self._stopped.is_set() or step is None:
            self._stop("open")
        else:
            what = "asks for its next event" if self._asking else "waits for something else"
            self._differs(step, (what,))
        return True

    def _stop(self, how: str) -> _Stop:
        if not self._stopped.is_set():
            self._outcome.end = how
            self._stopped.set()
        return _Stop()

    def _differs(self, step: Step, now: tuple[Any, ...]) -> _Stop:
        if self._outcome.difference is None and not self._stopped.is_set():
            events = [step for step in self._recording.steps if step.kind == "event"]
            number = self._outcome.events
            around = [
                (each.number, _value(each)) for each in events[max(number - 3, 0) : number + 2]
            ]
            value = (_value(step),) if step.kind in ("result", "raised") else ()
            self._outcome.difference = Difference(
                number, _pair(_DID[step.kind], *value), _pair(*now), around, self._note()
            )
            self._stopped.set()
        return _Stop()

    def _note(self) -> str:
        """Say so when hashes differ: the order of a set of texts does then."""
        recorded = self._recording.head.get("hash_seed", "random")
        here = os.environ.get("PYTHONHASHSEED") or "random"
        if recorded == here != "random":
            return ""
        return (
            f"the hash seed was {recorded} and is {here}: sets may have another order "
            "(set `PYTHONHASHSEED` when you record, and the same one here)"
        )

    def _look_into(self, results: Any) -> None:
        """Note where the function waits, and its variables there."""
        frame = getattr(results, "ag_frame", None)
        if frame is not None and "stack" in frame.f_locals and "part" in frame.f_locals:
            # A composed function: show the variables of its last part.
            frame = getattr(frame.f_locals.get("results"), "ag_frame", None)
        if frame is not None:
            self._outcome.line = frame.f_lineno
            self._outcome.variables = dict(frame.f_locals)


class _Given(AsyncIterator[Any]):
    """The events of a replay, as the function sees them."""

    def __init__(self, run: _Run, *, ticks: bool = False) -> None:
        self._run = run
        self._ticks = ticks

    async def __anext__(self) -> Any:
        return await self._run.give(ticks=self._ticks)

    def ticks(self, seconds: float) -> AsyncIterator[Any]:
        if not seconds > 0:
            raise ValueError(f"`seconds` must be more than 0, not {seconds!r}")
        return _Given(self._run, ticks=True)


def _value(step: Step) -> Any:
    try:
        return step.value
    except ValueError as error:
        return _Lost(str(error))


class _Lost(str):
    """Stands for a value that could not be recorded."""


def _same(recorded: Any, now: Any) -> bool:
    if isinstance(recorded, _Lost):
        return True  # it cannot be compared
    with contextlib.suppress(Exception):
        if _core.dumps(recorded) == _core.dumps(now):
            return True
    try:
        return type(recorded) is type(now) and bool(recorded == now)
    except Exception:
        return False  # arrays of different shapes, and the like


def _pair(what: str, *value: Any) -> tuple[str, Any]:
    return (what, value[0] if value else None)


def _shown(did: tuple[str, Any]) -> list[str]:
    """Return one line if it fits, else the lines of the value below the words."""
    what, value = did
    if what not in (_DID["result"], _DID["raised"]):
        return [what]
    if what == _DID["raised"]:
        return [f"{what} {value[0]}: {value[1]}"]
    lines = pprint.pformat(value, width=88, sort_dicts=False).splitlines()
    return [f"{what} {lines[0]}"] if len(lines) == 1 else [what, *lines]


def _indented(head: str, value: Any) -> list[str]:
    lines = pprint.pformat(value, width=88, sort_dicts=False, compact=True).splitlines()
    return [head + lines[0], *(" " * len(head) + line for line in lines[1:])]
