"""A small grammar of stream functions, for comparing modes: a program is plain data."""

import asyncio
import math

from hypothesis import strategies as st

# What a program does with each event, step by step. `value` is what the step before left.
STEPS = st.one_of(
    st.tuples(st.just("add"), st.integers(-5, 5)),
    st.tuples(st.just("times"), st.sampled_from([0, 2, -1, 1.5])),
    st.just(("pair",)),
    st.just(("count",)),
    st.just(("sum",)),
    st.just(("remember",)),
    st.tuples(st.just("keep every"), st.integers(1, 4)),
    st.tuples(st.just("repeat"), st.integers(0, 3)),
    st.tuples(st.just("fail at"), st.integers(0, 12), st.sampled_from(["value", "key", "own"])),
    st.tuples(st.just("return at"), st.integers(0, 12)),
    st.just(("sleep",)),
    st.just(("take one more",)),
    st.just(("root",)),
    st.just(("divide",)),
    st.just(("text",)),
    st.just(("type",)),
)

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.text(max_size=8),
    st.binary(max_size=8),
)

VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.frozensets(st.integers(0, 9), max_size=3),
    ),
    max_leaves=5,
)

PROGRAMS = st.fixed_dictionaries(
    {
        "before": st.lists(SCALARS, max_size=2),
        "steps": st.lists(STEPS, max_size=4),
        "after": st.sampled_from(["nothing", "count", "all", "fail"]),
        "guard": st.booleans(),
    }
)


class OwnError(Exception):
    """Raised by programs."""


FAILURES = {"value": ValueError, "key": KeyError, "own": OwnError}


def function_of(program):
    """The stream function of a program, by value."""

    async def run(events):
        for value in program["before"]:
            yield value
        state = {"count": 0, "sum": 0, "seen": [], "events": 0}
        async for event in events:
            state["events"] += 1
            try:
                values = [event]
                for step in program["steps"]:
                    values = [
                        result
                        for value in values
                        for result in await apply(step, value, state, events)
                    ]
            except Return:
                break
            except (TypeError, OverflowError) as error:
                if program["guard"]:
                    values = [type(error).__name__]
                else:
                    raise
            for value in values:
                yield value
        if program["after"] == "count":
            yield state["events"]
        elif program["after"] == "all":
            for value in state["seen"]:
                yield value
        elif program["after"] == "fail":
            raise OwnError("after", state["events"])

    return run


class Return(Exception):
    """The program returns early."""


async def apply(step, value, state, events):
    """The values that a step makes of one."""
    match step:
        case ("add", number):
            return [value + number]
        case ("times", factor):
            return [value * factor]
        case ("pair",):
            return [(value, value)]
        case ("count",):
            state["count"] += 1
            return [(state["count"], value)]
        case ("sum",):
            state["sum"] += value
            return [state["sum"]]
        case ("remember",):
            # What remembers what it remembered would double with each event.
            size = len(repr(value))
            state["seen"].append(value if size < 100 else size)
            return [list(state["seen"])]
        case ("keep every", number):
            return [value] if state["events"] % number == 0 else []
        case ("repeat", number):
            return [value] * number
        case ("fail at", number, kind):
            if state["events"] > number:
                raise FAILURES[kind](number, value)
            return [value]
        case ("return at", number):
            if state["events"] > number:
                raise Return
            return [value]
        case ("sleep",):
            await asyncio.sleep(0)
            return [value]
        case ("take one more",):
            try:
                return [value, await anext(events)]
            except StopAsyncIteration:
                return [value]
        case ("root",):
            return [math.sqrt(value)]
        case ("divide",):
            return [1 / value]
        case ("text",):
            return [str(value)]
        case ("type",):
            return [type(value).__name__]
    raise AssertionError(step)
