"""Settings: what is allowed, what is said about what is not, and what cannot be decorated."""

import copy
import functools
import inspect
import json
import pickle
import typing
from unittest import mock

import pytest

import functions
from velo import StreamConfig, StreamFn, stream_fn
from velo._function import callables, signature

WRONG = [
    ("mode", "thread", ValueError, '"inline" or "process"'),
    ("mode", None, ValueError, "inline"),
    ("mode", 1, ValueError, "inline"),
    ("mode", [], ValueError, "inline"),
    ("overflow", "drop", ValueError, '"wait" or "error"'),
    ("buffer", 0, ValueError, "between 1 and"),
    ("buffer", -1, ValueError, "between 1 and"),
    ("buffer", 2**40, ValueError, "between 1 and"),
    ("buffer", 1.5, TypeError, "whole number"),
    ("buffer", "5", TypeError, "whole number"),
    ("buffer", True, TypeError, "whole number"),
    ("buffer", None, TypeError, "whole number"),
    ("timeout", 0, ValueError, "more than 0"),
    ("timeout", -1.0, ValueError, "more than 0"),
    ("timeout", float("nan"), ValueError, "more than 0"),
    ("timeout", float("inf"), ValueError, "more than 0"),
    ("timeout", "1", TypeError, "number of seconds"),
    ("timeout", True, TypeError, "number of seconds"),
    ("max_concurrent", 0, ValueError, "between 1 and"),
    ("max_concurrent", 2.0, TypeError, "whole number"),
    ("workers", 0, ValueError, "between 1 and"),
    ("workers", 100_000, ValueError, "between 1 and"),
    ("workers", "4", TypeError, "whole number"),
    ("max_bytes", 0, ValueError, "between"),
    ("max_bytes", 2**60, ValueError, "between"),
    ("max_bytes", 1e6, TypeError, "whole number"),
    ("max_worker_memory", 0, ValueError, "between"),
    ("max_worker_memory", 1e9, TypeError, "whole number"),
    ("event_timeout", 0, ValueError, "more than 0"),
    ("event_timeout", "1", TypeError, "number of seconds"),
    ("stall_timeout", -1, ValueError, "more than 0"),
    ("stall_timeout", float("inf"), ValueError, "more than 0"),
    ("close_timeout", -0.1, ValueError, "at least 0"),
    ("close_timeout", float("nan"), ValueError, "at least 0"),
    ("close_timeout", None, TypeError, "number of seconds"),
]


@pytest.mark.parametrize(("name", "value", "kind", "words"), WRONG)
def test_wrong_value(name, value, kind, words):
    for make in (
        lambda: StreamConfig(**{name: value}),
        lambda: stream_fn(**{name: value}),
        lambda: functions.echo.options(**{name: value}),
        lambda: StreamConfig().replace(**{name: value}),
    ):
        with pytest.raises(kind) as info:
            make()
        assert words in str(info.value)
        assert f"`{name}`" in str(info.value)


@pytest.mark.parametrize("make", [stream_fn, functions.echo.options, StreamConfig().replace])
def test_unknown_setting(make):
    meant = r"unknown setting `bufer`: did you mean `buffer`\? There are: .*timeout"
    with pytest.raises(TypeError, match=meant):
        make(bufer=3)
    with pytest.raises(TypeError, match="unknown setting `colour`; there are: .*buffer"):
        make(colour="red")


def test_defaults_and_to_dict():
    settings = StreamConfig().to_dict()
    assert settings["mode"] == "inline"
    assert settings["buffer"] == 256
    assert settings["timeout"] is None
    assert json.loads(json.dumps(settings)) == settings
    assert StreamConfig(**settings) == StreamConfig()
    changed = StreamConfig(mode="process", buffer=3, timeout=1, max_concurrent=2, workers=1)
    assert StreamConfig(**changed.to_dict()) == changed


def test_frozen_equal_and_hashable():
    config = StreamConfig(buffer=3)
    with pytest.raises(AttributeError, match=r"`.replace\(buffer=...\)` makes a copy"):
        config.buffer = 4
    with pytest.raises(AttributeError, match="`buffer` cannot be deleted"):
        del config.buffer
    assert config.buffer == 3
    assert config == StreamConfig(buffer=3) != StreamConfig()
    assert config != {"buffer": 3}
    assert config == mock.ANY
    assert len({config, StreamConfig(buffer=3)}) == 1
    assert pickle.loads(pickle.dumps(config)) == copy.copy(config) == eval(repr(config)) == config
    assert config.replace(mode="process").buffer == 3
    assert config.mode == "inline"


