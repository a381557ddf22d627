//! The interpreter, for the codec: with velo's own module built in, and pickle's loader replaced.

use std::ffi::CString;

use pyo3::exceptions::{PyException, PyMemoryError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use velo_core::fuzzing::{CopyMemory, Memory, codec, encode, module};

/// Instead of unpickling: a value, or the error that pickle raises for bytes it does not like.
const STUB: &str = r#"
import pickle

calls = 0

def loads(data, *, buffers=None):
    global calls
    calls += 1
    if not data or data[0] % 2:
        raise pickle.UnpicklingError("invalid load key")
    return bytes(data), [bytes(buffer) for buffer in buffers or ()]

pickle.loads = loads
"#;

/// Starts the interpreter.
pub fn start() {
    Python::initialize();
    Python::attach(|py| {
        let set_up = || -> PyResult<()> {
            let stub = CString::new(STUB)?;
            PyModule::from_code(py, &stub, c"stub.py", c"stub")?;
            py.import("numpy")?;
            let modules = py.import("sys")?.getattr("modules")?;
            modules.set_item("velo._core", module(py))?;
            py.import("velo.errors")?;
            Ok(())
        };
        if let Err(error) = set_up() {
            error.print(py);
            panic!("the interpreter lacks what the target needs; run it by `make fuzz`");
        }
    });
}

/// The number of pickles that the stub was given.
fn pickles(py: Python<'_>) -> u64 {
    let calls = || {
        py.import("sys")?
            .getattr("modules")?
            .get_item("stub")?
            .getattr("calls")
    };
    calls()
        .and_then(|calls: Bound<'_, PyAny>| calls.extract())
        .expect("the stub's count")
}

/// Large buffers as objects that export them.
struct Views;

impl Memory for Views {
    fn view<'py>(&mut self, py: Python<'py>, bytes: &[u8]) -> PyResult<Option<Bound<'py, PyAny>>> {
        let copy = PyBytes::new(py, bytes);
        Ok(Some(
            py.import("builtins")?
                .getattr("memoryview")?
                .call1((copy,))?,
        ))
    }
}

/// Decodes; `how` chooses between copies and views of large buffers.
pub fn decode(py: Python<'_>, how: u8, payload: &[u8]) {
    let codec = codec(py).expect("a codec");
    let before = pickles(py);
    let memory: &mut dyn Memory = match how % 2 {
        0 => &mut CopyMemory,
        _ => &mut Views,
    };
    let decoded = codec.decode(py, payload, memory).map_err(PyErr::from);
    let unpickled = pickles(py) != before;
    match decoded {
        Ok(value) if !unpickled => survives(&value),
        Ok(_) => {}
        Err(error) => {
            let clean = if unpickled {
                error.is_instance_of::<PyException>(py)
            } else {
                let class = py
                    .import("velo.errors")
                    .and_then(|m| m.getattr("RingCorrupted"));
                let class = class.expect("the class of the error");
                error.is_instance(py, &class) || error.is_instance_of::<PyMemoryError>(py)
            };
            if !clean {
                error.print(py);
                panic!("neither a value nor a clean error");
            }
        }
    }
}

/// A decoded value can be encoded and decoded again, with the same length and the same type.
fn survives(value: &Bound<'_, PyAny>) {
    let py = value.py();
    let once = encode(value).expect("a decoded value can be encoded");
    let again = codec(py)
        .expect("a codec")
        .decode(py, &once, &mut CopyMemory);
    let again = again.expect("an encoded value can be decoded");
    assert!(
        again.get_type().is(&value.get_type()),
        "{value:?} became {again:?}"
    );
    let twice = encode(&again).expect("a decoded value can be encoded");
    assert_eq!(once.len(), twice.len(), "{value:?} became {again:?}");
}

/// Values of every type, encoded: the seeds of a corpus.
pub fn examples() -> Vec<Vec<u8>> {
    const VALUES: &str = r#"
import datetime as dt, decimal, numpy as np
utc, zone = dt.timezone.utc, dt.timezone(dt.timedelta(hours=-3, minutes=30))
day = dt.datetime(2024, 2, 29, 23, 59, 58, 999_999)
values = [
    None, True, 0, -1, 127, 128, -33, 1 << 15, -(1 << 31), (1 << 64) - 1, -(1 << 63), 1 << 64, -(1 << 200),
    1.5, float("nan"), 1 - 2j, "", "abc", "x" * 40, "y" * 300, "gr\u00fc\u00df", "\ud800", "\U0001f600" * 9,
    b"", b"abc", b"z" * 300, bytearray(b"abc"), [], [1, [2, [3]]], list(range(20)), (), (1, "a"), {1, 2},
    frozenset("ab"), {}, {"key": 1, "other": [2]}, {i: str(i) for i in range(20)}, {(1, 2): {"a": None}},
    day, day.replace(tzinfo=utc), day.replace(tzinfo=zone, fold=1), day.date(), day.time(),
    dt.timedelta(days=-3, microseconds=7), np.float64(1.5), np.int8(-3), np.datetime64("2024-02-29"),
    np.arange(6, dtype="<i4").reshape(2, 3), np.zeros((0, 5)), np.asfortranarray(np.ones((3, 4), "f4")),
    np.array(["ab", "c"]), np.array(5), np.zeros(3, dtype=[("a", "i4"), ("b", "f8")]), np.arange(300),
    decimal.Decimal("1.5"), {"array": np.arange(3), "text": "abc"}, [dt.timedelta(1)] * 3,
]
"#;
    Python::attach(|py| {
        let scope = PyDict::new(py);
        let code = CString::new(VALUES).expect("text");
        py.run(&code, Some(&scope), Some(&scope))
            .expect("the examples");
        let values = scope
            .get_item("values")
            .ok()
            .flatten()
            .expect("the examples");
        let values: Vec<Bound<'_, PyAny>> = values.extract().expect("a list");
        values
            .iter()
            .map(|value| encode(value).expect("an example"))
            .collect()
    })
}
