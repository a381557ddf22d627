"""What cannot be pickled is named by its path."""

import dataclasses
import functools
import re
import socket
import threading
import types

import pytest

from velo._core import dumps, loads


class User:
    def __init__(self, **fields):
        self.__dict__.update(fields)


class Slotted:
    __slots__ = ("lock", "name")

    def __init__(self):
        self.name = "n"
        self.lock = threading.Lock()


@dataclasses.dataclass
class Order:
    number: int
    lines: list


@pytest.fixture
def sock():
    with socket.socket() as sock:
        yield sock


def refusal(value):
    with pytest.raises(TypeError) as caught:
        dumps(value)
    assert caught.value.__cause__ is not None
    return str(caught.value)


def test_an_attribute_in_a_dict(sock):
    message = refusal({"id": 1, "user": User(name="n", socket=sock)})
    assert message == (
        'cannot send event["user"].socket: a `socket.socket` cannot be pickled '
        "(cannot pickle 'socket' object)"
    )


@pytest.mark.parametrize(
    ("wrap", "path"),
    [
        (lambda it: it, "event"),
        (lambda it: [1, [it]], "event[1][0]"),
        (lambda it: (1, it), "event[1]"),
        (lambda it: {1: it}, "event[1]"),
        (lambda it: {(1, "a"): [it]}, "event[(1, 'a')][0]"),
        (lambda it: {it: 1}, "list(event)[0]"),
        (lambda it: {"s": {it}}, 'list(event["s"])[0]'),
        (lambda it: Order(1, [1, it]), "event.lines[1]"),
        (lambda it: functools.partial(print, it), "event.args[0]"),
        (lambda it: types.SimpleNamespace(a=types.SimpleNamespace(b=it)), "event.a.b"),
        (lambda it: lambda: it, "event.<closure>.it"),
        (lambda it: [User(a=1), User(a=2), User(a=it)], "event[2].a"),
    ],
)
def test_paths(sock, wrap, path):
    assert refusal(wrap(sock)).startswith(f"cannot send {path}: a `socket.socket` ")


def test_slots():
    assert refusal([Slotted()]).startswith("cannot send event[0].lock: a `_thread.lock` ")


def test_generators_and_modules():
    assert refusal({"g": (n for n in "ab")}).startswith('cannot send event["g"]: a `generator` ')


def test_a_cycle_on_the_way(sock):
    parent = User(name="parent")
    parent.child = User(parent=parent, deep=[parent, User(parent=parent, it=sock)])
    assert refusal(parent).startswith("cannot send event.child.deep[1].it: ")


def test_a_long_key_is_cut(sock):
    message = refusal({"k" * 5_000: sock})
    assert len(message) < 500
    assert re.match(r'cannot send event\["k+\.\.\."\]: ', message)


def test_a_wide_value_takes_bounded_effort(sock):
    assert refusal([User(a=n) for n in range(20_000)] + [sock]).startswith("cannot send event")


class Fragile:
    def __getstate__(self):
        raise ValueError("not today")


def test_an_exception_of_the_object_itself_is_left_alone():
    with pytest.raises(ValueError, match="not today"):
        dumps({"a": Fragile()})


def test_the_codec_lives_on_after_a_refusal(sock):
    refusal([sock])
    assert loads(dumps([1])) == [1]
