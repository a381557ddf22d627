"""Recent keys are reused, and never mistaken for one another."""

from hypothesis import given
from hypothesis import strategies as st

from velo._core import dumps, loads


def test_the_same_key_is_the_same_object():
    one, other = (next(iter(loads(dumps({"k" * 20: 1})))) for _ in range(2))
    assert one is other


@given(st.lists(st.text(max_size=31), unique=True, max_size=60))
def test_keys_are_not_mixed_up(keys):
    value = {key: number for number, key in enumerate(keys)}
    for _ in range(2):
        received = loads(dumps(value))
        assert received == value
        assert list(received) == keys


def test_more_keys_than_are_kept():
    value = {f"key-{number}": number for number in range(5_000)}
    for _ in range(2):
        assert loads(dumps(value)) == value


def test_keys_that_differ_in_the_middle_only():
    keys = [f"prefix00{number:03}suffix00" for number in range(500)]
    value = dict.fromkeys(keys, 1)
    assert list(loads(dumps(value))) == keys


class Nested:
    """Decodes another value while one is being decoded."""

    def __reduce__(self):
        return loads, (dumps({"inner": 1, "outer": 2}),)


def test_decoding_within_decoding():
    value = {"outer": Nested(), "inner": 3}
    assert loads(dumps(value)) == {"outer": {"inner": 1, "outer": 2}, "inner": 3}
