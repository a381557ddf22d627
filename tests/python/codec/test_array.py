"""NumPy arrays and scalars."""

import pytest

np = pytest.importorskip("numpy")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra import numpy as hnp  # noqa: E402

from velo._core import dumps, loads  # noqa: E402

ARRAY = b"\xc1\x04"

CODES = "?bBhHiIlLqQefdgFDG"
DTYPES = [
    *CODES,
    *(order + code for order in "<>" for code in CODES[3:]),
    "S5", "U7", ">U3", "V9", "M8[s]", "M8[25us]", ">m8[ns]", "m8", "M8",
]  # fmt: skip
STRUCTURED = [
    np.dtype("i4,f8"),
    np.dtype([("a", "<i2"), ("b", "U3"), ("c", "f4", (2, 3))]),
    np.dtype([("a", "i1"), ("b", "f8")], align=True),
    np.dtype({"names": ["x"], "formats": ["i4"], "offsets": [4], "itemsize": 16}),
    np.dtype([("outer", [("inner", "M8[D]")])]),
    np.dtype("f4", metadata={"unit": "m"}),
]


def same_dtype(one, other):
    return one == other and one.char == other.char and one.type is other.type


def arrive(array, native=True):
    payload = dumps(array)
    assert payload.startswith(ARRAY) == native
    received = loads(payload)
    assert type(received) is np.ndarray
    assert same_dtype(received.dtype, array.dtype)
    assert received.shape == array.shape
    # Bytes between the fields of a structure are nobody's value.
    if array.dtype.names is None:
        assert received.tobytes() == array.tobytes()
    else:
        assert (received == array).all()
    assert received.flags.writeable  # a copy is its receiver's alone
    return received


def filled(dtype, shape=(3, 4)):
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    # Bytes that are valid in every type: no two booleans or characters are alike.
    data = bytes(index % 2 for index in range(size))
    if np.dtype(dtype).kind == "U":
        return np.full(shape, "añ", dtype)
    return np.frombuffer(data, dtype).reshape(shape).copy()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype):
    array = filled(dtype)
    arrive(array)
    arrive(array[::2, ::-1])
    arrive(np.asfortranarray(array))


@pytest.mark.parametrize("dtype", STRUCTURED, ids=str)
def test_dtypes_that_are_pickled(dtype):
    array = np.zeros(5, dtype)
    assert arrive(array).dtype == dtype
    arrive(array[::2])
    assert loads(dumps(array)).dtype.isalignedstruct == dtype.isalignedstruct


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0, 2), (1,), (1, 1, 1), (2, 3, 4, 5)])
def test_every_shape(shape):
    arrive(np.ones(shape, "f4"))
    arrive(np.ones(shape, "i8", order="F"))


def test_the_most_dimensions():
    arrive(np.ones((1,) * 32))


def test_order():
    array = np.arange(12).reshape(3, 4)
    assert arrive(np.asfortranarray(array)).flags.f_contiguous
    assert arrive(array).flags.c_contiguous
    assert arrive(array[:, ::2]).flags.c_contiguous


VIEWS = [
    lambda a: a[::2],
    lambda a: a[:, 1:3],
    lambda a: a[::-1, ::-1, ::-1],
    lambda a: a.transpose(2, 0, 1),
    lambda a: a.swapaxes(0, 1)[1:, ::2],
    lambda a: a[1:, 1:, 1:],
    lambda a: a[..., 0],
    lambda a: a[2],
    lambda a: a[:0],
    lambda a: np.broadcast_to(a[0], (3, *a.shape[1:])),
    lambda a: a.reshape(-1)[::7],
]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8", "D", "S3"])
def test_arrays_that_are_not_contiguous(view, dtype):
    array = np.arange(4 * 5 * 6).reshape(4, 5, 6).astype(dtype)
    arrive(view(array))


