"""Sharing, cycles, depth: when one pickle carries the whole value."""

import pytest

from velo._core import dumps, loads

PICKLE = b"\xc1\x05"


class Node:
    def __init__(self, **fields):
        self.__dict__.update(fields)


def is_pickle(payload):
    return payload.startswith(PICKLE)


@pytest.mark.parametrize(
    "make", [lambda: [1], lambda: {"k": 1}, lambda: {1}, lambda: bytearray(b"a")]
)
def test_shared_objects_stay_shared(make):
    it = make()
    for value in ([it, it], {"a": it, "b": it}, (it, [it]), [[it], {"x": (it,)}]):
        payload = dumps(value)
        assert is_pickle(payload)
    received = loads(dumps([it, it]))
    assert received[0] is received[1]
    assert received[0] == it


def test_a_shared_object_that_nobody_else_holds():
    value = [[[]]]
    value.append(value[0])
    received = loads(dumps(value))
    assert received[0] is received[1]


def test_a_tuple_is_shared_if_something_in_it_can_be():
    pair = ([1], 2)
    received = loads(dumps([pair, pair]))
    assert received[0][0] is received[1][0]


def test_plain_tuples_are_not_worth_a_pickle(check):
    pair = (1, "a", None)
    assert not is_pickle(dumps([pair, pair, (pair, 1)]))
    check([pair] * 100)
    check([frozenset(pair)] * 100)
    check([()] * 10)


def test_a_large_text_is_sent_once():
    text = "x" * 100_000
    data = b"y" * 100_000
    assert len(dumps([text] * 50)) < 110_000
    received = loads(dumps([data] * 50))
    assert received == [data] * 50


def test_a_tuple_of_tuples_does_not_explode():
    value = ()
    for _ in range(50):
        value = (value, value)
    assert len(dumps(value)) < 10_000
    loads(dumps(value))


def test_self_references():
    row = []
    row.append(row)
    received = loads(dumps(row))
    assert received[0] is received

    table = {}
    table["self"] = [1, (table,)]
    received = loads(dumps(table))
    assert received["self"][1][0] is received

    pair = ([],)
    pair[0].append(pair)
    received = loads(dumps(pair))
    assert received[0][0] is received


def test_a_leaf_and_its_container_share():
    inner = [1]
    for value in ([inner, Node(row=inner)], [Node(row=inner), inner]):
        received = loads(dumps(value))
        node = next(item for item in received if isinstance(item, Node))
        row = next(item for item in received if isinstance(item, list))
        assert node.row is row


def test_a_leaf_that_refers_to_its_container():
    value = {"name": "root"}
    value["node"] = Node(owner=value)
    received = loads(dumps(value))
    assert received["node"].owner is received


def test_two_leaves_share():
    common = [1]
    received = loads(dumps({"a": Node(it=common), "b": Node(it=common)}))
    assert received["a"].it is received["b"].it
    node = Node(it=1)
    received = loads(dumps([node, node]))
    assert received[0] is received[1]


def nested(depth, wrap):
    value = 1
    for _ in range(depth):
        value = wrap(value)
    return value


WRAPS = [lambda v: [v], lambda v: (v,), lambda v: {"k": v}, lambda v: [1, {"k": (v,)}]]


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("depth", [1, 10, 63, 64, 65, 66, 100])
def test_depth(wrap, depth):
    value = nested(depth, wrap)
    assert loads(dumps(value)) == value


def test_the_limit_of_the_native_form():
    assert not is_pickle(dumps(nested(64, WRAPS[0])))
    assert is_pickle(dumps(nested(65, WRAPS[0])))


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("depth", [1_000, 100_000])
def test_great_depth_is_a_clear_error(wrap, depth):
    value = nested(depth, wrap)
    try:
        received = loads(dumps(value))
    except RecursionError as error:
        assert "nested this deeply" in str(error)  # noqa: PT017
        return
    # Where pickle can take it, it arrives; compared step by step, as `==` cannot go that deep.
    while type(received) is not int:
        assert type(received) is type(value)
        step = received.values() if type(received) is dict else received
        other = value.values() if type(value) is dict else value
        *_, received = step
        *_, value = other
    assert received == value
