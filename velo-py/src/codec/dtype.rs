//! NumPy, looked up when a value needs it, and its dtypes as bytes and back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};

use super::error::{Fault, fault, judge};
use super::pickler::Pickle;
use crate::ffi::objects::{Array, ArrayLayout, id};

/// The most dtypes that are kept for either direction; beyond it, all are dropped.
const KEPT: usize = 256;

/// The longest name of a dtype that is written as one.
const NAME_MAX: usize = 64;

/// The highest number of NumPy's built-in types. The memory of their items is their value alone, except
/// in object arrays.
const LAST_CLASSIC: i64 = 23;

/// NumPy, once the process has imported it: encoding never imports it.
pub struct LazyNumpy(PyOnceLock<Numpy>);

/// The functions and types of NumPy that the codec needs.
pub struct Numpy {
    layout: Option<ArrayLayout>,
    pub ndarray: Py<PyAny>,
    dtype: Py<PyAny>,
    generic: Py<PyAny>,
    /// Makes a scalar from a dtype and bytes.
    pub scalar: Py<PyAny>,
    forms: Mutex<HashMap<usize, Arc<Form>>>,
    named: Mutex<HashMap<Box<[u8]>, Arc<Form>>>,
}

/// One dtype.
pub struct Form {
    pub dtype: Py<PyAny>,
    /// Bytes of one item.
    pub item: usize,
    /// Whether it has scalars that are numbers or times.
    pub has_scalars: bool,
    /// The type of its scalars.
    pub scalar: Py<PyAny>,
    pub known: Known,
}

/// The written form of a dtype.
pub enum Known {
    /// By a name that NumPy turns into an equal dtype.
    Name(Box<[u8]>),
    /// By its pickle.
    Pickle(Box<[u8]>),
    /// Not at all: its arrays are pickled.
    No,
}

impl LazyNumpy {
    pub fn new() -> Self {
        Self(PyOnceLock::new())
    }