def test_settings_of_a_subclass():
    class Mine(StreamConfig):
        __slots__ = ("note",)

    mine = Mine(buffer=3)
    assert type(mine.replace(buffer=4)) is type(copy.copy(mine)) is Mine
    assert mine != StreamConfig(buffer=3)
    assert mine.to_dict() == StreamConfig(buffer=3).to_dict()


def test_tools_can_read_the_settings():
    hints = typing.get_type_hints(StreamConfig)
    assert list(hints) == list(inspect.signature(StreamConfig, eval_str=True).parameters)
    assert list(hints) == list(StreamConfig().to_dict())


def test_positional_settings_are_refused():
    with pytest.raises(TypeError):
        StreamConfig("process")


def test_config_and_settings_together():
    config = StreamConfig(mode="process", buffer=3)

    @stream_fn(config=config, buffer=4)
    async def one(events):
        yield

    assert one.config == StreamConfig(mode="process", buffer=4)
    assert config.buffer == 3


def test_options_leave_the_original_alone():
    changed = functions.echo.options(mode="process", buffer=2)
    assert isinstance(changed, StreamFn)
    assert functions.echo.config == StreamConfig()
    assert changed.config == StreamConfig(mode="process", buffer=2)
    assert changed.options(buffer=5).config == StreamConfig(mode="process", buffer=5)


def test_config_that_is_none():
    with pytest.raises((TypeError, AttributeError), match="StreamConfig|dict"):
        stream_fn(config={"mode": "process"})


def plain(events):
    return [events]


async def coroutine(events):
    return events


def generator(events):
    yield from events


class Thing:
    pass


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (plain, "plain function"),
        (coroutine, "never yields"),
        (generator, "plain generator"),
        (functools.partial(plain), "plain function"),
        (functools.partial(coroutine, 1), "never yields"),
        (5, "`async def` with `yield`"),
        ("name", "`async def` with `yield`"),
        (functions.echo, "already"),
        (len, "`async def` with `yield`"),
        (Thing, "`async def` with `yield`"),
        (Thing(), "`async def` with `yield`"),
        (functools.partial(functions.with_factor), "argument"),
    ],
)
def test_what_cannot_be_a_stream_function(wrong, words):
    with pytest.raises(TypeError, match=words):
        stream_fn(wrong)
    with pytest.raises(TypeError, match=words):
        stream_fn(mode="process")(wrong)


def test_it_looks_like_the_function():
    @stream_fn
    async def documented(events):
        """What it does."""
        yield

    assert documented.__name__ == "documented"
    assert documented.__doc__ == "What it does."
    assert documented.__module__ == __name__
    assert "documented" in repr(documented)
    assert "inline" in repr(documented)


def test_a_stream_function_travels():
    import pickle

    again = pickle.loads(pickle.dumps(functions.echo.options(buffer=7)))
    assert again.config.buffer == 7
    assert again.run_sync([1]) == [1]


# Every way to write parameters, of what yields and of what does not.
PARAMETERS = [
    *("", "events", "events, /", "events=()", "*events", "*, events", "**events", "events, *rest"),
    *("events, state", "events, /, state", "events, state=None", "events, *, state", "state"),
    *("events, other", "events, other=None", "events, state, other", "events, state, other=None"),
    *("events, **state", "state, events", "events, *, other=None", "events, state, *, other"),
]


@pytest.mark.parametrize("body", ["yield 1", "return 1", "pass"])
@pytest.mark.parametrize("kind", ["async def", "def"])
@pytest.mark.parametrize("parameters", PARAMETERS)
def test_a_glance_at_a_function_sees_what_inspect_sees(parameters, kind, body):
    scope = {}
    exec(f"{kind} function({parameters}):\n    {body}", scope)
    function = scope["function"]
    said = []
    for module in (signature, callables):
        try:
            module.check(function)
        except TypeError as error:
            said.append(str(error))
        else:
            said.append(module.takes_state(function))
    assert said[0] == said[1]


def test_a_function_that_says_it_has_another_signature():
    def wrapped(*events):
        return plain(*events)

    async def plain(events, state):
        yield 1

    wrapped = functools.wraps(plain)(wrapped)
    assert signature.takes_state(wrapped)
    signature.check(wrapped)