@given(
    hnp.arrays(
        dtype=hnp.scalar_dtypes(), shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0)
    ),
    st.data(),
)
def test_any_array(array, data):
    if array.dtype.itemsize == 0:
        return
    arrive(array)
    if array.ndim:
        arrive(np.asarray(array[data.draw(hnp.basic_indices(array.shape, allow_ellipsis=False))]))


@pytest.mark.parametrize("dtype", ["S0", "U0", "V0"])
def test_items_without_bytes(dtype):
    array = np.zeros(3, np.dtype(dtype))
    received = loads(dumps(array))
    assert same_dtype(received.dtype, array.dtype)
    assert received.shape == (3,)


def test_object_arrays_are_pickled():
    array = np.array([{"a": 1}, None, (1,)], dtype=object)
    received = loads(dumps({"o": array}))["o"]
    assert received.dtype == object
    assert list(received) == list(array)
    mixed = np.array([(1, [2])], dtype=[("n", "i4"), ("o", "O")])
    assert loads(dumps(mixed)).tolist() == [(1, [2])]


def test_strings_of_any_length():
    if not hasattr(np.dtypes, "StringDType"):
        pytest.skip("this NumPy has no StringDType")
    array = np.array(["a", "long " * 100], dtype=np.dtypes.StringDType())
    received = loads(dumps([array]))[0]
    assert received.dtype == array.dtype
    assert (received == array).all()


class Tagged(np.ndarray):
    pass


@pytest.mark.parametrize(
    "array",
    [
        np.ma.masked_array([1, 2, 3], mask=[0, 1, 0]),
        np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        np.arange(4).view(Tagged),
    ],
)
def test_subclasses_are_not_their_base(array):
    received = loads(dumps({"a": array}))["a"]
    assert type(received) is type(array)
    assert received.tolist() == array.tolist()


def test_copies_may_be_written_to():
    for value in (np.zeros(4), np.zeros((50, 50)), np.zeros((50, 50))[::2]):
        payload = dumps([value])
        received = loads(payload)[0]
        received[0] = 1
        assert (received[0] == 1).all()
        assert (loads(payload)[0] == 0).all()


def test_shared_arrays_stay_shared():
    array = np.zeros(10_000)
    received = loads(dumps({"one": array, "other": array}))
    assert received["one"] is received["other"]
    assert (received["one"] == array).all()


SCALARS = [
    *(np.ones(1, code)[0] for code in CODES),
    np.float64("nan"), np.float64(-0.0), np.float16(1.5), np.longdouble(1) / 3,
    np.datetime64("2024-01-01"), np.datetime64("2024-01-01T00:00:00.000000001"),
    np.datetime64("NaT"), np.timedelta64(5, "25us"), np.timedelta64(5),
    np.str_("text"), np.bytes_(b"data"), np.void(b"abc"), np.zeros(1, "i4,f8")[0],
]  # fmt: skip


@pytest.mark.parametrize("scalar", SCALARS, ids=repr)
def test_scalars(scalar):
    for received in (loads(dumps(scalar)), loads(dumps([scalar, 1]))[0]):
        assert type(received) is type(scalar)
        assert received.tobytes() == scalar.tobytes()
        assert same_dtype(received.dtype, scalar.dtype)


def test_scalars_as_keys(check):
    received = loads(dumps({np.int64(1): "a", np.str_("k"): "b"}))
    assert [type(key) for key in received] == [np.int64, np.str_]


def test_dtypes_and_functions_themselves():
    assert loads(dumps(np.dtype("f4"))) == np.dtype("f4")
    assert loads(dumps(np.sin)) is np.sin
    assert loads(dumps(np.float32)) is np.float32


def test_an_array_takes_its_bytes_and_a_short_head():
    assert len(dumps(np.zeros(1_000_000, "u1"))) < 1_000_200


def test_encoding_does_not_import_numpy(tmp_path):
    import subprocess
    import sys

    script = (
        "import sys, velo._core as core; core.loads(core.dumps([1, {'a': (2, 1j)}, slice]));"
        "assert 'numpy' not in sys.modules and 'cloudpickle' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
