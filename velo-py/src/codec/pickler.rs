//! Calls pickle with protocol 5, or cloudpickle for objects that pickle refuses.

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyAttributeError, PyRecursionError, PyTypeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyList};

use super::error::Stop;

/// The highest protocol that every supported Python speaks, and the first with out-of-band buffers.
const PROTOCOL: u8 = 5;

/// Pickle's functions and classes.
pub struct Pickle {
    dumps: Py<PyAny>,
    loads: Py<PyAny>,
    pickler: Py<PyAny>,
    bytes_io: Py<PyAny>,
    refusal: Py<PyAny>,
    main: Py<PyBytes>,
    cloud_pickler: PyOnceLock<Py<PyAny>>,
}

/// A finished pickle.
pub struct Pickled<'py> {
    pub bytes: Bound<'py, PyBytes>,
    pub buffers: Vec<PyBuffer<u8>>,
    /// The ids of all objects whose identity the pickle keeps; empty unless requested.
    pub reached: Vec<usize>,
}

impl Pickle {
    pub fn new(py: Python<'_>) -> PyResult<Self> {
        let pickle = py.import("pickle")?;
        Ok(Self {
            dumps: pickle.getattr("dumps")?.unbind(),
            loads: pickle.getattr("loads")?.unbind(),
            pickler: pickle.getattr("Pickler")?.unbind(),
            bytes_io: py.import("io")?.getattr("BytesIO")?.unbind(),
            refusal: pickle.getattr("PicklingError")?.unbind(),
            main: PyBytes::new(py, b"__main__").unbind(),
            cloud_pickler: PyOnceLock::new(),
        })
    }

    /// Pickles all of a value.
    pub fn dump<'py>(&self, obj: &Bound<'py, PyAny>) -> Result<Pickled<'py>, Stop> {
        self.dump_somehow(obj, false)
    }

    /// Pickles a part of a value, and collects the ids of its objects.
    pub fn dump_part<'py>(&self, obj: &Bound<'py, PyAny>) -> Result<Pickled<'py>, Stop> {
        self.dump_somehow(obj, true)
    }

    fn dump_somehow<'py>(
        &self,
        obj: &Bound<'py, PyAny>,
        reached: bool,
    ) -> Result<Pickled<'py>, Stop> {
        let py = obj.py();
        let plain = if reached {
            self.dump_by(self.pickler.bind(py), obj, true)
        } else {
            self.dump_at_once(obj)
        };
        match plain {
            Ok(pickle) if !pickle.bytes.contains(self.main.bind(py))? => Ok(pickle),
            Ok(pickle) => match self.cloud_pickler(py) {
                Some(pickler) => self
                    .dump_by(pickler, obj, reached)
                    .map_err(|error| self.sort(py, error)),
                None => Ok(pickle),
            },
            Err(error) => {
                let by_value = self
                    .is_refusal(py, &error)
                    .then(|| self.cloud_pickler(py))
                    .flatten();
                match by_value {
                    Some(pickler) => self
                        .dump_by(pickler, obj, reached)
                        .map_err(|error| self.sort(py, error)),
                    None => Err(self.sort(py, error)),
                }
            }
        }
    }

    fn dump_at_once<'py>(&self, obj: &Bound<'py, PyAny>) -> PyResult<Pickled<'py>> {
        let py = obj.py();
        let (options, buffers) = options(py)?;
        let bytes = self
            .dumps
            .bind(py)
            .call((obj,), Some(&options))?
            .cast_into()?;
        Ok(Pickled {
            bytes,
            buffers: raw(&buffers)?,
            reached: Vec::new(),
        })
    }

    fn dump_by<'py>(
        &self,
        pickler: &Bound<'py, PyAny>,
        obj: &Bound<'py, PyAny>,
        reached: bool,
    ) -> PyResult<Pickled<'py>> {
        let py = obj.py();
        let (options, buffers) = options(py)?;
        let file = self.bytes_io.bind(py).call0()?;
        let pickler = pickler.call((&file,), Some(&options))?;
        pickler.call_method1(intern!(py, "dump"), (obj,))?;
        let bytes = file.call_method0(intern!(py, "getvalue"))?.cast_into()?;
        let reached = if reached {
            let memo = pickler
                .getattr(intern!(py, "memo"))?
                .call_method0(intern!(py, "copy"))?;
            memo.cast::<PyDict>()?.keys().extract()?
        } else {
            Vec::new()
        };
        Ok(Pickled {
            bytes,
            buffers: raw(&buffers)?,
            reached,
        })
    }

    fn cloud_pickler<'a, 'py>(&'a self, py: Python<'py>) -> Option<&'a Bound<'py, PyAny>> {
        let pickler = self.cloud_pickler.get_or_try_init(py, || {
            py.import("cloudpickle")?
                .getattr("CloudPickler")
                .map(Bound::unbind)
        });
        pickler.ok().map(|pickler| pickler.bind(py))
    }

    /// Whether pickle's error says that it cannot pickle objects of this kind.
    fn is_refusal(&self, py: Python<'_>, error: &PyErr) -> bool {
        error.is_instance(py, self.refusal.bind(py))
            || error.is_instance_of::<PyTypeError>(py)
            || error.is_instance_of::<PyAttributeError>(py)
    }

    fn sort(&self, py: Python<'_>, error: PyErr) -> Stop {
        if error.is_instance_of::<PyRecursionError>(py) {
            let clear = PyRecursionError::new_err(
                "cannot send a value that is nested this deeply: send it in parts, or flatten it",
            );
            clear.set_cause(py, Some(error));
            Stop::Raised(Box::new(clear))
        } else if self.is_refusal(py, &error) {
            Stop::Refused(Box::new(error))
        } else {
            Stop::Raised(Box::new(error))
        }
    }

    /// `pickle.loads`.
    pub fn loads<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        self.loads.bind(py)
    }

    /// The object in pickled `bytes` that were not split from their buffers.
    pub fn load<'py>(&self, py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
        self.loads.bind(py).call1((PyBytes::new(py, bytes),))
    }
}

/// Keyword arguments for a pickler, and the list that collects its out-of-band buffers.
fn options(py: Python<'_>) -> PyResult<(Bound<'_, PyDict>, Bound<'_, PyList>)> {
    let buffers = PyList::empty(py);
    let options = PyDict::new(py);
    options.set_item(intern!(py, "protocol"), PROTOCOL)?;
    options.set_item(
        intern!(py, "buffer_callback"),
        buffers.getattr(intern!(py, "append"))?,
    )?;
    Ok((options, buffers))
}

/// The plain bytes of each `PickleBuffer`.
fn raw(buffers: &Bound<'_, PyList>) -> PyResult<Vec<PyBuffer<u8>>> {
    let py = buffers.py();
    let raw = |buffer: Bound<'_, PyAny>| PyBuffer::get(&buffer.call_method0(intern!(py, "raw"))?);
    buffers.iter().map(raw).collect()
}

impl Pickled<'_> {
    /// The pickle, if it holds the whole object.
    pub fn in_one(&self) -> Option<&[u8]> {
        self.buffers.is_empty().then(|| self.bytes.as_bytes())
    }
}