    /// NumPy, if this process has imported it.
    pub fn loaded(&self, py: Python<'_>) -> PyResult<Option<&Numpy>> {
        if let Some(numpy) = self.0.get(py) {
            return Ok(Some(numpy));
        }
        let modules = py
            .import(intern!(py, "sys"))?
            .getattr(intern!(py, "modules"))?;
        match modules.cast::<PyDict>()?.get_item(intern!(py, "numpy"))? {
            Some(numpy) if !numpy.is_none() => {
                self.0.get_or_try_init(py, || Numpy::new(&numpy)).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// NumPy, imported now if need be.
    pub fn import(&self, py: Python<'_>) -> PyResult<&Numpy> {
        if let Some(numpy) = self.0.get(py) {
            return Ok(numpy);
        }
        let numpy = py.import(intern!(py, "numpy"))?;
        self.0.get_or_try_init(py, || Numpy::new(&numpy))
    }
}

impl Numpy {
    fn new(numpy: &Bound<'_, PyAny>) -> PyResult<Self> {
        // The function that pickled scalars name; its module moved between versions of NumPy.
        let scalar = numpy
            .getattr("float64")?
            .call1((0,))?
            .call_method0("__reduce__")?;
        Ok(Self {
            layout: ArrayLayout::probe(numpy)?,
            ndarray: numpy.getattr("ndarray")?.unbind(),
            dtype: numpy.getattr("dtype")?.unbind(),
            generic: numpy.getattr("generic")?.unbind(),
            scalar: scalar.cast::<PyTuple>()?.get_item(0)?.unbind(),
            forms: Mutex::default(),
            named: Mutex::default(),
        })
    }

    /// The fields of `obj` if it is exactly an `ndarray`, and can be read.
    pub fn open<'a, 'py>(&self, obj: &'a Bound<'py, PyAny>) -> Option<Array<'a, 'py>> {
        self.layout.as_ref()?.open(obj)
    }

    /// Whether `obj` is a NumPy scalar.
    pub fn is_scalar(&self, obj: &Bound<'_, PyAny>) -> PyResult<bool> {
        obj.is_instance(self.generic.bind(obj.py()))
    }

    /// The dtype that NumPy makes of `obj`.
    pub fn dtype<'py>(&self, obj: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.dtype.bind(obj.py()).call1((obj,))
    }

    /// How `dtype` is written.
    pub fn form(&self, pickle: &Pickle, dtype: &Bound<'_, PyAny>) -> PyResult<Arc<Form>> {
        if let Some(form) = lock(&self.forms).get(&id(dtype)) {
            return Ok(form.clone());
        }
        let form = Arc::new(self.new_form(pickle, dtype)?);
        // Dtypes of times are made anew for nearly every object that has one; they would crowd out
        // others.
        if !matches!(
            dtype.getattr(intern!(dtype.py(), "kind"))?.extract()?,
            'm' | 'M'
        ) {
            keep(&self.forms, id(dtype), &form);
        }
        Ok(form)
    }

    fn new_form(&self, pickle: &Pickle, dtype: &Bound<'_, PyAny>) -> PyResult<Form> {
        let py = dtype.py();
        let mut form = self.describe(dtype)?;
        if form.item == 0 || !is_classic(dtype)? {
            return Ok(form);
        }
        let is_plain = dtype.getattr(intern!(py, "fields"))?.is_none()
            && dtype.getattr(intern!(py, "metadata"))?.is_none();
        let name = if is_plain { self.name(dtype)? } else { None };
        form.known = match name {
            Some(name) => Known::Name(name),
            // Pickle will refuse the array for the same reason, and that error is
            // explained.
            None => match pickle.dump(dtype) {
                Ok(pickled) => pickled
                    .in_one()
                    .map_or(Known::No, |bytes| Known::Pickle(bytes.into())),
                Err(_) => Known::No,
            },
        };
        Ok(form)
    }

    /// The other fields of a form.
    fn describe(&self, dtype: &Bound<'_, PyAny>) -> PyResult<Form> {
        let py = dtype.py();
        let kind: char = dtype.getattr(intern!(py, "kind"))?.extract()?;
        Ok(Form {
            item: dtype.getattr(intern!(py, "itemsize"))?.extract()?,
            has_scalars: "biufcmM".contains(kind),
            scalar: dtype.getattr(intern!(py, "type"))?.unbind(),
            dtype: dtype.clone().unbind(),
            known: Known::No,
        })
    }

    /// A name that stands for this dtype and no other: `int64` and `long long` are equal, but not
    /// the same.
    fn name(&self, dtype: &Bound<'_, PyAny>) -> PyResult<Option<Box<[u8]>>> {
        let py = dtype.py();
        let text: String = dtype.getattr(intern!(py, "str"))?.extract()?;
        let char: char = dtype.getattr(intern!(py, "char"))?.extract()?;
        let order: char = dtype.getattr(intern!(py, "byteorder"))?.extract()?;
        for name in [text, format!("{order}{char}")] {
            if !is_name(name.as_bytes()) {
                continue;
            }
            let Ok(other) = self.dtype.bind(py).call1((&name,)) else {
                continue;
            };
            if other.eq(dtype)? && other.getattr(intern!(py, "char"))?.extract::<char>()? == char {
                return Ok(Some(name.into_bytes().into()));
            }
        }
        Ok(None)
    }

    /// The dtype that has this name.
    pub fn named(&self, py: Python<'_>, name: &[u8]) -> Result<Arc<Form>, Fault> {
        if let Some(form) = lock(&self.named).get(name) {
            return Ok(form.clone());
        }
        let text = match std::str::from_utf8(name) {
            Ok(text) if is_name(name) => text,
            _ => return fault("an unknown dtype"),
        };
        let dtype = self.dtype.bind(py).call1((text,));
        let dtype = dtype.map_err(|error| judge(py, error, "an unknown dtype"))?;
        let form = self.checked(&dtype)?;
        keep(&self.named, name.into(), &form);
        Ok(form)
    }

    /// The dtype that was pickled.
    pub fn unpickled(
        &self,
        pickle: &Pickle,
        py: Python<'_>,
        bytes: &[u8],
    ) -> Result<Arc<Form>, Fault> {
        let dtype = pickle.load(py, bytes)?;
        if !dtype.is_instance(self.dtype.bind(py))? {
            return fault("an array without a dtype");
        }
        self.checked(&dtype)
    }

    /// A dtype that arrived; one with pointers in it must not be laid over bytes.
    fn checked(&self, dtype: &Bound<'_, PyAny>) -> Result<Arc<Form>, Fault> {
        let form = self.describe(dtype)?;
        if form.item == 0 || !is_classic(dtype)? {
            return fault("a dtype whose items are not plain bytes");
        }
        Ok(Arc::new(form))
    }
}

/// Whether items of `dtype` are plain memory without references.
fn is_classic(dtype: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = dtype.py();
    Ok(!dtype.getattr(intern!(py, "hasobject"))?.is_truthy()?
        && (0..=LAST_CLASSIC).contains(&dtype.getattr(intern!(py, "num"))?.extract()?)
        && dtype.getattr(intern!(py, "subdtype"))?.is_none())
}

/// Whether `name` is one simple type: NumPy's own parser would also take lists of types and shapes.
fn is_name(name: &[u8]) -> bool {
    (1..=NAME_MAX).contains(&name.len())
        && name
            .iter()
            .all(|&byte| byte.is_ascii_alphanumeric() || b"<>|=?[]/".contains(&byte))
}

/// Nothing runs Python code while such a lock is held, so waiting for it cannot deadlock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn keep<K: std::hash::Hash + Eq>(map: &Mutex<HashMap<K, Arc<Form>>>, key: K, form: &Arc<Form>) {
    let mut map = lock(map);
    let old = if map.len() >= KEPT {
        std::mem::take(&mut *map)
    } else {
        HashMap::new()
    };
    let replaced = map.insert(key, form.clone());
    // Dropping a dtype may run Python code, so it waits until the lock is gone.
    drop(map);
    drop((old, replaced));
}
